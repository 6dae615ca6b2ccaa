"""Tiny Hugging Face models with random weights, written to disk: what std runs with, and what it must refuse.

    folder = make("qwen2_vl", root)                              # for LLM(model=str(folder), dtype="float32", ...)
    prompt = video_prompt("qwen2_vl", noise_video(48, seed=0))   # for LLM.generate

All of them have the tokenizer of the bundled demo model. Weights are larger than any training starts from, so that
greedy output wanders instead of repeating one token; token embeddings are larger still, so that a token depends more
on the last one than on the rest of the context, and a draft that sees a part of that is right now and then. Which
part hardly matters: attention of random weights has no favourites, so these models do not rank selection policies.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

SUPPORTED_TEXT = ("llama", "qwen2", "qwen3")
MORE_TEXT = ("gpt2", "opt", "phi3", "granite", "gpt_neox", "glm4")
EXPERTS = ("qwen3_moe", "mixtral")
WINDOWED_IMAGES = ("gemma3",)
SUPPORTED_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video")
WINDOWED = ("gemma3_text", "gemma2", "gpt_oss", "gemma4_text", "ministral", "exaone4")
REFUSED = (
    "mistral_sliding",
    "llama4_text",
    "qwen3_next",
    "deepseek_v3",
    "mamba2",
    "jamba",
    "whisper",
    "bloom",
    "falcon_alibi",
)

DEMO_MODEL = Path(__file__).parents[1] / "vllm_std/tools/demo/tiny-sign-vlm"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VOCAB = 704
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 678, 679, 675, 676
FRAME = 112  # pixels; 16 visual tokens for every two frames in Qwen2-VL and Qwen2.5-VL
LLAVA_FRAME = 84  # LLaVA-OneVision resizes to this: 9 visual tokens for every frame, and one at the end
NEXT_FRAME = 224  # LLaVA-NeXT-Video: 64 visual tokens for every frame; vLLM divides by zero below 196

SPECIAL = dict(bos_token_id=666, eos_token_id=668, pad_token_id=666)
DECODER = dict(
    num_hidden_layers=2, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=VOCAB, max_position_embeddings=4096, initializer_range=0.2, tie_word_embeddings=False, **SPECIAL,
)  # fmt: skip
WINDOWS = dict(
    DECODER, num_hidden_layers=3, sliding_window=64,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
)  # fmt: skip
TURNS = dict(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
HEADS = dict(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, vocab_size=VOCAB, **SPECIAL)
EMBEDDING_SCALE = 50
VISION = dict(initializer_range=0.1, patch_size=14)
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 6, 6])
QWEN_VL = dict(
    text_config=dict(DECODER, rope_parameters=MROPE), image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN,
    vision_start_token_id=675, vision_end_token_id=676, tie_word_embeddings=False, **SPECIAL,
)  # fmt: skip

# name: (model class of transformers, fields of its config)
CONFIGS = {
    "llama": ("LlamaForCausalLM", DECODER),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", dict(DECODER, head_dim=64)),
    "gpt2": (
        "GPT2LMHeadModel",
        dict(
            n_layer=2, n_embd=128, n_head=4, n_positions=4096, vocab_size=VOCAB, initializer_range=0.2,
            tie_word_embeddings=False, **SPECIAL,
        ),
    ),
    "opt": (
        "OPTForCausalLM",
        dict(HEADS, ffn_dim=256, max_position_embeddings=4096, init_std=0.2, tie_word_embeddings=False),
    ),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "granite": (
        "GraniteForCausalLM",
        dict(
            DECODER, attention_multiplier=0.1, embedding_multiplier=0.5, residual_multiplier=0.8, logits_scaling=2.0
        ),
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        dict(HEADS, intermediate_size=256, max_position_embeddings=4096, initializer_range=0.2),
    ),
    "glm4": ("Glm4ForCausalLM", dict(DECODER, head_dim=32)),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        dict(DECODER, head_dim=32, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2),
    ),
    "mixtral": ("MixtralForCausalLM", dict(DECODER, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        dict(QWEN_VL, vision_config=dict(VISION, depth=2, embed_dim=64, hidden_size=128, num_heads=2)),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        dict(
            QWEN_VL,
            vision_config=dict(
                VISION, depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=128,
                window_size=56, fullatt_block_indexes=[1],
            ),
        ),
    ),
    "llava_onevision": (
        "LlavaOnevisionForConditionalGeneration",
        dict(
            text_config=dict(DECODER, model_type="qwen2"),
            vision_config=dict(
                VISION, model_type="siglip_vision_model", num_hidden_layers=2, hidden_size=64, intermediate_size=128,
                num_attention_heads=2, image_size=LLAVA_FRAME, vision_use_head=False,
            ),
            image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN, tie_word_embeddings=False,
            image_grid_pinpoints=[[LLAVA_FRAME, LLAVA_FRAME]],
        ),
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        dict(
            QWEN_VL,
            text_config=dict(
                DECODER, num_hidden_layers=3, head_dim=32,
                rope_parameters=dict(MROPE, mrope_section=[6, 5, 5], mrope_interleaved=True),
            ),
            vision_config=dict(
                VISION, depth=3, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=128,
                num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
            ),
        ),
    ),
    "llava_next_video": (
        "LlavaNextVideoForConditionalGeneration",
        dict(
            text_config=dict(DECODER, model_type="llama"),
            vision_config=dict(
                VISION, model_type="clip_vision_model", num_hidden_layers=2, hidden_size=64, intermediate_size=128,
                num_attention_heads=2, image_size=NEXT_FRAME, projection_dim=64,
            ),
            image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN, tie_word_embeddings=False,
            image_grid_pinpoints=[[NEXT_FRAME, NEXT_FRAME]],
        ),
    ),
    "mistral_sliding": ("MistralForCausalLM", dict(DECODER, sliding_window=64)),
    "gemma3_text": ("Gemma3ForCausalLM", dict(WINDOWS, head_dim=32, query_pre_attn_scalar=32)),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        dict(
            text_config=dict(WINDOWS, head_dim=32, query_pre_attn_scalar=32), mm_tokens_per_image=16,
            vision_config=dict(
                VISION, model_type="siglip_vision_model", num_hidden_layers=2, hidden_size=64, intermediate_size=128,
                num_attention_heads=2, image_size=FRAME, vision_use_head=False,
            ),
            boi_token_index=VISION_START, eoi_token_index=VISION_END, image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=False, **SPECIAL,
        ),
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(WINDOWS | TURNS, head_dim=32, query_pre_attn_scalar=32, tie_word_embeddings=True),
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        dict(WINDOWS | TURNS, head_dim=64, num_local_experts=4, num_experts_per_tok=2),
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        dict(WINDOWS, head_dim=32, global_head_dim=64, num_global_key_value_heads=1, hidden_size_per_layer_input=0),
    ),
    "ministral": ("MinistralForCausalLM", dict(WINDOWS, head_dim=32)),
    "exaone4": ("Exaone4ForCausalLM", dict(WINDOWS, head_dim=32)),
    "llama4_text": ("Llama4ForCausalLM", dict(DECODER, num_hidden_layers=4, num_local_experts=2)),
    "qwen3_next": ("Qwen3NextForCausalLM", dict(DECODER, num_hidden_layers=4, num_experts=2, num_experts_per_tok=1)),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        dict(
            DECODER, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=32,
            qk_rope_head_dim=32, v_head_dim=32, first_k_dense_replace=2,
        ),
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        dict(
            num_hidden_layers=2, hidden_size=128, vocab_size=VOCAB, num_heads=8, head_dim=32, state_size=16,
            n_groups=1, **SPECIAL,
        ),
    ),
    "jamba": ("JambaForCausalLM", dict(DECODER, num_experts=1, attn_layer_period=2, attn_layer_offset=1)),
    "bloom": ("BloomForCausalLM", dict(n_layer=2, hidden_size=128, n_head=4, vocab_size=VOCAB, **SPECIAL)),
    "falcon_alibi": (
        "FalconForCausalLM",
        dict(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, vocab_size=VOCAB, alibi=True, **SPECIAL),
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        dict(
            vocab_size=VOCAB, d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, decoder_start_token_id=666, **SPECIAL,
        ),
    ),
}  # fmt: skip

QWEN_SIZE = dict(size=dict(shortest_edge=28 * 28, longest_edge=FRAME * FRAME))
LLAVA_SIZE = dict(size=dict(height=LLAVA_FRAME, width=LLAVA_FRAME))
NEXT_SIZE = dict(size=dict(shortest_edge=NEXT_FRAME), crop_size=dict(height=NEXT_FRAME, width=NEXT_FRAME))
PREPROCESSORS = {
    "qwen2_vl": {
        "preprocessor_config": dict(QWEN_SIZE, image_processor_type="Qwen2VLImageProcessor"),
        "video_preprocessor_config": dict(
            QWEN_SIZE, video_processor_type="Qwen2VLVideoProcessor", cap_pixels_per_frame=False
        ),
    },
    "llava_onevision": {
        "preprocessor_config": dict(
            LLAVA_SIZE, image_processor_type="LlavaOnevisionImageProcessor",
            image_grid_pinpoints=[[LLAVA_FRAME, LLAVA_FRAME]],
        ),
        "video_preprocessor_config": dict(LLAVA_SIZE, video_processor_type="LlavaOnevisionVideoProcessor"),
        "processor_config": dict(
            processor_class="LlavaOnevisionProcessor", image_token="<|image_pad|>", video_token="<|video_pad|>",
            num_image_tokens=(LLAVA_FRAME // 14) ** 2, vision_feature_select_strategy="full",
        ),
    },
    "qwen3_vl": {
        "preprocessor_config": dict(QWEN_SIZE, image_processor_type="Qwen2VLImageProcessor"),
        "video_preprocessor_config": dict(
            size=dict(shortest_edge=28 * 28, longest_edge=FRAME * FRAME * 64),  # of a whole video
            video_processor_type="Qwen3VLVideoProcessor", patch_size=14, temporal_patch_size=2, merge_size=2,
        ),
    },
    "llava_next_video": {
        "preprocessor_config": dict(
            NEXT_SIZE, image_processor_type="LlavaNextImageProcessor", image_grid_pinpoints=[[NEXT_FRAME, NEXT_FRAME]]
        ),
        "video_preprocessor_config": dict(NEXT_SIZE, video_processor_type="LlavaNextVideoVideoProcessor"),
        "processor_config": dict(
            processor_class="LlavaNextVideoProcessor", image_token="<|image_pad|>", video_token="<|video_pad|>",
            patch_size=14, vision_feature_select_strategy="default",
        ),
    },
}  # fmt: skip
NEWLINES = [
    dict(id=699 + n, content="\n" * n, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    for n in range(1, 5)
]  # vLLM looks for them in Gemma-3's vocabulary
TOKENIZER = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
GEMMA_TOKENS = dict(image_token="<|image_pad|>", boi_token="<|vision_start|>", eoi_token="<|vision_end|>")
PREPROCESSORS["gemma3"] = {
    "preprocessor_config": dict(
        image_processor_type="Gemma3ImageProcessor", size=dict(height=FRAME, width=FRAME), do_pan_and_scan=False
    ),
    "processor_config": dict(processor_class="Gemma3Processor", image_seq_length=16),
    "tokenizer_config": json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())
    | dict(extra_special_tokens=GEMMA_TOKENS),
    "tokenizer": TOKENIZER | dict(added_tokens=TOKENIZER["added_tokens"] + NEWLINES),
}
PREPROCESSORS["qwen2_5_vl"] = PREPROCESSORS["qwen2_vl"]


def make(name: str, root: Path) -> Path:
    """The folder of a model of one of the tuples above, below `root`; written if it is not there yet.

    A model of REFUSED has a config and a tokenizer, and no weights.
    """
    folder = Path(root) / name
    if folder.is_dir():
        return folder
    Path(root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as made:
        _write(name, Path(made) / name)
        (Path(made) / name).rename(folder)  # so that a folder that is there is complete
    return folder


W8A8 = {  # of each linear layer: whole numbers by row, activations by token as they come
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": dict(num_bits=8, type="int", strategy="channel", symmetric=True, dynamic=False),
            "input_activations": dict(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True),
        }
    },
}  # fmt: skip


def _quantise(folder: Path) -> None:
    """Turn the weights of a model into 8-bit ones, as compressed-tensors stores them."""
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "_proj." in name]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[name.replace("weight", "weight_scale")] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": W8A8}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _write(name: str, folder: Path) -> None:
    if name.endswith("_w8a8"):
        _write(name.removesuffix("_w8a8"), folder)
        return _quantise(folder)
    architecture, fields = CONFIGS[name]
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(architectures=[architecture], **fields)
    if name in REFUSED:
        config.save_pretrained(folder)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(config)
        tied = config.get_text_config().tie_word_embeddings  # then a token's own logit would be the highest
        model.get_input_embeddings().weight.data.mul_(1 / 5 if tied else EMBEDDING_SCALE)
        model.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        # Transformers 5 has dropped a level from SigLIP's names that checkpoints, and vLLM, still have.
        weights = {key.replace("vision_tower.", "vision_tower.vision_model."): w for key, w in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file in TOKENIZER_FILES:
        shutil.copy(DEMO_MODEL / file, folder)
    for file, content in PREPROCESSORS.get(name, {}).items():
        (folder / f"{file}.json").write_text(json.dumps(content, indent=2))


def noise_video(num_frames: int, seed: int) -> np.ndarray:
    """[num_frames, FRAME, FRAME, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, FRAME, FRAME, 3), dtype=np.uint8)


def image_prompt(name: str, image: np.ndarray) -> dict:
    """A vLLM prompt for a model of WINDOWED_IMAGES: one image, [height, width, 3] uint8, and a question."""
    return {
        "prompt": "<|im_start|>user\n<|vision_start|>What is to be seen?<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"image": Image.fromarray(image)},
    }


def video_prompt(name: str, frames: np.ndarray) -> dict:
    """A vLLM prompt for a model of SUPPORTED_VIDEO: one video, all its frames, and a question.

    frames: [frames, height, width, 3] uint8, taken to be two a second. LLaVA-OneVision needs as many frames in all
    videos that are encoded together: vLLM 0.32 fails otherwise, whatever drafts.
    """
    metadata = {
        "fps": 2.0,
        "duration": len(frames) / 2,
        "total_num_frames": len(frames),
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    video = "<|video_pad|>" if name.startswith("llava") else "<|vision_start|><|video_pad|><|vision_end|>"
    return {
        "prompt": f"<|im_start|>user\n{video}What happens in the video?<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"video": [(frames, metadata)]},
    }
