"""What the command `scripts/gpu/day.sh` is asked."""

import argparse
from pathlib import Path

from gpu.machine import ROOT
from gpu.parts import PARTS, Part

# Parts that time no engine's cells: what they are, and their minutes.
OTHERS = {
    "check": ("right answers of the bundled video model, selection kernels against torch, steps wait for nothing", 5),
    "kernels": ("selection kernels alone, ms of a round by kernel, against a goal", 2),
    "start": ("start of the 7B shape with vLLM's defaults, plain and std: seconds, KV blocks, CUDA graphs", 5),
}
ORDER = ("check", "7b", "8b", "smollm2", "video", "never-slower", "kernels", "start", "mha")
TEXT_MODEL_HELP = "SmolLM2-135M-Instruct for part smollm2: a folder, or a GGUF file that is converted first"
RUNTIME_HELP = "folder of .tar.xz archives and .whl files that hold vLLM for this Python; unpacked once and used first"


def _described(part: Part) -> str:
    return f"{part.title}: {', '.join(f'{batch} x {context / 1000:.3g}K' for batch, context in part.rows)}"


def arguments(description: str) -> argparse.Namespace:
    """description: of the command, to which the list of parts is added."""
    named = OTHERS | {name: (_described(part), part.minutes) for name, part in PARTS.items()}
    listed = "\n".join(f"    {name:14}{named[name][1]:2}  {named[name][0]}" for name in ORDER)
    parser = argparse.ArgumentParser(
        "gpu/day.sh", description=description + listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", metavar="PART", help=f"{', '.join(ORDER)}, or all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of records.jsonl and log.txt")
    parser.add_argument("--minutes", type=float, default=9, help="begin nothing new after so long (default: 9)")
    parser.add_argument("--memory", type=float, default=0.94, help="share of the GPU for vLLM (default: 0.94)")
    parser.add_argument(
        "--text-model", type=Path, default=ROOT / ".cache/smollm2", metavar="PATH", help=TEXT_MODEL_HELP
    )
    parser.add_argument("--commit", help="what the records say was measured, where there is no git (default: ask git)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few cells, to try all of it anywhere")
    parser.add_argument("--runtime", metavar="DIR", help=RUNTIME_HELP)
    return _checked(parser, parser.parse_args())


def _checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    for name in args.parts:
        if name not in (*ORDER, "all"):
            parser.error(f"there is no part {name}: use {', '.join(ORDER)}, or all")
    args.parts = list(ORDER) if "all" in args.parts else [name for name in ORDER if name in args.parts]
    if args.minutes <= 0:
        parser.error(f"--minutes {args.minutes:g} leaves no time: give at least 1")
    if not 0.1 <= args.memory <= 0.98:
        parser.error(f"--memory {args.memory:g} is not a share of the GPU's memory: use 0.1 to 0.98")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    model = args.text_model
    if "smollm2" in args.parts and model.suffix != ".gguf" and not (model / "config.json").exists():
        parser.error(f"--text-model {model} has no config.json: make it with python scripts/text_model.py {model}")
    return args
