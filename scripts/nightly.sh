#!/usr/bin/env bash
# More of what a usual run of the suite does little of: new random schedules. VLLM_STD_SCHEDULES: for each of four engines.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
export VLLM_STD_SCHEDULES="${VLLM_STD_SCHEDULES:-1000}"
exec python -m pytest -s --timeout 0 tests/test_schedules.py "$@"
