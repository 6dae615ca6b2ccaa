"""Prompts of a row, as the engine takes them; a trained model gets real ones."""

import multiprocessing
import pickle
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from vllm_std.tools.demo.sign_video import TASKS, SignVideo

TOKENS_PER_SCENE = 18  # visual tokens of a scene of two patches


def random_prompts(llm, batch: int, context: int) -> list:
    """Each shorter context is the beginning of the longer ones, so that one prefill serves them all."""
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    prompts = []
    for number in range(batch):
        rng = random.Random(number)
        prompts.append({"prompt_token_ids": [rng.randrange(2, vocabulary) for _ in range(context)]})
    return list(llm._preprocess_cmpl(prompts))


def text_prompts(llm, batch: int, context: int) -> list:
    from bench.prompts import QUESTIONS, Maker

    from vllm_std.patches import offline

    make = Maker(llm.get_tokenizer(), context - 500, context, seed=0)
    tasks = list(QUESTIONS)
    texts = [make(tasks[number % len(tasks)], context, number)["prompt"] for number in range(batch)]
    return [offline.render(llm, [{"role": "user", "content": text}], text[:40]) for text in texts]


def video_prompts(llm, batch: int, context: int) -> list:
    files = [_video_file(number, context) for number in range(batch)]
    return [prompt for file in files for prompt in llm._preprocess_cmpl([pickle.loads(file.read_bytes())])]


def _video_file(number: int, context: int) -> Path:
    return Path(tempfile.gettempdir(), "vllm-std-gpu", f"video-{context}-{number}.pickle")


def draw_videos(batch: int, context: int) -> None:
    """Videos of `context` visual tokens and a question about each, on all cores; before engines start."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_draw_video, range(batch), repeat(context)))


def _draw_video(number: int, context: int) -> None:
    file = _video_file(number, context)
    if file.exists():
        return
    video = SignVideo(context // TOKENS_PER_SCENE, seed=number)
    question = video.ask(TASKS[number % len(TASKS)], sentences=8)["question"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".new").write_bytes(pickle.dumps(video.prompt(question)))
    file.with_suffix(".new").replace(file)


# Of a trained model; the others have random ones.
PROMPTS = {"smollm2": text_prompts, "video": video_prompts}
