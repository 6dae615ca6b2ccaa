#!/usr/bin/env bash
# The whole suite, then its fast part on the newest vLLM's Python. Arguments go to pytest in place of that.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
python scripts/text_model.py .cache/smollm2
if [ $# -gt 0 ]; then exec python -m pytest "$@"; fi
python -m pytest
