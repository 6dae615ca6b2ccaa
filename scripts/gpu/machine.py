"""What every record says of the machine and of what was measured."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
ASKED = """
import json, torch
found = {"device": "cpu", "driver": None, "free": 1.0}
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    found |= {"device": torch.cuda.get_device_name(), "free": free / total, "gpu_gib": round(total / 2**30, 2)}
    try:
        from vllm.third_party import pynvml
        pynvml.nvmlInit()
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
    except Exception as error:
        found["driver"] = f"unknown ({type(error).__name__})"
import vllm, triton
print(json.dumps(found | {"vllm": vllm.__version__, "torch": torch.__version__, "triton": triton.__version__,
                          "cuda": torch.version.cuda}))
"""


def machine() -> dict:
    """Device and versions, asked in a process of its own, so that this one holds no GPU memory."""
    asked = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"vLLM cannot be imported here: {asked.stderr.strip().splitlines()[-1]}")
    return json.loads(asked.stdout.splitlines()[-1])


def shared_facts(found: dict, commit: str | None, tiny: bool) -> dict:
    """Of all records of a call, which may be divided by one another; found: by `machine`."""
    files = sorted((ROOT / "vllm_std").rglob("*.py"))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    facts = {"source": source, "commit": commit or _commit(), "tiny": tiny, "call": uuid4().hex[:8]}
    return {name: value for name, value in found.items() if name != "free"} | facts


def _commit() -> str:
    """With "+" where files differ from it."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"
