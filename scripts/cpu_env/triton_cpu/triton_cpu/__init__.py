"""A 'cpu' backend for Triton that only knows the interpreter; needs TRITON_INTERPRET=1 before vLLM is imported."""
