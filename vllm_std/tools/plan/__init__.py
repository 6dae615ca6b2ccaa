"""`vllm-std plan`: what std would gain with a model, a GPU and a load, before any of them is started."""
