"""Everything that is to be measured on one GPU, part by part, most wanted first; for a machine had for half an hour.

    scripts/gpu_day.sh check --out results                     # does std run right here?
    scripts/gpu_day.sh 7b --out results                        # std against plain vLLM, where std should help most
    scripts/gpu_day.sh smollm2 video --out results             # several parts, one after the other
    scripts/gpu_day.sh all --minutes 60 --out results
    scripts/gpu_day.sh 7b --tiny --out trial                   # tiny models, on a CPU too: its times say nothing

The same command again measures what is missing. Each figure is a line of DIR/records.jsonl, added as soon as it is
there, with the card, its driver, the versions and the commit; what engines say is in DIR/log.txt. A step that fails is
recorded with its error, and the rest goes on. The table of these parts is printed last. To publish it, copy
records.jsonl to docs/records/gpu/NAME.jsonl and run python scripts/gpu_page.py.

parts, with their minutes on an H100:
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from gpu_parts import PARTS, Part
from gpu_records import Records
from gpu_report import report
from gpu_steps import STEPS, note
from gpu_turns import Call, measure

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {
    "check": ("right answers of the bundled video model, selection kernels against torch, rounds wait for nothing", 5),
    "kernels": ("selection kernels alone, ms of a round by kernel, against a goal", 2),
    "start": ("start of the 7B shape with vLLM's defaults, plain and std: seconds, KV blocks, CUDA graphs", 5),
}
ORDER = ("check", "7b", "8b", "smollm2", "video", "never-slower", "kernels", "start", "mha")
BUSY = 0.95  # of the GPU's memory must be free
MACHINE = """
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
    asked = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"vLLM cannot be imported here: {asked.stderr.strip().splitlines()[-1]}")
    return json.loads(asked.stdout.splitlines()[-1])


def commit() -> str:
    """With "+" where files differ from it."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def shared_by_all(args, found: dict) -> dict:
    """What every record says. call: records of one call may be divided by one another."""
    files = sorted((ROOT / "vllm_std").rglob("*.py"))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    facts = {"source": source, "commit": args.commit or commit(), "tiny": args.tiny, "call": uuid4().hex[:8]}
    return {name: value for name, value in found.items() if name != "free"} | facts


# ------------------------------------------------------------ the command


def run(name: str, call: Call, tiny: bool) -> None:
    """One part; whatever fails in it is recorded, and stops nothing else."""
    print(f"== {name}", flush=True)
    call.records.part = name
    try:
        if name in OTHERS:
            STEPS[name](call, tiny)
        else:
            measure(name, PARTS[name].shrunk() if tiny else PARTS[name], call)
    except Exception as error:
        note(call, name, error)


def missing(names: list[str], records: Records, tiny: bool) -> Iterator[str]:
    for name in set(names) - set(OTHERS):
        part = PARTS[name].shrunk() if tiny else PARTS[name]
        left = sum(not records.has(name, cell) for side in part.sides for cell in part.cells(side))
        if left:
            yield f"{left} cells of {name} are missing: the same command again measures them."


def described(part: Part) -> str:
    return f"{part.title}: {', '.join(f'{batch} x {context / 1000:.3g}K' for batch, context in part.rows)}"


def arguments() -> argparse.Namespace:
    named = OTHERS | {name: (described(part), part.minutes) for name, part in PARTS.items()}
    listed = "\n".join(f"    {name:14}{named[name][1]:2}  {named[name][0]}" for name in ORDER)
    parser = argparse.ArgumentParser(
        "gpu_day.sh", description=__doc__ + listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", metavar="PART", help=f"{', '.join(ORDER)}, or all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of records.jsonl and log.txt")
    parser.add_argument("--minutes", type=float, default=9, help="begin nothing new after so long (default: 9)")
    parser.add_argument("--memory", type=float, default=0.94, help="share of the GPU for vLLM (default: 0.94)")
    parser.add_argument(
        "--text-model", type=Path, default=ROOT / ".cache/smollm2", metavar="PATH",
        help="SmolLM2-135M-Instruct for part smollm2: a folder, or a GGUF file that is converted first",
    )  # fmt: skip
    parser.add_argument("--commit", help="what the records say was measured, where there is no git (default: ask git)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few cells, to try all of it anywhere")
    parser.add_argument(
        "--runtime", metavar="DIR",
        help="folder of .tar.xz archives and .whl files that hold vLLM for this Python; unpacked once and used first",
    )  # fmt: skip
    return checked(parser, parser.parse_args())


def checked(parser, args) -> argparse.Namespace:
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


def text_model(path: Path) -> Path:
    """The folder of a GGUF file, converted once."""
    if path.suffix != ".gguf":
        return path
    folder = Path(tempfile.gettempdir(), "vllm-std-gpu", path.stem)
    if not (folder / "tokenizer.json").exists():
        from text_model import convert

        convert(path, folder)
    return folder


def main() -> None:
    args, begun = arguments(), time.time()
    found = machine()
    if found["device"] == "cpu" and not args.tiny:
        sys.exit("There is no GPU here: --tiny tries this command without one.")
    if found["free"] < BUSY:
        sys.exit(f"{1 - found['free']:.0%} of the GPU's memory are taken: nothing else may run while this measures.")
    args.out.mkdir(parents=True, exist_ok=True)
    records = Records(args.out / "records.jsonl", shared_by_all(args, found))
    until = begun + 60 * args.minutes
    call = Call(records, args.out / "log.txt", until, found["device"], args.memory, args.text_model)
    old = len(records.rows)
    for name in args.parts:
        if call.left() < 0:
            break
        if name == "smollm2":
            call.text_model = text_model(args.text_model)
        run(name, call, args.tiny)
    print(report([row for row in records.rows if row["part"] in args.parts]))
    if found["device"] == "cpu":
        print("No GPU: these times are a CPU's, to see that this command works.")
    print(*missing(args.parts, records, args.tiny), sep="\n")
    sys.exit(any(row["what"] == "failure" or row.get("ok") is False for row in records.rows[old:]))


if __name__ == "__main__":
    main()
