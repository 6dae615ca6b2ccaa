#!/usr/bin/env bash
# Everything that is to be measured on one GPU: see day.sh --help. --runtime DIR: vLLM for this Python as .tar.xz
# archives and .whl files, unpacked once and put before what is installed; without it, the Python on PATH must have vLLM.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
runtime="" words=()
while [ $# -gt 0 ]; do
  case $1 in
    --runtime) runtime=${2:?"--runtime needs a folder"}; shift ;;
    --runtime=*) runtime=${1#*=} ;;
    *) words+=("$1") ;;
  esac
  shift
done
path=$root:$root/scripts
if [ -n "$runtime" ]; then
  site=${TMPDIR:-/tmp}/vllm-std-runtime found=0
  mkdir -p "$site"
  for archive in "$runtime"/*.tar.xz "$runtime"/*.whl; do
    [ -f "$archive" ] || continue
    found=1 mark=$site/.$(basename "$archive")
    [ -e "$mark" ] && continue
    case $archive in
      *.whl) "$python" -m zipfile -e "$archive" "$site" ;;
      *) tar -xJf "$archive" -C "$site" 2>/dev/null || "$python" -m tarfile -e "$archive" "$site" ;;
    esac
    touch "$mark"
  done
  [ $found = 1 ] || { echo "day.sh: --runtime $runtime holds no .tar.xz archive and no .whl file" >&2; exit 2; }
  path=$path:$site
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" -m gpu.day ${words[@]+"${words[@]}"}
