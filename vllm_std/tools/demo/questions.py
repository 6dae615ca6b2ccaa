"""What the demo asks: about the user's video, or about generated ones that the bundled model was trained for."""

from importlib.util import find_spec
from pathlib import Path

from vllm_std.tools.demo.ask import Question

TASKS, SENTENCES = ("range", "list", "follow"), 16  # of the clients' questions and their answers


def one(video: Path | None, question: str | None) -> Question:
    """About a generated video of 1,800 visual tokens unless another is given, in no order.

    Raises ValueError for a video without a question.
    """
    if video is None:
        path, signs = _written("demo.mp4", scenes=100)
        asked = signs.ask("list", sentences=9)
        return Question(path, question) if question else Question(path, asked["question"], asked["answer"])
    if question is None:
        raise ValueError("--video needs --question.")
    if not video.is_file():
        raise ValueError(f"--video {video} is not a file.")
    return Question(video, question)


def several(video: Path | None, question: str | None, clients: int) -> list[Question]:
    """The given question for each client, else each its own; about a generated video of 8,100 visual tokens."""
    if video is not None:
        return [one(video, question)] * clients
    path, signs = _written("demo-long.mp4", scenes=450)
    if question is not None:
        return [Question(path, question)] * clients
    asked = [signs.ask(TASKS[client % len(TASKS)], SENTENCES) for client in range(clients)]
    return [Question(path, one["question"], one["answer"]) for one in asked]


def _written(name: str, scenes: int):
    """(path in vLLM's cache directory, SignVideo)"""
    if find_spec("av") is None:
        raise ValueError("the demo writes its videos with PyAV: pip install av.")
    from vllm import envs

    from vllm_std.tools.demo.sign_video import SignVideo

    path = Path(envs.VLLM_CACHE_ROOT) / "vllm_std" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    video = SignVideo(scenes=scenes, seed=1)
    video.write(path)
    return path, video
