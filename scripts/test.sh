#!/usr/bin/env bash
# Lint, types and the whole suite; without a GPU, first its fast part on the Python of vLLM 0.33. Arguments go to pytest instead.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
python scripts/text_model.py .cache/smollm2
if [ $# -gt 0 ]; then exec python -m pytest "$@"; fi
say "lint and types"
ruff check . && ruff format --check . && mypy
if ! gpu; then
  say "the fast part of the suite on vLLM 0.33"
  bash "$cpu/overlay_0_33.sh" "$venv" "$root/.cache/vllm-0.33"
  PYTHONPATH="$root/.cache/vllm-0.33" python -m pytest -n 2 --dist loadfile -m fast
  say "the whole suite on vLLM $(python -c 'import vllm; print(vllm.__version__)')"
fi
python -m pytest -n 2 --dist loadfile
