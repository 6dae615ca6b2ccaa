"""Long text prompts for `vllm-std acceptance`: passages of Python's reference and its library's docstrings.

All of it comes with Python itself, some 300,000 tokens; passages overlap only when that is used up. Tasks take turns:
summarise, quote, retrieve (what a section says, by its heading) and walk (through the text in order).

    python scripts/bench/prompts.py --tokenizer .cache/smollm2 --out prompts.jsonl --count 40
"""

import argparse
import importlib
import inspect
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MODULES = """
argparse asyncio.base_events asyncio.events asyncio.locks asyncio.queues asyncio.streams asyncio.tasks ast bdb calendar
cmd codecs collections concurrent.futures._base configparser contextlib csv dataclasses difflib doctest email.message
enum fractions ftplib functools heapq http.client http.server imaplib inspect json locale logging logging.config
logging.handlers multiprocessing.context optparse os pathlib pdb pickletools pstats queue random re sched selectors
shelve shutil smtplib socket socketserver ssl statistics string subprocess tarfile tempfile textwrap threading timeit
traceback trace turtle unittest.case unittest.mock urllib.parse urllib.request xml.etree.ElementTree zipfile
""".split()
QUESTIONS = {
    "summarise": "Summarise the text above, section by section, in your own words.",
    "quote": 'Quote, word for word, the paragraph of the text that begins with "{opening}", and the one after it.',
    "retrieve": 'What does the text above say in the section "{heading}"? Answer in detail, from the text alone.',
    "walk": "Go through the text above from beginning to end. Say in one sentence for each section what it is about.",
}


class Paragraph(NamedTuple):
    heading: str
    text: str
    tokens: int


def documents() -> Iterator[list[tuple[str, str]]]:
    """The reference by topic, then the library by module: each a list of (heading, text)."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield list(_sections(name, text))
    for name in MODULES:
        yield list(_docstrings(importlib.import_module(name)))


def _sections(heading: str, text: str) -> Iterator[tuple[str, str]]:
    for paragraph in re.split(r"\n\s*\n", text):
        title = re.fullmatch(r"\s*(.+)\n[=*~-]{3,}\s*", paragraph)
        if title:
            heading = title[1]
        else:
            yield heading, paragraph


def _docstrings(module) -> Iterator[tuple[str, str]]:
    """Of the module, its public functions and classes, and their methods, as far as they are written there."""
    described = [(module.__name__, module)]
    for name, member in vars(module).items():
        if not name.startswith("_") and getattr(member, "__module__", None) == module.__name__:
            described.append((f"{module.__name__}.{name}", member))
            methods = vars(member).items() if inspect.isclass(member) else ()
            described += [
                (f"{module.__name__}.{name}.{method}", function)
                for method, function in methods
                if not method.startswith("_") and inspect.isfunction(function)
            ]
    for name, member in described:
        if isinstance(getattr(member, "__doc__", None), str):
            for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(member.__doc__)):
                yield name, paragraph


def paragraphs(count: Callable[[str], int], rng: random.Random) -> list[Paragraph]:
    """All paragraphs, documents in random order, each text once (topics of the reference repeat parts of others)."""
    shuffled = list(documents())
    rng.shuffle(shuffled)
    once = {text: heading for heading, text in reversed(list(itertools.chain(*shuffled))) if text.strip()}
    return [Paragraph(heading, text, count(text)) for text, heading in reversed(once.items())]


def ask(passage: list[Paragraph], task: str, rng: random.Random) -> str:
    """The passage under its headings, and a question about it."""
    parts = []
    for heading, section in itertools.groupby(passage, lambda paragraph: paragraph.heading):
        parts += [f"# {heading}", *(paragraph.text for paragraph in section)]
    chosen = rng.choice([paragraph for paragraph in passage[:-1] if paragraph.tokens > 30])
    opening = " ".join(chosen.text.split()[:8])
    return "\n\n".join([*parts, QUESTIONS[task].format(heading=chosen.heading, opening=opening)])


class Maker:
    """Makes prompts of `least` to `most` tokens, chat template included, from one passage after the other."""

    def __init__(self, tokenizer, least: int, most: int, seed: int):
        self.tokenizer, self.least, self.most, self.seed = tokenizer, least, most, seed
        supply = paragraphs(lambda text: len(tokenizer(text, verbose=False)["input_ids"]), random.Random(seed))
        self.supply, self.at = supply, 0

    def __call__(self, task: str, aim: int, number: int) -> dict[str, str | int]:
        """One prompt of at most `aim` tokens, or of the least, cut between paragraphs."""
        first = self.at
        while sum(paragraph.tokens for paragraph in self._passage(first)) < aim:
            self.at += 1

        def asked() -> str:
            return ask(self._passage(first), task, random.Random(f"{self.seed}:{number}"))

        while self.tokens(asked()) > aim:
            self.at -= 1
        while self.tokens(asked()) < self.least:
            self.at += 1
        return {"id": f"{task}-{number}", "task": task, "tokens": self.tokens(asked()), "prompt": asked()}

    def _passage(self, first: int) -> list[Paragraph]:
        return [self.supply[index % len(self.supply)] for index in range(first, self.at)]

    def tokens(self, text: str) -> int:
        if self.tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(self.tokenizer(text, verbose=False)["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or hub name of the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--min-tokens", type=int, default=4000, help="of a prompt, chat template included")
    parser.add_argument("--max-tokens", type=int, default=7500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 500 <= args.min_tokens <= args.max_tokens - 1500:
        parser.error("--min-tokens must be at least 500, and --max-tokens 1,500 more: paragraphs are not cut")
    from transformers import AutoTokenizer

    make = Maker(AutoTokenizer.from_pretrained(args.tokenizer), args.min_tokens, args.max_tokens, args.seed)
    room = args.max_tokens - args.min_tokens
    aims = [args.min_tokens + room * i // max(args.count - 1, 1) for i in range(args.count)]
    random.Random(args.seed).shuffle(aims)
    tasks = itertools.cycle(QUESTIONS)
    made = [make(task, aim, number) for number, (task, aim) in enumerate(zip(tasks, aims), 1)]
    args.out.write_text("".join(json.dumps(prompt) + "\n" for prompt in made))
    lengths = sorted(prompt["tokens"] for prompt in made)
    print(f"{args.out}: {len(made)} prompts of {lengths[0]:,} to {lengths[-1]:,} tokens, {sum(lengths):,} in all")


if __name__ == "__main__":
    main()
