"""Synthetic "sign" videos for the bundled model, with questions and their exact answers.

A video is a chain of scenes. Each shows a clock (one more every scene), a sign naming the clock of another scene, and
one shape. 84x84 pixels, 9 visual tokens for every two frames, so scenes * patches * 9 visual tokens in all.

    python sign_video.py --out video.mp4 --scenes 100 --seed 1      # and video.json beside it
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FRAME, TOKENS_PER_PATCH, FPS = 84, 9, 2
SIZES = {"small": 7.5, "large": 11.5}
COLORS = {
    "red": (228, 34, 40), "green": (40, 190, 60), "blue": (44, 92, 250), "yellow": (244, 226, 46),
    "orange": (248, 136, 24), "purple": (176, 60, 222), "white": (244, 244, 244), "cyan": (48, 222, 230),
}  # fmt: skip
BACKGROUNDS = {"black": (18, 18, 18), "gray": (112, 112, 112), "navy": (18, 26, 104), "brown": (98, 54, 26)}
POSITIONS = ("upper left", "upper middle", "upper right", "lower left", "lower middle", "lower right")
CLOCK = ((238, 238, 238), (14, 14, 14))  # ink, paper
SIGN = ((14, 14, 14), (232, 204, 44))
BORDER = (196, 196, 188)
DIGITS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111",
)  # fmt: skip


def _star(x, y):
    angle = np.arctan2(x, -y) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    tip, notch = 1.05, 0.46 * np.exp(1j * np.pi / 5)
    edge, point = notch - tip, np.hypot(x, y) * np.exp(1j * angle) - tip
    return edge.real * point.imag - edge.imag * point.real >= 0


def _heart(x, y):
    x, y = 1.2 * x, 0.12 - 1.15 * y
    return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0


SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.95,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.86,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= (y + 1) * 0.54),
    "star": _star,
    "ring": lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x, y) >= 0.56),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.98),
    "diamond": lambda x, y: abs(x) * 1.25 + abs(y) <= 1.05,
    "heart": _heart,
}


@dataclass
class Scene:
    clock: int
    sign: int
    size: str
    color: str
    shape: str
    position: int
    background: str
    shift: tuple[int, int]

    def sentence(self, style: int) -> str:
        """One of the three sentences the model was taught."""
        place, clock, sign = POSITIONS[self.position], f"{self.clock:03d}", f"{self.sign:03d}"
        thing = f"{self.size} {self.color} {self.shape}"
        return (
            f"At {clock} there is a {thing} in the {place} on a {self.background} background, "
            f"and the sign says {sign}.",
            f"Scene {clock} shows a {thing} at the {place} of a {self.background} picture with the number {sign}.",
            f"Clock {clock}: {thing}, {place}, {self.background}, sign {sign}.",
        )[style]

    def image(self) -> np.ndarray:
        """[84, 84, 3] uint8."""
        image = np.empty((FRAME, FRAME, 3), np.float32)
        image[:28] = np.concatenate([_number(self.clock, *CLOCK), _number(self.sign, *SIGN)], axis=1)
        floor = image[28:]
        floor[:] = BORDER
        floor[3:-3, 3:-3] = BACKGROUNDS[self.background]
        ink = np.zeros((60, 88, 1), np.float32)  # two pixels wider on each side, for shapes shifted over the edge
        top, left = 28 * (self.position // 3) + self.shift[1] + 2, 28 * (self.position % 3) + self.shift[0] + 2
        ink[top : top + 28, left : left + 28, 0] = _shape(self.shape, SIZES[self.size])
        ink = ink[2:58, 2:86]
        floor[:] = ink * np.array(COLORS[self.color]) + (1 - ink) * floor
        return (image + 0.5).astype(np.uint8)


def _number(value: int, ink, paper) -> np.ndarray:
    """[28, 42, 3] three digits of a 3x5 font."""
    mask = np.zeros((28, 42, 1), np.float32)
    for place, digit in enumerate(f"{value:03d}"):
        bits = np.array(list(DIGITS[int(digit)]), np.float32).reshape(5, 3)
        mask[4:24, 14 * place + 3 : 14 * place + 12, 0] = np.kron(bits, np.ones((4, 3)))
    return mask * np.array(ink) + (1 - mask) * np.array(paper)


def _shape(name: str, radius: float) -> np.ndarray:
    """[28, 28] coverage, four samples a pixel side."""
    at = ((np.arange(112) + 0.5) / 4 - 14) / radius
    y, x = np.meshgrid(at, at, indexing="ij")
    return SHAPES[name](x, y).astype(np.float32).reshape(28, 4, 28, 4).mean((1, 3))


class SignVideo:
    """`scenes` scenes of `patches` * 2 frames; the signs lead through all of them in one cycle."""

    def __init__(self, scenes: int, patches: int = 2, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.patches, self.seed = patches, seed
        first = int(self.rng.integers(0, 1001 - scenes))
        cycle = self.rng.permutation(scenes)
        self.next = np.empty(scenes, int)
        self.next[cycle] = np.roll(cycle, -1)
        self.scenes = [
            Scene(
                first + i, first + int(self.next[i]), self._any(SIZES), self._any(COLORS), self._any(SHAPES),
                int(self.rng.integers(6)), self._any(BACKGROUNDS), tuple(self.rng.integers(-2, 3, 2)),
            )
            for i in range(scenes)
        ]  # fmt: skip

    def _any(self, names) -> str:
        return list(names)[self.rng.integers(len(names))]

    @property
    def visual_tokens(self) -> int:
        return TOKENS_PER_PATCH * self.patches * len(self.scenes)

    def write(self, path: Path) -> None:
        """H.264 mp4 at 2 frames a second: vLLM, which samples Qwen2-VL videos at that rate, takes every frame."""
        import av  # everything else here needs numpy alone

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
        if task == "list":
            picked = list(self.rng.choice(len(self.scenes), sentences, replace=False))
            clocks = [f"{self.scenes[i].clock:03d}" for i in picked]
            named = f"{', '.join(clocks[:-1])} and {clocks[-1]}" if sentences > 1 else clocks[0]
            question = ("What can be seen at {}?", "Describe scenes {}.", "Summarize scenes {}.")[style].format(named)
        else:
            picked = list(range(start, start + sentences))
            if task == "follow":
                for i in range(1, sentences):
                    picked[i] = int(self.next[picked[i - 1]])
            ends = [f"{self.scenes[picked[i]].clock:03d}" for i in (0, -1)]
            question = QUESTIONS[task][style].format(*ends)
        answer = " ".join(self.scenes[i].sentence(style) for i in picked)
        return {"task": task, "question": question, "answer": answer}


QUESTIONS = {
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


def make(path: Path, scenes: int, patches: int, seed: int, sentences: int, each: int = 1) -> None:
    """Write an mp4, and beside it a JSON with `each` questions of each task and their answers."""
    video = SignVideo(scenes, patches, seed)
    video.write(path)
    questions = [video.ask(task, sentences) for task in ("range", "list", "follow") for _ in range(each)]
    record = {"scenes": scenes, "visual_tokens": video.visual_tokens, "seed": seed, "questions": questions}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path}: {scenes} scenes, {video.visual_tokens} visual tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--patches", type=int, default=2, help="of two frames, for each scene")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=8, help="of each answer")
    args = parser.parse_args()
    make(args.out, args.scenes, args.patches, args.seed, args.sentences)


if __name__ == "__main__":
    main()
