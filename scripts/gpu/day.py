"""Everything that is to be measured on one GPU, part by part, most wanted first; for a machine had for half an hour.

    scripts/gpu/day.sh check --out results                     # does std run right here?
    scripts/gpu/day.sh 7b --out results                        # std against plain vLLM, where std should help most
    scripts/gpu/day.sh smollm2 video --out results             # several parts, one after the other
    scripts/gpu/day.sh all --minutes 60 --out results
    scripts/gpu/day.sh 7b --tiny --out trial                   # tiny models, on a CPU too: its times say nothing

The same command again measures what is missing. Each figure is a line of DIR/records.jsonl, added as soon as it is
there, with the card, its driver, the versions and the commit; what engines say is in DIR/log.txt. A step that fails is
recorded with its error, and the rest goes on. The table of these parts is printed last. To publish it, copy
records.jsonl to docs/records/gpu/NAME.jsonl and run PYTHONPATH=scripts python -m gpu.page.

parts, with their minutes on an H100:
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpu.arguments import OTHERS, arguments
from gpu.call import Call
from gpu.checks import STEPS
from gpu.machine import machine, shared_facts
from gpu.parts import PARTS
from gpu.records import Records
from gpu.terminal import terminal_report
from gpu.turns import measure

FREE = 0.95  # of the GPU's memory, at least


def main() -> None:
    args, begun = arguments(__doc__ or ""), time.time()
    found = machine()
    _refuse(found, args.tiny)
    args.out.mkdir(parents=True, exist_ok=True)
    records = Records(args.out / "records.jsonl", shared_facts(found, args.commit, args.tiny))
    until = begun + 60 * args.minutes
    call = Call(records, args.out / "log.txt", until, found["device"], args.memory, args.text_model)
    before = len(records.rows)
    for name in args.parts:
        if call.seconds_left() < 0:
            break
        if name == "smollm2":
            call.text_model = text_model(args.text_model)
        run(name, call, args.tiny)
    _print_report(records, args)
    sys.exit(any(row["what"] == "failure" or row.get("ok") is False for row in records.rows[before:]))


def _refuse(found: dict, tiny: bool) -> None:
    """End with a sentence where times would mean nothing; found: by `machine`."""
    if found["device"] == "cpu" and not tiny:
        sys.exit("There is no GPU here: --tiny tries this command without one.")
    if found["free"] < FREE:
        sys.exit(f"{1 - found['free']:.0%} of the GPU's memory are taken: nothing else may run while this measures.")


def _print_report(records: Records, args: argparse.Namespace) -> None:
    print(terminal_report([row for row in records.rows if row["part"] in args.parts]))
    if records.shared["device"] == "cpu":
        print("No GPU: these times are a CPU's, to see that this command works.")
    print(*missing(args.parts, records, args.tiny), sep="\n")


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
        call.note_failure(name, error)


def missing(names: list[str], records: Records, tiny: bool) -> Iterator[str]:
    for name in set(names) - set(OTHERS):
        part = PARTS[name].shrunk() if tiny else PARTS[name]
        left = sum(not records.has_cell(name, cell) for side in part.sides for cell in part.cells(side))
        if left:
            yield f"{left} cells of {name} are missing: the same command again measures them."


def text_model(path: Path) -> Path:
    """The folder of a GGUF file, converted once."""
    if path.suffix != ".gguf":
        return path
    folder = Path(tempfile.gettempdir(), "vllm-std-gpu", path.stem)
    if not (folder / "tokenizer.json").exists():
        from text_model import convert

        convert(path, folder)
    return folder


if __name__ == "__main__":
    main()
