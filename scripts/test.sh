#!/usr/bin/env bash
# Lint, types and the whole suite, without a GPU on the Python of vLLM 0.33; then on vLLM 0.32 what may differ there.
# Arguments go to pytest instead, on the vLLM of the environment.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
unset PYTHONDONTWRITEBYTECODE  # servers and their workers import vLLM anew: from bytecode
python scripts/text_model.py .cache/smollm2
if [ $# -gt 0 ]; then exec python -m pytest "$@"; fi
# A file's tests share its servers and engines, so they stay together; tests/conftest.py says which files come first.
workers="-n 2 --dist loadfile --no-loadscope-reorder"
say "lint and types"
ruff check . && ruff format --check . && mypy
if ! gpu; then
  say "the suite on vLLM 0.33"
  bash "$cpu/overlay_0_33.sh" "$venv" "$root/.cache/vllm-0.33"
  PYTHONPATH="$root/.cache/vllm-0.33" python -m pytest $workers
  say "what may differ, on vLLM $(python -c 'import vllm; print(vllm.__version__)')"
  exec python -m pytest $workers -m versions
fi
python -m pytest $workers
