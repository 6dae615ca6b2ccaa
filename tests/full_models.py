"""Folders of published models as far as a config goes: full sizes, the real preprocessors' settings, no weights."""

import json
import shutil
from pathlib import Path

import transformers
from tiny_models import CONFIGS, DEMO_MODEL, IMAGE_TOKEN, PREPROCESSORS, SPECIAL, TOKENIZER_FILES, VIDEO_TOKEN

Q7 = dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064)
Q72 = dict(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, vocab_size=152064)
L8 = dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
NO_WINDOW = dict(sliding_window=32768, use_sliding_window=False, max_window_layers=28)  # as Qwen publishes them
Q7, Q72 = Q7 | NO_WINDOW | dict(intermediate_size=18944), Q72 | NO_WINDOW | dict(intermediate_size=29568)
QWEN3 = L8 | dict(num_hidden_layers=36, head_dim=128, intermediate_size=12288, vocab_size=151936)
LLAMA3 = L8 | dict(num_hidden_layers=32, intermediate_size=14336, vocab_size=128256)
VICUNA = L8 | dict(num_hidden_layers=32, num_key_value_heads=32, intermediate_size=11008, vocab_size=32064)
VICUNA |= dict(model_type="llama")
GEMMA = dict(max_position_embeddings=131072, sliding_window=1024, vocab_size=262208, tie_word_embeddings=True)
GEMMA |= dict(num_attention_heads=16, num_key_value_heads=8)
GPT_OSS = dict(hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64, head_dim=64)
GPT_OSS |= dict(num_key_value_heads=8, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4)
GPT_OSS |= dict(sliding_window=128, max_position_embeddings=131072, quantization_config=dict(quant_method="mxfp4"))
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=2.5)
DUAL_CHUNK = dict(chunk_size=262144, local_size=8192, original_max_position_embeddings=262144)

MROPE = dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])
MROPE_3 = dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True)
TOKENS = SPECIAL | dict(image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, vision_start_token_id=675)
TOKENS |= dict(vision_end_token_id=676, image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN)

# name of the file in configs/: (tiny model of that architecture, fields of the text config)
MODELS = {
    "qwen2-vl-7b": ("qwen2_vl", dict(Q7, max_position_embeddings=32768, rope_parameters=MROPE)),
    "qwen2-vl-72b": ("qwen2_vl", dict(Q72, max_position_embeddings=32768, rope_parameters=MROPE)),
    "qwen2.5-vl-7b": ("qwen2_5_vl", dict(Q7, max_position_embeddings=128000, rope_parameters=MROPE)),
    "qwen2.5-vl-72b": ("qwen2_5_vl", dict(Q72, max_position_embeddings=128000, rope_parameters=MROPE)),
    "qwen3-vl-8b": ("qwen3_vl", dict(QWEN3, max_position_embeddings=262144, rope_parameters=MROPE_3)),
    "llava-onevision-7b": ("llava_onevision", dict(Q7, max_position_embeddings=32768, model_type="qwen2")),
    "llava-onevision-72b": ("llava_onevision", dict(Q72, max_position_embeddings=32768, model_type="qwen2")),
    "llava-next-video-7b": ("llava_next_video", VICUNA | dict(max_position_embeddings=4096, rope_parameters=LINEAR)),
    "llama-3.1-8b": ("llama", dict(LLAMA3, max_position_embeddings=131072)),
    "qwen3-8b": ("qwen3", dict(QWEN3, max_position_embeddings=40960)),
    "gpt-oss-20b": ("gpt_oss", GPT_OSS),
    "gemma-3-12b": (
        "gemma3",
        GEMMA | dict(hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, head_dim=256),
    ),
    "gemma-3-27b": (
        "gemma3",
        GEMMA
        | dict(
            hidden_size=5376,
            intermediate_size=21504,
            num_hidden_layers=62,
            head_dim=128,
            num_attention_heads=32,
            num_key_value_heads=16,
            query_pre_attn_scalar=168,
        ),
    ),
    "gemma-4-31b": (
        "gemma4_text",
        GEMMA
        | dict(
            hidden_size=5376,
            intermediate_size=21504,
            num_hidden_layers=60,
            head_dim=256,
            num_attention_heads=32,
            num_key_value_heads=16,
            global_head_dim=512,
            num_global_key_value_heads=4,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            vocab_size=262144,
            max_position_embeddings=262144,
        ),
    ),
    "qwen2.5-7b-1m": ("qwen2", dict(Q7, max_position_embeddings=1010000, dual_chunk_attention_config=DUAL_CHUNK)),
}
# What hf-config-path of configs/ names.
BASES = {"Qwen/Qwen2.5-7B-Instruct": ("qwen2", dict(Q7, max_position_embeddings=32768))}

VISION = {
    "llava_onevision": dict(
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
            num_attention_heads=16, image_size=384, patch_size=14, vision_use_head=False,
        ),
        image_grid_pinpoints=[[384, 384]],
    ),
    "llava_next_video": dict(image_grid_pinpoints=[[336, 336]]),
    "gemma3": dict(
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
            num_attention_heads=16, image_size=896, patch_size=14, vision_use_head=False,
        ),
        mm_tokens_per_image=256,
    ),
}  # fmt: skip
QWEN_PROCESSORS = {"preprocessor_config": dict(image_processor_type="Qwen2VLImageProcessor")}
PROCESSORS = {
    "qwen2_vl": QWEN_PROCESSORS,
    "qwen2_5_vl": QWEN_PROCESSORS,
    "gemma3": PREPROCESSORS["gemma3"]
    | {
        "preprocessor_config": dict(image_processor_type="Gemma3ImageProcessor", size=dict(height=896, width=896)),
        "processor_config": dict(processor_class="Gemma3Processor", image_seq_length=256),
    },
    "qwen3_vl": {
        "preprocessor_config": dict(image_processor_type="Qwen2VLImageProcessor", patch_size=16),
        "video_preprocessor_config": dict(video_processor_type="Qwen3VLVideoProcessor"),
    },
    "llava_onevision": {
        "preprocessor_config": dict(image_processor_type="LlavaOnevisionImageProcessor"),
        "video_preprocessor_config": dict(video_processor_type="LlavaOnevisionVideoProcessor"),
        "processor_config": dict(
            processor_class="LlavaOnevisionProcessor", image_token="<|image_pad|>", video_token="<|video_pad|>",
            num_image_tokens=729, vision_feature_select_strategy="full",
        ),
    },
    "llava_next_video": {
        "preprocessor_config": dict(image_processor_type="LlavaNextImageProcessor"),
        "video_preprocessor_config": dict(video_processor_type="LlavaNextVideoVideoProcessor"),
        "processor_config": dict(
            processor_class="LlavaNextVideoProcessor", image_token="<|image_pad|>", video_token="<|video_pad|>",
            patch_size=14, vision_feature_select_strategy="default",
        ),
    },
}  # fmt: skip


def make(tiny: str, text: dict, folder: Path) -> Path:
    """Write a model of the architecture of a tiny one, with `text` for its text config, to a folder."""
    architecture = CONFIGS[tiny][0]
    fields = dict(TOKENS, text_config=text, **VISION.get(tiny, {})) if tiny in PROCESSORS else dict(SPECIAL, **text)
    config = getattr(transformers, architecture).config_class(architectures=[architecture], **fields)
    config.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(DEMO_MODEL / file, folder)
    for file, content in PROCESSORS.get(tiny, {}).items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder
