"""Triton asks a backend for a compiler; in the interpreter nothing is ever compiled."""

from triton.backends.compiler import BaseBackend

NEEDED = "this environment runs Triton kernels in the interpreter: set TRITON_INTERPRET=1"


class CPUBackend(BaseBackend):
    @staticmethod
    def supports_target(target):
        return target.backend == "cpu"

    def hash(self):
        return "interpreter"

    def parse_options(self, options):
        raise NotImplementedError(NEEDED)

    def add_stages(self, *args, **kwargs):
        raise NotImplementedError(NEEDED)

    def load_dialects(self, context):
        pass

    def get_module_map(self):
        return {}

    def get_codegen_implementation(self, *args):
        return {}

    def pack_metadata(self, metadata):
        return ()
