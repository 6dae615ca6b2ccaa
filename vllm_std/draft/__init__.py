"""Drafting: the speculator that vLLM calls, and what it prepares before the first draft."""
