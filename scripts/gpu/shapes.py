"""Configs of models that are measured with dummy weights, by name; all other models are trained."""

DECODER = dict(
    hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=40960,
    initializer_range=0.02, bos_token_id=0, eos_token_id=1, dtype="bfloat16", use_cache=True,
)  # fmt: skip
QWEN2_7B = dict(
    DECODER, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1e6, use_sliding_window=False,
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip
QWEN3_8B = dict(
    DECODER, architectures=["Qwen3ForCausalLM"], model_type="qwen3", rope_theta=1e6, use_sliding_window=False,
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=151936,
)  # fmt: skip
VICUNA_7B = dict(
    DECODER, architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=1e4, hidden_size=4096,
    intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
)  # fmt: skip
SHAPES = {"qwen2-7b": QWEN2_7B, "qwen3-8b": QWEN3_8B, "vicuna-7b": VICUNA_7B}
# What a tiny model has in place of any of them.
TINY = dict(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=704, head_dim=32,
)  # fmt: skip
