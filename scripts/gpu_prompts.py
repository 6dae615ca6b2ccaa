"""Prompts of a row, as the engine takes them; a trained model gets real ones."""

import multiprocessing
import pickle
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path


def random_prompts(llm, batch: int, context: int) -> list:
    """Each shorter context is the beginning of the longer ones, so that one prefill serves them all."""
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    made = []
    for number in range(batch):
        rng = random.Random(number)
        made.append({"prompt_token_ids": [rng.randrange(2, vocabulary) for _ in range(context)]})
    return list(llm._preprocess_cmpl(made))


def text_prompts(llm, batch: int, context: int) -> list:
    from bench.prompts import QUESTIONS, Maker

    from vllm_std.patches import lab

    make, tasks = Maker(llm.get_tokenizer(), context - 500, context, seed=0), list(QUESTIONS)
    asked = [make(tasks[number % len(tasks)], context, number)["prompt"] for number in range(batch)]
    return [lab.render(llm, [{"role": "user", "content": text}], text[:40]) for text in asked]


def video_file(number: int, context: int) -> Path:
    return Path(tempfile.gettempdir(), "vllm-std-gpu", f"video-{context}-{number}.pickle")


def make_videos(batch: int, context: int) -> None:
    """Draw videos of `context` visual tokens, a question about each, on all cores; before engines start."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(make_video, range(batch), repeat(context)))


def make_video(number: int, context: int) -> None:
    from vllm_std.tools.demo.sign_video import SignVideo

    if (file := video_file(number, context)).exists():
        return
    video = SignVideo(context // 18, seed=number)
    question = video.ask(("list", "range", "follow")[number % 3], 8)["question"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".new").write_bytes(pickle.dumps(video.prompt(question)))
    file.with_suffix(".new").replace(file)


def video_prompts(llm, batch: int, context: int) -> list:
    files = [video_file(number, context) for number in range(batch)]
    return [prompt for file in files for prompt in llm._preprocess_cmpl([pickle.loads(file.read_bytes())])]


PROMPTS = {"smollm2": text_prompts, "video": video_prompts}
