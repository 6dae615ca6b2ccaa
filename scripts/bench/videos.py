"""A folder of generated videos with questions, for `vllm-std acceptance --videos` with the bundled video model.

    python scripts/bench/videos.py --out .cache/videos
    vllm-std acceptance --model vllm_std/tools/demo/tiny-sign-vlm --videos .cache/videos --tokens 400 --engine \\
        '{"max_model_len": 9216, "max_num_batched_tokens": 9216,
          "media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}}}'

vLLM encodes a video in one pass, so max_num_batched_tokens must hold the longest; and without num_frames -1 it takes at
most 768 frames of a video, here 192 scenes or 3,456 visual tokens.
"""

import argparse
from pathlib import Path

from vllm_std.tools.demo.sign_video import write_video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--scenes", type=int, nargs="+", default=[60, 110, 220, 450], help="of each video")
    parser.add_argument("--patches", type=int, default=2, help="of two frames and 9 visual tokens, for each scene")
    parser.add_argument("--sentences", type=int, default=8, help="of each answer")
    parser.add_argument("--questions", type=int, default=2, help="of each task about each video")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for number, scenes in enumerate(args.scenes):
        path = args.out / f"signs-{number}-{scenes}.mp4"
        write_video(path, scenes, args.patches, args.seed + number, args.sentences, args.questions)


if __name__ == "__main__":
    main()
