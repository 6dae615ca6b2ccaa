"""The acceptance lab: which share of drafted tokens the target accepts, by policy, K, draft length and task.

prompts -> grid of cells -> run (one real engine, switched between cells) -> records.jsonl -> report and plots
"""
