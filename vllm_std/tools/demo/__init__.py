"""`vllm-std demo`, the small video model that it serves unless told otherwise, and the videos that model reads."""

from pathlib import Path

MODEL = str(Path(__file__).parent / "tiny-sign-vlm")
