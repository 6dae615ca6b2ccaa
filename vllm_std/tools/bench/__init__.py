"""`vllm-std bench`: plain vLLM and std side by side on the user's own prompts, by vLLM's own benchmark."""
