"""Triton's view of the CPU as a device: one of them, always active."""

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):
    def __init__(self):
        pass

    @classmethod
    def is_active(cls):
        return not torch.cuda.is_available()

    def get_current_target(self):
        return GPUTarget("cpu", 0, 0)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_benchmarker(self):
        raise NotImplementedError("the interpreter has nothing to benchmark")

    def launch(self, *args, **kwargs):
        raise NotImplementedError("the interpreter launches nothing")
