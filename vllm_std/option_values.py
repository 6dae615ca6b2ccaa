"""Which values the options of std may have; each check returns the value, or raises ValueError naming the option."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationInfo

LEAST = {"sink": 0, "recent": 0, "top_k_floor": 0, "proposals": 0}  # of options that are whole numbers; of the others 1
N_GRAM = 1, 3  # least and most tokens of an n-gram, where not given
STATIC_POLICIES = ("text", "streaming")  # which do not score in each round, so that refresh does not apply to them
LOOKUP_OPTIONS = ("proposals", "prompt_lookup_min", "prompt_lookup_max")
SYNTHETIC_OPTIONS = ("synthetic_acceptance_rates", "synthetic_acceptance_length")  # of rejection sampling `synthetic`
LONGEST_SHOWN = 80  # characters of a value in an error message


def shown(value: Any) -> str:
    """A value as error messages show it: on one line, and short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an endless number; a list in a list in a list ...
        return f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:40]}...{text[-20:]}"


def bare(name: Any) -> str:
    """The name of an option that is not one, as error messages show it."""
    return shown(name).strip("'\"")


def tokens_or_share(value: Any) -> int | float:
    is_tokens = type(value) is int and value >= 1
    is_share = type(value) is float and 0 < value <= 1
    if not (is_tokens or is_share):
        works = "a whole number of tokens >= 1 nor a share, 0 < top_k <= 1.0"
        raise ValueError(f"top_k={shown(value)} is neither {works}.")
    return value


def whole_number(value: Any, info: ValidationInfo) -> int | None:
    option = str(info.field_name)
    if value is None and option in ("top_k_floor", "prompt_lookup_min", "prompt_lookup_max"):
        return None
    least = LEAST.get(option, 1)
    if type(value) is not int or value < least:
        unit = "rounds" if option == "refresh" else "tokens"
        raise ValueError(f"{option}={shown(value)} is not a whole number of {unit} >= {least}.")
    return value


def switch(value: Any, info: ValidationInfo) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{info.field_name}={shown(value)} is neither true nor false.")
    return value


def one_of(known: tuple[str, ...]) -> Callable[[Any, ValidationInfo], str]:
    """The check of an option that is one of some names."""

    def check(value: Any, info: ValidationInfo) -> str:
        if value not in known:
            raise ValueError(f"{info.field_name}={shown(value)} is not known; use one of {', '.join(known)}.")
        return value

    return check


def rates_by_position(value: Any, info: ValidationInfo) -> list[float] | None:
    length = info.data.get("num_speculative_tokens")
    shares = type(value) in (list, tuple) and all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in value)
    if value is not None and not (shares and length in (None, len(value))):
        raise ValueError(f"synthetic_acceptance_rates={shown(value)} is not a list of {length} numbers, 0 to 1.")
    return value


def mean_length(value: Any, info: ValidationInfo) -> float | None:
    most = info.data.get("num_speculative_tokens", 0) + 1
    if value is not None and not (type(value) in (int, float) and 1 <= value <= most):
        raise ValueError(
            f"synthetic_acceptance_length={shown(value)} is not a number from 1 to num_speculative_tokens + 1."
        )
    return value


def ngram_lengths(least: int | None, most: int | None) -> tuple[int, int]:
    """Least and most tokens of an n-gram; None: not given. Raises ValueError where the least is more than the most."""
    longest = max(N_GRAM[1], least or 1) if most is None else most
    shortest = min(N_GRAM[0], longest) if least is None else least
    if shortest > longest:
        raise ValueError(
            f"prompt_lookup_min={shortest} is more than prompt_lookup_max={longest}; "
            f"use prompt_lookup_min <= {longest}."
        )
    return shortest, longest


def at_most(option: str, value: int | float | None, max_model_len: int) -> None:
    if value is not None and value > max_model_len:
        raise ValueError(
            f"{option}={shown(value)} is more than max_model_len={max_model_len}; use at most {max_model_len}."
        )


def known(given: dict[str, Any], options: tuple[str, ...]) -> None:
    """Raise ValueError for an option that std does not have."""
    unknown = sorted(set(given) - {"method", *options})
    if unknown:
        raise ValueError(
            f"speculative method 'std' has no option {bare(unknown[0])}={shown(given[unknown[0]])}; "
            f"it has {', '.join(options)}."
        )


def refuse_pointless(options: Any) -> None:
    """Raise ValueError for an option that does nothing with the others; options: a StdConfig."""
    if not isinstance(options.top_k, float):
        _refuse_given("top_k_floor", options.top_k_floor, "give top_k as a share of the context, such as 0.05")
    if not options.proposals:
        for option in LOOKUP_OPTIONS[1:]:
            _refuse_given(option, getattr(options, option), "give proposals, such as 3")
    if options.selection in STATIC_POLICIES and options.refresh != 1:
        _refuse_given("refresh", options.refresh, "use selection verify")
    if options.rejection_sample_method != "synthetic":
        for option in SYNTHETIC_OPTIONS:
            _refuse_given(option, getattr(options, option), "use rejection_sample_method synthetic")


def _refuse_given(option: str, value: Any, works: str) -> None:
    """Raise ValueError for an option that was given; works: what it has an effect with."""
    if value is not None:
        raise ValueError(f"{option}={shown(value)} has no effect with these options: {works}.")
