"""Triton kernels of Model Runner V2 as native code for a CPU: numba where there is a loop, torch or numpy where one
operator says it.

`launch` decides for each launch; the other modules hold the replacements, by what they are for. A kernel without one,
or with arguments that its replacement does not know, runs in Triton's interpreter.
"""
