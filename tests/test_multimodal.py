"""Videos and images as chats have them: several in a prompt, and again in every turn."""

import numpy as np
import pytest
from helpers import SIGN_MODEL, Acceptance, greedy, std
from PIL import Image
from tiny_models import FRAME, SUPPORTED_VIDEO, noise_video, video_prompt
from vllm import SamplingParams

from vllm_std.tools.demo.sign_video import SignVideo

pytestmark = pytest.mark.engine

VIDEO, IMAGE = "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (FRAME, FRAME, 3), dtype=np.uint8))


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def video(frames: int, seed: int) -> tuple:
    return video_prompt("qwen2_vl", noise_video(frames, seed))["multi_modal_data"]["video"][0]


def conversation(llm) -> list[list[int]]:
    """Token ids of each answer: a video, an image, then two more videos, each turn with all that was said before."""
    said, media, answers = "", {"video": [], "image": []}, []
    for question, new in (
        (VIDEO + "What happens?", {"video": [video(12, 0)]}),
        (IMAGE + "Is this from the video?", {"image": [noise_image(1)]}),
        (VIDEO + " or " + VIDEO + "?", {"video": [video(8, 2), video(16, 3)]}),
    ):
        said += turn("user", question)
        media = {kind: [*media[kind], *new.get(kind, [])] for kind in media}
        prompt = {"prompt": said + "<|im_start|>assistant\n", "multi_modal_data": {k: v for k, v in media.items() if v}}
        (answer,) = greedy(llm, [prompt], 24)
        answers.append(answer)
        said += turn("assistant", llm.get_tokenizer().decode([token for token in answer if token < 600]))
    return answers


@pytest.fixture(scope="module")
def expected(engines, models):
    return conversation(engines(models("qwen2_vl"), None))


@pytest.mark.supports("chat over several turns with images and videos", "several videos in one prompt")
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 128}, {"enable_prefix_caching": False}], ids=str)
def test_a_chat_with_videos_and_images(engines, models, expected, options):
    """From the prefix cache, chunk by chunk, and computed anew in each turn."""
    llm = engines(models("qwen2_vl"), std(), **options)
    with Acceptance(llm) as seen:
        assert conversation(llm) == expected
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.supports("videos of one frame")
@pytest.mark.parametrize("name", [name for name in SUPPORTED_VIDEO if name != "qwen3_vl"])
def test_a_video_of_one_frame(engines, plain, models, name):
    """Qwen3-VL's processor, which is transformers', refuses it with any vLLM: it takes two frames and more."""
    prompts = [video_prompt(name, noise_video(1, seed)) for seed in range(2)]
    expected = plain(models(name), prompts, 24)
    assert expected[0] != expected[1], "the frame is seen"
    llm = engines(models(name), std())
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts, 24) == expected
    assert seen.accepted > 0


@pytest.mark.supports("several videos in one prompt")
def test_an_image_between_two_videos(engines, plain, models):
    """One of the videos has a single frame; beside a prompt whose videos are the other way round."""
    prompts = [
        {
            "prompt": turn("user", VIDEO + IMAGE + VIDEO + "Which is it?") + "<|im_start|>assistant\n",
            "multi_modal_data": {"video": [video(n, seed) for n, seed in shown], "image": [noise_image(7)]},
        }
        for shown in (((12, 4), (1, 5)), ((1, 5), (12, 4)))
    ]
    expected = plain(models("qwen2_vl"), prompts, 24)
    llm = engines(models("qwen2_vl"), std())
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts, 24) == expected
    assert expected[0] != expected[1] and 0 < seen.accepted < seen.drafted


@pytest.mark.supports("several videos in one prompt")
def test_questions_about_two_videos_at_once(engines):
    """The bundled model, through vLLM's chat template; each answer needs scenes of one of the videos."""
    videos = [SignVideo(scenes=20, seed=seed) for seed in (3, 4)]
    asked = [each.ask("list", sentences=3) for each in videos]
    single = [each.prompt(question["question"]) for each, question in zip(videos, asked)]
    both = [
        single[0] | {
            "prompt": single[i]["prompt"].replace("<|vision_start|><|video_pad|><|vision_end|>", VIDEO * 2),
            "multi_modal_data": {"video": [p["multi_modal_data"]["video"][0] for p in single]},
        }
        for i in range(2)
    ]  # fmt: skip
    room = dict(max_model_len=2048, max_num_batched_tokens=2048)
    params = SamplingParams(temperature=0, max_tokens=110)
    told = [
        [
            out.outputs[0].text
            for out in engines(SIGN_MODEL, config, **room).generate(both + single, params, use_tqdm=False)
        ]
        for config in (None, std(top_k=160, num_speculative_tokens=5))
    ]
    assert told[0] == told[1]
    assert told[1][2:] == [question["answer"] for question in asked]
