"""The ledger: what of vLLM's inside vllm-std replaces or reads, and nothing else does.

Each entry stands as a module constant beside the function that is its patch. This module collects them, for tests: it
imports every module of the package, which a server does not.
"""

from importlib import import_module
from pkgutil import iter_modules

import vllm_std.patches
from vllm_std.patches.wrapping import Patch


def ledger() -> list[Patch]:
    """All entries, by module."""
    names = [found.name for found in iter_modules(vllm_std.patches.__path__)]
    modules = [import_module(f"{vllm_std.patches.__name__}.{name}") for name in names]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Patch)]
