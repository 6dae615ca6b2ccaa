"""What the demo asks: about the user's video, or about generated ones that the bundled model was trained for."""

from importlib.util import find_spec
from pathlib import Path

from vllm_std.patches import probe
from vllm_std.tools.demo.ask import Question
from vllm_std.tools.demo.sign_video import TASKS, SignVideo

SHORT_SCENES = 100  # of the video of the first question: 1,800 visual tokens
SHORT_SENTENCES = 9  # of its answer
LONG_SCENES = 450  # of the video of the clients: 8,100 visual tokens
LONG_SENTENCES = 16  # of each of their answers


def one_question(video: Path | None, question: str | None) -> Question:
    """About a generated video unless another is given. Raises ValueError for a video without a question."""
    if video is None:
        path, signs = _generated("demo.mp4", SHORT_SCENES)
        asked = signs.ask("list", SHORT_SENTENCES)
        return Question(path, question) if question else Question(path, asked["question"], asked["answer"])
    if question is None:
        raise ValueError("--video needs --question.")
    if not video.is_file():
        raise ValueError(f"--video {video} is not a file.")
    return Question(video, question)


def client_questions(video: Path | None, question: str | None, clients: int) -> list[Question]:
    """The given question for each client, else each its own; about a long generated video unless another is given."""
    if clients == 0:
        return []
    if video is not None:
        return [one_question(video, question)] * clients
    path, signs = _generated("demo-long.mp4", LONG_SCENES)
    if question is not None:
        return [Question(path, question)] * clients
    asked = [signs.ask(TASKS[client % len(TASKS)], LONG_SENTENCES) for client in range(clients)]
    return [Question(path, one["question"], one["answer"]) for one in asked]


def _generated(name: str, scenes: int) -> tuple[Path, SignVideo]:
    """A video, written to std's folder in vLLM's cache."""
    if find_spec("av") is None:
        raise ValueError("the demo writes its videos with PyAV: pip install av.")
    path = probe.cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    video = SignVideo(scenes=scenes, seed=1)
    video.write(path)
    return path, video
