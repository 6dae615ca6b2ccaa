"""Synthetic "sign" videos for the bundled model, with questions and their exact answers.

A video is a chain of scenes. Each shows a clock (one more every scene), a sign naming the clock of another scene, and
one shape. 84x84 pixels, 9 visual tokens for every two frames, so scenes * patches * 9 visual tokens in all.
"""

import json
from pathlib import Path

import numpy as np

from vllm_std.tools.demo.sign_scene import BACKGROUNDS, COLORS, FRAME, POSITIONS, SHAPES, SIZES, Scene

TOKENS_PER_PATCH = 9  # visual tokens of two frames
FPS = 2  # frames a second, at which vLLM samples videos for Qwen2-VL, so that it takes every frame
NUMBERS = 1001  # clocks and signs are below
TASKS = ("range", "list", "follow")
# By task, in the three styles that the model was taught.
QUESTIONS = {
    "list": ("What can be seen at {}?", "Describe scenes {}.", "Summarize scenes {}."),
    "range": (
        "What happens from {} to {}?",
        "Describe the video from {} to {}.",
        "Summarize the video from {} to {}.",
    ),
    "follow": (
        "Start at {} and follow the signs until {}. What can be seen?",
        "Follow the signs from {} until {} and describe each scene.",
        "Follow the signs from {} until {} and summarize.",
    ),
}


class SignVideo:
    """`scenes` scenes of `patches` * 2 frames; the signs lead through all of them in one cycle."""

    def __init__(self, scenes: int, patches: int = 2, seed: int = 0):
        self.patches = patches
        self.rng = np.random.default_rng(seed)
        first = int(self.rng.integers(0, NUMBERS - scenes))
        cycle = self.rng.permutation(scenes)
        self.next = np.empty(scenes, int)  # scene that the sign of each scene names
        self.next[cycle] = np.roll(cycle, -1)
        self.scenes = [self._scene(first + index, first + int(self.next[index])) for index in range(scenes)]

    def _scene(self, clock: int, sign: int) -> Scene:
        """Drawn in the order of the fields, on which what the model was taught depends."""
        return Scene(
            clock=clock,
            sign=sign,
            size=self._any_of(SIZES),
            color=self._any_of(COLORS),
            shape=self._any_of(SHAPES),
            position=int(self.rng.integers(len(POSITIONS))),
            background=self._any_of(BACKGROUNDS),
            shift=tuple(self.rng.integers(-2, 3, 2)),
        )

    def _any_of(self, names: dict) -> str:
        return list(names)[self.rng.integers(len(names))]

    @property
    def visual_tokens(self) -> int:
        return TOKENS_PER_PATCH * self.patches * len(self.scenes)

    def write(self, path: Path) -> None:
        """As mp4, H.264."""
        import av  # which none of the other uses of a video needs

        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
            stream.width = stream.height = FRAME
            stream.pix_fmt = "yuv420p"
            for scene in self.scenes:
                picture = scene.image()
                for _ in range(2 * self.patches):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    def prompt(self, question: str) -> dict:
        """The vLLM prompt of a question about the video, all frames of it, for `LLM.generate`."""
        frames = np.stack([scene.image() for scene in self.scenes for _ in range(2 * self.patches)])
        metadata = {
            "fps": float(FPS), "duration": len(frames) / FPS, "total_num_frames": len(frames),
            "frames_indices": list(range(len(frames))), "video_backend": "opencv", "do_sample_frames": False,
        }  # fmt: skip
        video = "<|vision_start|><|video_pad|><|vision_end|>"
        text = f"<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"
        return {"prompt": text, "multi_modal_data": {"video": [(frames, metadata)]}}

    def ask(self, task: str, sentences: int = 8) -> dict[str, str]:
        """A question and its answer of so many sentences; tasks: follow (the signs), list (any order), range."""
        style = int(self.rng.integers(3))
        start = int(self.rng.integers(len(self.scenes) - sentences + 1))
        scenes = self._scenes_asked_for(task, start, sentences)
        clocks = [f"{scene.clock:03d}" for scene in scenes]
        if task != "list":
            question = QUESTIONS[task][style].format(clocks[0], clocks[-1])
        elif sentences > 1:
            question = QUESTIONS[task][style].format(f"{', '.join(clocks[:-1])} and {clocks[-1]}")
        else:
            question = QUESTIONS[task][style].format(clocks[0])
        answer = " ".join(scene.sentence(style) for scene in scenes)
        return {"task": task, "question": question, "answer": answer}

    def _scenes_asked_for(self, task: str, start: int, count: int) -> list[Scene]:
        if task == "list":
            indices = list(self.rng.choice(len(self.scenes), count, replace=False))
        elif task == "range":
            indices = list(range(start, start + count))
        else:
            indices = [start]
            while len(indices) < count:
                indices.append(int(self.next[indices[-1]]))
        return [self.scenes[index] for index in indices]


def write_video(path: Path, scenes: int, patches: int, seed: int, sentences: int, each: int = 1) -> None:
    """Write an mp4, and beside it a JSON with `each` questions of each task and their answers."""
    video = SignVideo(scenes, patches, seed)
    video.write(path)
    questions = [video.ask(task, sentences) for task in TASKS for _ in range(each)]
    record = {"scenes": scenes, "visual_tokens": video.visual_tokens, "seed": seed, "questions": questions}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path}: {scenes} scenes, {video.visual_tokens} visual tokens")
