"""LoRA adapters with random weights for the models of tiny_models.py, as PEFT saves them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK, SCALE = 8, 0.6
LAYERS = {  # name: (in, out) of tiny_models.DECODER
    "self_attn.q_proj": (128, 128), "self_attn.k_proj": (128, 64), "self_attn.v_proj": (128, 64),
    "self_attn.o_proj": (128, 128), "mlp.gate_proj": (128, 256), "mlp.up_proj": (128, 256), "mlp.down_proj": (256, 128),
}  # fmt: skip


def make_adapter(folder: Path, seed: int, prefix: str = "base_model.model.model.") -> Path:
    """An adapter of all linear layers that changes what the model says; prefix: of its decoder's weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(2):
        for name, (inputs, outputs) in LAYERS.items():
            at = f"{prefix}layers.{layer}.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) * SCALE / inputs**0.5
            weights[f"{at}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * SCALE
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": sorted(name.split(".")[1] for name in LAYERS), "base_model_name_or_path": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
