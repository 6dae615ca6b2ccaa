#!/usr/bin/env bash
# A video model answers about a long mp4 through `vllm serve --speculative-method std`, then through plain vLLM.
#   ./scripts/demo.sh [--model M] [--video V.mp4] [--question Q] [--policy P] [--top-k K] [--gamma G]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec vllm-std demo "$@"
