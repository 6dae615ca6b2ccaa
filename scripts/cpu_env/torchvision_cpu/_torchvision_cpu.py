"""Lets a CUDA build of torchvision import beside a CPU build of torch.

Its C library cannot load then, so operators that it only describes (for torch.compile) are unknown and the import
fails. Declaring their schemas first is enough: the transforms that video processors use are plain torch.
"""

import importlib.abc
import sys

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            for op, schema in SCHEMAS.items():
                if torch.version.cuda is None and not hasattr(torch.ops.torchvision, op):
                    torch.library.define(f"torchvision::{op}", schema)
        return None


sys.meta_path.insert(0, DeclareOperators())
