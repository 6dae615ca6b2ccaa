"""vllm-std: lossless sparse-to-dense decoding (arXiv 2505.19155) as a vLLM plugin."""

__version__ = "0.1.0"
