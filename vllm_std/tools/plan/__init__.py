"""`vllm-std plan`: whether std is faster with a model, a GPU and a load, by data sheet, and what limits it."""
