"""`vllm-std check`: whether std would start here, told without starting an engine or loading weights."""
