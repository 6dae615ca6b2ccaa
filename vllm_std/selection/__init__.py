"""Selection: which KV blocks a draft step attends to. `selector` shows the flow, `policies` who decides.

Imports nothing by itself, so that `reads` costs no more than it needs.
"""
