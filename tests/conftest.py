"""The environment, the tiers and the fixtures of the tests; helpers.py has the engines."""

import os
import shutil

# Before vLLM is imported: the engine in this process, quiet, offline; without a GPU, Triton's interpreter.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1"
)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import support  # noqa: E402
from helpers import MODELS, Engines, greedy  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--support", metavar="FILE", help="write what the tests show to be supported to a JSON file")


def look_for_overflow(yes: bool) -> None:
    """Triton's interpreter takes a third longer when it looks for overflow; compiled kernels do not look at all."""
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=yes)


MARKERS = (
    "unit: no engine and no server; all of them take less than two minutes",
    "engine: engines of tiny models in this process; what has no tier has servers, trained models or installations",
    "versions: run on each supported version of vLLM, because it touches what may differ",
    "supports(feature, ...): what of vLLM the test shows std to work with; docs/compatibility.md counts them",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if os.environ.get("TRITON_INTERPRET") == "1":
        look_for_overflow(False)
    path = config.getoption("--support")
    if path and not hasattr(config, "workerinput"):  # where pytest-xdist has workers, what they report arrives here
        config.pluginmanager.register(support.Support(path))


# Files of more than two minutes, the longest first; with two workers, what is left for the end is short.
LONG = (
    "test_demo", "test_load", "test_kernels", "test_server", "test_bench", "test_protocols", "test_gpu_day",
    "test_distribution", "test_graphs", "test_triton_attention", "test_acceptance",
)  # fmt: skip


def place(path) -> int:
    return LONG.index(path.stem) if path.stem in LONG else len(LONG)


def cost(item) -> int:
    """Rank of an item's tier: 0 for servers, trained models and installations, 1 for engines, 2 for unit tests."""
    tiers = [name in item.keywords for name in ("engine", "unit")]
    return 1 + tiers.index(True) if any(tiers) else 0


def pytest_collection_modifyitems(items):
    """Files whose tests may take long come first, so that no worker is left with one of them at the end."""
    support.mark(items)
    of_file = {}
    for item in items:
        of_file[item.path] = min(cost(item), of_file.get(item.path, 2))
    items.sort(key=lambda item: (place(item.path), of_file[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """vLLM's fp8 cache needs what not every x86 CPU has."""
    try:
        return (yield)
    except (NotImplementedError, ValueError) as error:
        if "requires x86 with AVX-512" in str(error) or "by the CPU attention backend on this host" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def environment():
    """An engine that starts here makes vLLM keep the environment as it is then; a later test may set another."""
    from vllm import envs

    envs.disable_envs_cache()


@pytest.fixture(params=["interpret", "torch", "native"])
def way(request, monkeypatch):
    """Selection by its Triton kernels (interpreted on CPU), and by what stands in for them there."""
    monkeypatch.setattr("vllm_std.selection.keys.ON_CPU", request.param)
    look_for_overflow(request.param == "interpret")
    yield request.param
    look_for_overflow(False)


@pytest.fixture(scope="session")
def engines():
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture(scope="session")
def models():
    """models(name): folder of a tiny model with random weights (see tiny_models.py)."""
    from tiny_models import make

    MODELS.mkdir(parents=True, exist_ok=True)
    return lambda name: make(name, MODELS)


@pytest.fixture(scope="session")
def plain(engines):
    """plain(model, prompts, max_tokens, **engine options): greedy tokens of vLLM without std, computed once."""
    known = {}

    def tokens(model, prompts, max_tokens=32, params=None, **options):
        key = repr((model, prompts, max_tokens, params, sorted(options.items())))
        if key not in known:
            known[key] = greedy(engines(model, None, **options), prompts, max_tokens, **(params or {}))
        return known[key]

    return tokens
