"""The command line `vllm-std` and what it runs; nothing that serves imports this package."""
