"""Whatever stands in `--speculative-config`: std takes it as it was given, or says in one sentence what is wrong."""

import json
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import python_args, serve_args

from vllm_std.config import StdConfig

pytestmark = pytest.mark.unit

LIMIT, BLOCK = 1024, 32  # max_model_len of python_args, and a block size that masks of 1024 tokens can be made of
POLICIES = ("verify", "text", "streaming")


def whole(least: int):
    return lambda value: type(value) is int and least <= value <= LIMIT


def number(value, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


# What the README allows each option to be, said again and apart from the code that checks it.
SOUND = {
    "num_speculative_tokens": whole(1),
    "top_k": lambda value: whole(1)(value) or type(value) is float and 0 < value <= 1,
    "top_k_floor": lambda value: value is None or whole(0)(value),
    "selection": lambda value: type(value) is str and value in POLICIES,
    "refresh": whole(1),
    "sink": whole(0),
    "recent": whole(0),
    "adaptive": lambda value: type(value) is bool,
    "calibrate": lambda value: type(value) is bool,
    "draft_sample_method": lambda value: type(value) is str and value in ("probabilistic", "greedy"),
    "rejection_sample_method": lambda value: type(value) is str and value in ("standard", "block", "synthetic"),
    "synthetic_acceptance_rates": lambda value: (
        value is None or type(value) in (list, tuple) and all(number(rate, 0, 1) for rate in value)
    ),
    "synthetic_acceptance_length": lambda value: value is None or number(value, 1, LIMIT + 1),
}
WORDS = ("std", "true", "False", "nan", "5", "0.5", "auto", "-1", "", "a\nb", "\x00", *POLICIES, "greedy", "synthetic")
numbers = st.one_of(
    st.integers(-2, 70), st.integers(), st.sampled_from([1023, 1024, 1025, 2**31, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(), st.floats(0, 1), st.sampled_from([0.25, 1.0, -0.0, 512.0, 1e308]),
)  # fmt: skip
words = st.one_of(st.sampled_from([*WORDS, "ab'\" = " * 1000]), st.text(st.characters(), max_size=20))
simple = st.one_of(st.none(), st.booleans(), numbers, words)
junk = st.recursive(simple, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(words, inner, max_size=3))
rates = st.lists(st.floats(0, 1) | st.booleans() | simple, min_size=1, max_size=6)
other_names = words.filter(lambda name: name.replace("-", "_") != "method")  # of another method std knows nothing
names = st.one_of(*[st.sampled_from(sorted(SOUND))] * 4, other_names)
values = st.one_of(junk, numbers, st.sampled_from(WORDS), rates)
right = st.fixed_dictionaries({}, optional={
    "num_speculative_tokens": st.integers(1, LIMIT),
    "top_k": st.integers(128, LIMIT) | st.floats(0.2, 1.0),
    "selection": st.just("verify"),
    "refresh": st.integers(1, LIMIT),
    "sink": st.integers(0, 32),
    "recent": st.integers(0, 64),
    "adaptive": st.booleans(),
    "calibrate": st.booleans(),
    "draft_sample_method": st.sampled_from(("probabilistic", "greedy")),
    "rejection_sample_method": st.sampled_from(("standard", "block")),
})  # fmt: skip
options = st.builds(dict.__or__, right, st.dictionaries(names, values, max_size=2))
profile = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@cache
def target():
    """The model and parallel configuration that options are checked against."""
    made = python_args(speculative_config={"method": "std"}, block_size=BLOCK).create_engine_config()
    return made.model_config, made.parallel_config


def sound(name: str, value) -> bool:
    return name in SOUND and SOUND[name](value)


def shown(value) -> str:
    """How a message that names a value begins to show it."""
    try:
        return repr(value)[:12]
    except (ValueError, RecursionError):
        return ""


def assert_honoured(config, said: dict) -> None:
    """Every option has exactly the value it was given, and that value makes sense."""
    for name, value in said.items():
        assert sound(name, value), f"{name} is taken silently"
        if name == "synthetic_acceptance_length" and value is not None:  # vLLM turns it into rates
            assert 1 + sum(config.synthetic_acceptance_rates) == pytest.approx(value)
        elif value is not None:
            kept = getattr(config, name)
            assert kept == (list(value) if type(value) is tuple else value)
            assert type(kept) is type(value) or name.startswith("synthetic")


def assert_says_what_is_wrong(error: ValueError, said: dict) -> None:
    """One line of the message is a sentence that names an option and its value, as it was given."""
    lines = [line.removeprefix("  Value error, ").split(" [type=")[0].strip() for line in str(error).split("\n")]
    wrong = {name: value for name, value in said.items() if not sound(name, value)}
    named = [
        line
        for line in lines
        for name, value in (wrong or said).items()
        if line.endswith((".", "'synthetic'.")) and shown(name).strip("'\"") in line and shown(value) in line
    ]
    assert named, str(error)[:500]
    assert all(line.isprintable() and len(line) < 600 for line in named)


def check(make, said: dict) -> None:
    """make() -> a StdConfig, or ValueError and nothing else."""
    said = {name.replace("-", "_"): value for name, value in said.items()}
    try:
        config = make()
    except ValueError as error:
        assert_says_what_is_wrong(error, said)
    else:
        assert_honoured(config, said)


def engine_config(said: dict, **more):
    return python_args(speculative_config=said, block_size=BLOCK, **more).create_engine_config().speculative_config


@settings(profile, max_examples=1500)
@given(options)
def test_options_are_honoured_or_named(said):
    said = {name.replace("-", "_"): value for name, value in said.items()}
    check(lambda: StdConfig.from_options(said, *target()), said)


@settings(profile, max_examples=120)
@given(options)
def test_a_whole_configuration_is_built_or_refused_the_same_way(said):
    check(lambda: engine_config({"method": "std"} | said), said)


HARD = {
    "drafts without end": {"num_speculative_tokens": 10**30},
    "a floor above the context": {"top_k": 0.5, "top_k_floor": 10**9},
    "more rounds than numpy counts": {"refresh": 2**64},
    "a number too long to print": {"sink": 10**5000},
    "a list too deep to print": {"recent": nested(10_000)},
    "the same, of no option": {"verify": nested(10_000)},
    "a truth for a word": {"draft_sample_method": True},
    "a truth for a length": {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": True},
    "words for rates": {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": ["1"] * 5},
    "a length of nothing": {"synthetic_acceptance_length": 2.0},
    "long words": {"a" * 10_000: "b" * 10_000},
    "lines in words": {"a\nb": "a\nb"},
    "half a character": {"\ud800": "\ud800"},
}


@pytest.mark.parametrize("case", HARD)
def test_hard_cases_are_named(case):
    with pytest.raises(ValueError) as error:
        engine_config({"method": "std"} | HARD[case])
    assert_says_what_is_wrong(error.value, HARD[case])


@settings(profile, max_examples=75)
@given(right)
def test_all_that_makes_sense_is_taken(said):
    config = engine_config({"method": "std"} | said)
    assert_honoured(config, said)


@pytest.mark.parametrize("config", [[], [1], "", "std", 0, 5, 0.5, True, False, [["method", "std"]]], ids=repr)
def test_what_is_no_object_is_refused(config):
    with pytest.raises(ValueError, match="speculative-config=.* is not a JSON object"):
        engine_config(config, spec_method="std")
    with pytest.raises(ValueError, match="speculative-config=.* is not a JSON object"):
        arguments = ["--spec-method", "std", "--speculative-config", json.dumps(config)]
        serve_args(*arguments).create_engine_config()


def test_names_that_are_no_words_are_refused():
    for name in (1, None, ("top_k",), 0.5):
        with pytest.raises(ValueError, match="no option"):
            engine_config({"method": "std", name: 512})


def test_an_option_spelt_twice_is_refused():
    with pytest.raises(ValueError, match="top_k is given twice: 512 and 256"):
        engine_config({"method": "std", "top-k": 512, "top_k": 256})


@settings(profile, max_examples=100)
@given(options)
def test_json_on_the_command_line(said):
    """What JSON can hold; its numbers, strings and names come through as they are."""
    said = json.loads(json.dumps(said))
    argv = ["--block-size", str(BLOCK), "--max-model-len", str(LIMIT)]
    argv += ["--speculative-config", json.dumps({"method": "std"} | said)]
    check(lambda: serve_args(*argv).create_engine_config().speculative_config, said)


plain_words = st.text(st.characters(codec="ascii", exclude_characters=".+-=\x00"), min_size=1, max_size=12)
plain_words = plain_words.filter(lambda name: name != "method")


@settings(profile, max_examples=75)
@given(st.dictionaries(st.sampled_from(sorted(SOUND)) | plain_words, simple, min_size=1, max_size=3))
def test_dotted_flags_on_the_command_line(said):
    """--speculative-config.NAME VALUE, where VALUE is JSON if it can be."""
    argv = ["--block-size", str(BLOCK), "--max-model-len", str(LIMIT), "--speculative-config.method", "std"]
    for name, value in said.items():
        argv.append(f"--speculative-config.{name}={json.dumps(value)}")
    check(lambda: serve_args(*argv).create_engine_config().speculative_config, said)


@pytest.mark.parametrize("text", ["{", '{"method": "std"', "{method: std}", "[" * 50, "9" * 5000], ids=lambda t: t[:20])
def test_what_is_no_json_ends_in_one_line_of_usage(text, capsys):
    with pytest.raises(SystemExit) as end:
        serve_args("--speculative-config", text)
    assert end.value.code == 2
    assert "argument --speculative-config" in capsys.readouterr().err.strip().splitlines()[-1]
