"""The draft length is chosen so that nothing is slower than plain decoding, and little slower than the best length.

Times are simulated (scripts/bench/simulate.py): a cost model in part measured on an H100, a table wrong by up to 15 %.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts/bench"))

from simulate import LENGTHS, TRACES, Trace, adaptive, fixed, make, server, together  # noqa: E402

from vllm_std.control import (  # noqa: E402
    AcceptanceEstimator,
    Choice,
    Controller,
    CostModel,
    FixedLength,
    Point,
    cost_file,
    fit,
)

pytestmark = pytest.mark.unit

SEEDS = range(3)
K32 = 32768


@cache
def runs(name: str, seed: int):
    """(runs at each fixed length, run of the controller)"""
    trace = make(name, seed)
    return fixed(trace), adaptive(trace, seed)


def uniform(batch: int, rate: float, tokens: int, kv_bytes: float, seed: int) -> Trace:
    """Requests of 32K whose drafts are all accepted with the same probability."""
    arrival, context, wanted = together(batch, tokens)
    rates = np.full((batch, tokens, max(LENGTHS)), rate)
    draws = np.random.default_rng(seed).random((batch, tokens + max(LENGTHS)))
    return Trace(server(kv_bytes), arrival, context, wanted, rates, draws)


def drive(controller: Controller, requests: list[str], accepts: Callable[[str, int], int], steps: int, out=(), kv=None):
    """The choices for so many steps, each told one step late; accepts: drafts of a request, of so many."""
    kv, choices, late = kv or K32 * len(requests), [], []
    for _ in range(steps):
        choice = controller.choose(requests, kv, out)
        for request, drafted, accepted in late:
            controller.observe(request, drafted, accepted)
        drafting = [request for request in requests if choice.length and request not in out]
        late = [(request, choice.length, accepts(request, choice.length)) for request in drafting]
        seconds = controller.costs.tabulated(choice.length, len(requests), kv)
        if choices and choices[-1].length == choice.length:
            controller.measured(choice.length, len(requests), kv, seconds, mixed=len(drafting) < len(requests))
        choices.append(choice)
    return choices


def everything(request: str, drafted: int) -> int:
    return drafted


def nothing(request: str, drafted: int) -> int:
    return 0


# ------------------------------------------------------------ never slower


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TRACES)
def test_no_trace_takes_longer_than_plain_decoding_by_more_than_a_hundredth(name, seed):
    plain, chosen = runs(name, seed)[0][0], runs(name, seed)[1]
    assert chosen.seconds < 1.01 * plain.seconds


@pytest.mark.parametrize("name", TRACES)
def test_the_best_fixed_length_in_hindsight_is_not_missed_by_more_than_three_hundredths(name):
    """In the mean; where one request alone has to tell what pays, chance may cost a little more."""
    missed = [
        chosen.seconds / min(run.seconds for run in fixed.values()) for fixed, chosen in map(partial(runs, name), SEEDS)
    ]
    assert np.mean(missed) < 1.03 and max(missed) < 1.05


@pytest.mark.parametrize("seed", SEEDS)
def test_a_single_long_request_is_never_slowed(seed):
    of_length, chosen = runs("one long request", seed)
    assert chosen.seconds < 1.005 * of_length[0].seconds


@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=3)), ids=str)
@pytest.mark.parametrize("name", ["burst of 64 short requests", "nothing is accepted, briefly"])
def test_a_table_as_wrong_as_it_may_be_slows_nothing(name, signs):
    trace = make(name, seed=7)
    base_and_kv, draft, select = signs
    chosen = adaptive(trace, 7, 1 + 0.15 * np.array([base_and_kv, base_and_kv, draft, select, select]))
    assert chosen.seconds < 1.01 * fixed(trace)[0].seconds


def test_what_explorations_lose_stays_below_a_hundredth_of_the_time():
    for name in ("nothing is accepted", "nothing is accepted, KV 8x"):
        chosen = runs(name, 0)[1]
        assert 0 < sum(length > 0 for length in chosen.lengths) < 0.02 * len(chosen.lengths)
        assert chosen.seconds < 1.007 * runs(name, 0)[0][0].seconds


@pytest.mark.parametrize("kv_bytes", [1, 8])
def test_before_anything_is_known_an_exploration_is_short(kv_bytes):
    batch = 1 if kv_bytes == 8 else 32
    choices = drive(Controller(server(kv_bytes), LENGTHS, 64), [f"r{n}" for n in range(batch)], nothing, 100)
    lengths = [choice.length for choice in choices if choice.length]
    assert lengths == [1] * len(lengths) and 2 <= len(lengths) <= 5


# ------------------------------------------------------------ steady


@pytest.mark.parametrize("name", TRACES)
def test_drafting_does_not_swing(name):
    for seed in SEEDS:
        chosen = runs(name, seed)[1]
        assert chosen.changes <= 12 * max(1, len(chosen.lengths) / 1000)


@pytest.mark.parametrize("batch,kv_bytes,rate", [(32, 1, 0.39), (32, 1, 0.42), (1, 8, 0.6), (1, 8, 0.65)])
def test_drafting_does_not_swing_where_it_just_breaks_even(batch, kv_bytes, rate):
    for seed in SEEDS:
        trace = uniform(batch, rate, 1500, kv_bytes, seed)
        chosen = adaptive(trace, seed)
        assert chosen.changes < 0.02 * len(chosen.lengths)
        assert chosen.seconds < 1.01 * fixed(trace)[0].seconds


def test_drafting_goes_on_while_requests_come_and_go():
    controller = Controller(server(), LENGTHS, 64)
    requests, choices = [f"r{n}" for n in range(32)], []
    for step in range(200):
        choices += drive(controller, requests, everything, 2)
        controller.forget(requests.pop(0))
        requests.append(f"later-{step}")
    assert all(choice.length == 5 for choice in choices[40:])


def test_drafting_ends_when_acceptance_does_and_comes_back_with_it():
    controller, requests = Controller(server(), LENGTHS, 64), [f"r{n}" for n in range(32)]
    assert drive(controller, requests, everything, 60)[-1].length == 5
    lost = [choice.length for choice in drive(controller, requests, nothing, 400)]
    assert lost.index(0) < 20 and sum(length > 0 for length in lost[20:]) < 12
    assert drive(controller, requests, everything, 400)[-1].length == 5


def test_a_batch_that_comes_back_is_drafted_for_at_once():
    """What is known of acceptance is not explored again after short contexts, for which drafting does not pay."""
    controller, requests = Controller(server(), LENGTHS, 64), [f"r{n}" for n in range(32)]
    assert drive(controller, requests, everything, 60)[-1].length == 5
    assert not any(choice.length for choice in drive(controller, requests, everything, 300, kv=32 * 1024)[8:])
    assert controller.choose([], 0).reason == "idle"
    assert [choice.length for choice in drive(controller, [f"n{n}" for n in range(32)], everything, 8)] == [5] * 8


def slow_to_verify() -> CostModel:
    """As on a CPU: a round of one draft takes two plain steps, each draft more a sixth of one; of one request: more."""
    return CostModel([1, 8], [0.004, 0.004], [1, 8], [0.0035, 0.004], [0.001, 0.001], 3e-7, 3e-7, "a test")


@pytest.mark.parametrize("before", [0, 200])
def test_where_verifying_is_slow_a_batch_is_explored_soon(before):
    """Although that costs more than was saved for it, and one request alone was explored before, in vain."""
    controller, requests = Controller(slow_to_verify(), (0, 1, 2, 3, 5, 8), 8), [f"r{n}" for n in range(8)]
    alone = drive(controller, ["alone"], lambda request, n: min(n, 1), before, kv=8192)
    assert not any(choice.length for choice in alone[20:])
    choices = drive(controller, requests, everything, 30, kv=8 * 8192)
    assert [choice.length for choice in choices[-20:]] == [8] * 20


# ------------------------------------------------------------ each request


def test_a_request_that_always_fails_does_not_stop_its_neighbours():
    requests = [f"r{n}" for n in range(32)]
    choices = drive(Controller(server(), LENGTHS, 64), requests, lambda r, n: 0 if r == "r0" else n, 100)
    assert choices[-1].length == 5 and choices[-1].speedup > 2


def test_requests_that_fail_are_not_slowed_for_the_sake_of_the_others():
    """Half of all drafts are accepted, and tokens/s would gain; but half of the requests would only wait longer."""
    requests, rng = [f"r{n}" for n in range(32)], np.random.default_rng(0)

    def drafted(accepts) -> int:
        choices = drive(Controller(server(), (0, 1), 64), requests, accepts, 300)
        return sum(choice.length for choice in choices[50:])

    assert drafted(lambda request, n: int(rng.random() < 0.5)) > 200
    assert drafted(lambda request, n: int(request[1:]) % 2) < 25


def test_a_batch_is_drafted_for_although_one_opted_out_and_not_if_all_did():
    requests, controller = [f"r{n}" for n in range(32)], Controller(server(), LENGTHS, 64)
    choices = drive(controller, requests, everything, 100, out=["r3", "elsewhere"])
    assert choices[-1].length == 5
    assert controller.choose(requests, 32 * K32, requests) == Choice(0, "idle")


def test_a_fixed_length_is_drafted_unless_nobody_wants_drafts():
    fixed = FixedLength(3)
    assert fixed.choose(["a", "b"], 0, {"a"}) == Choice(3, "fixed", steps=3)
    assert fixed.choose([], 0) == fixed.choose(["a"], 0, {"a"}) == Choice(0, "idle")
    for _ in range(100):
        fixed.observe("b", 3, 2)
    assert fixed.acceptance() == pytest.approx([1, 1, 0], abs=0.05)


def test_what_a_batch_takes_where_some_opted_out_is_measured_by_itself():
    """It is not uniform, for which many backends have no full CUDA graph."""
    costs, table = server(), server()
    for _ in range(20):
        costs.correct(2, 32, 32 * K32, table.tabulated(2, 32, 32 * K32))
        costs.correct(2, 32, 32 * K32, 1.3 * table.tabulated(2, 32, 32 * K32), mixed=True)
    for mixed, factor in ((False, 1.0), (True, 1.3)):
        assert costs.predict([2], 32, 32 * K32, mixed) == pytest.approx(
            [factor * table.tabulated(2, 32, 32 * K32)], rel=0.02
        )


# ------------------------------------------------------------ reasons


def test_the_reason_is_given():
    requests = [f"r{n}" for n in range(32)]
    assert Controller(server(), LENGTHS, 64).choose([], 0) == Choice(0, "idle")
    short = drive(Controller(server(), LENGTHS, 64), requests, everything, 50, kv=32 * 1024)
    assert {(choice.length, choice.reason, choice.speedup) for choice in short} == {(0, "cost", 1.0)}
    good = drive(Controller(server(), LENGTHS, 64), requests, everything, 50)
    assert (good[-1].length, good[-1].reason) == (5, "on") and good[-1].speedup == pytest.approx(2.4, rel=0.1)
    bad = drive(Controller(server(), LENGTHS, 64), requests, nothing, 600)
    assert {"acceptance", "explore"} <= {choice.reason for choice in bad}
    assert all(choice.length <= 1 for choice in bad[100:])
    assert all(choice.speedup == 1.0 for choice in bad if choice.length == 0)


# ------------------------------------------------------------ whatever is told


def test_ten_thousand_requests_leave_nothing_behind():
    controller = Controller(server(), LENGTHS, 8)
    running: list[str] = []
    for n in range(10_000):
        running.append(f"r{n}")
        choice = controller.choose(running, K32 * len(running))
        if choice.length:
            for request in running:
                controller.observe(request, choice.length, choice.length)
        if len(running) == 8:
            ended = running.pop(0)
            controller.forget(ended)
            controller.observe(ended, 2, 1)  # too late
    assert len(controller.estimator.rows) == len(running) and len(controller.estimator.free) == 1
    assert len(controller.costs.corrections) < 50


def test_more_requests_than_there_is_room_for_are_served_alike():
    requests = [f"r{n}" for n in range(64)]
    choices = drive(Controller(server(), LENGTHS, 4), requests, everything, 60)
    assert choices[-1].length == 5


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_calls_gives_one_of_the_lengths(seed):
    rng, controller = np.random.default_rng(seed), Controller(server(), LENGTHS, 6)
    for _ in range(1500):
        call, some = rng.integers(5), [f"r{n}" for n in rng.choice(12, rng.integers(0, 10), replace=False)]
        length, batch = int(rng.choice(LENGTHS)), int(rng.integers(1, 12))
        if call == 0 and some:
            controller.observe(some[0], max(1, length), int(rng.integers(0, max(1, length) + 1)))
        elif call == 1:
            kv, seconds = int(rng.integers(0, 1 << 21)), float(rng.lognormal(-5, 2))
            controller.measured(length, batch, kv, seconds, mixed=bool(rng.integers(2)))
        elif call == 2 and some:
            controller.forget(some[0])
        else:
            choice = controller.choose(some, int(rng.integers(0, 1 << 21)), some[: int(rng.integers(0, 3))])
            assert choice.length in LENGTHS and choice.speedup > 0
    assert all(0 <= rate <= 1 for rate in controller.acceptance())


@pytest.mark.parametrize("batch,most", [(1, 1e-3), (256, 2e-3)])
def test_choosing_takes_microseconds(batch, most):
    """Bounds are for a slow and busy core."""
    table = server()
    table.per_kv *= 20  # so that it drafts for one request too
    controller, requests, taken = Controller(table, LENGTHS, 256), [f"request-{n}" for n in range(batch)], []
    for step in range(300):
        began = time.perf_counter()
        choice = controller.choose(requests, batch * (K32 + step))
        taken.append(time.perf_counter() - began)
        for request in requests:
            controller.observe(request, 5, 4)
    assert choice.length > 0 and np.median(taken) < most


# ------------------------------------------------------------ what it learns


def test_acceptance_by_position_is_that_of_the_outcomes():
    seen, rng, rates = AcceptanceEstimator(4, 3), np.random.default_rng(0), np.array([0.9, 0.5, 0.8])
    for n in range(4000):
        accepted = int(np.logical_and.accumulate(rng.random(3) < rates).sum())
        seen.observe(f"r{n % 4}", 3, accepted)
        if n % 4 == 3:
            seen.acceptance()
    assert seen.acceptance() == pytest.approx(rates, abs=0.1)


def test_a_rejected_draft_says_nothing_of_those_after_it():
    seen = AcceptanceEstimator(4, 3)
    before = seen.acceptance()
    for _ in range(50):
        seen.observe("a", 3, 0)
    after = seen.acceptance()
    assert after[0] < 0.2 and after[1:] == pytest.approx([0.8, 0.8], abs=0.01) and before[0] == pytest.approx(0.7)


def test_a_new_request_is_taken_to_be_like_the_others_and_then_like_itself():
    seen = AcceptanceEstimator(4, 2)
    seen.rows_of(["good", "new"])
    for _ in range(100):
        seen.observe("good", 2, 2)
        seen.count()
    good, new = seen.tokens(["good", "new"])
    assert good[-1] > 2.9 and new[-1] > 2.7
    for _ in range(20):
        seen.observe("new", 2, 0)
        seen.count()
    good, new = seen.tokens(["good", "new"])
    assert new[-1] < 1.2 and good[-1] > 2
    seen.forget("new")
    assert seen.tokens(["newer"])[0, -1] > new[-1], "its row is taken over, what it held is not"


def test_outcomes_that_nobody_counts_do_not_pile_up():
    seen = AcceptanceEstimator(1, 3)
    for _ in range(20_000):
        seen.observe("a", 3, 3)
    assert len(seen.waiting) < 20_000 and seen.acceptance()[0] > 0.9


@pytest.mark.parametrize("plain,draft", list(product((0.85, 1.15), repeat=2)))
def test_a_wrong_table_is_put_right_in_a_few_steps(plain, draft):
    true, rng = server(), np.random.default_rng(0)
    table = CostModel(
        true.tokens, [plain * s for s in true.dense], true.batch, [draft * s for s in true.draft], true.select,
        plain * true.per_kv, true.select_per_kv, "wrong",
    )  # fmt: skip
    for length in [0] * 5 + [2] * 10:
        table.correct(length, 32, 32 * K32, true.tabulated(length, 32, 32 * K32) * np.exp(rng.normal(0, 0.02)))
    found = table.predict(LENGTHS, 32, 32 * K32)
    assert found == pytest.approx([true.tabulated(length, 32, 32 * K32) for length in LENGTHS], rel=0.05)
    assert table.predict([0], 16, 16 * K32) == pytest.approx([true.tabulated(0, 16, 16 * K32)], rel=0.05)
    table.correct(2, 32, 32 * K32, 3 * found[2])
    assert table.predict(LENGTHS, 32, 32 * K32) == pytest.approx(found, rel=0.1), "a stall"


def test_plain_steps_measured_later_leave_the_time_of_drafting_ones_as_measured():
    """What a round took is not thought to change because a part of it turns out to be cheaper."""
    costs, table = server(), server()
    for _ in range(30):
        costs.correct(2, 32, 32 * K32, table.tabulated(2, 32, 32 * K32))
    for _ in range(10):
        costs.correct(0, 32, 32 * K32, 0.9 * table.tabulated(0, 32, 32 * K32))
    found = costs.predict(LENGTHS, 32, 32 * K32)
    assert found[0] == pytest.approx(0.9 * table.tabulated(0, 32, 32 * K32), rel=0.02)
    assert found[2] == pytest.approx(table.tabulated(2, 32, 32 * K32), rel=0.03)


def test_a_region_not_measured_is_taken_to_be_like_the_nearest_one():
    costs, table = server(), server()
    for batch, factor in ((4, 0.9), (32, 1.1)):
        for length in (0, 2):
            costs.correct(length, batch, batch * K32, factor * table.tabulated(length, batch, batch * K32))
    for batch, factor in ((3, 0.9), (16, 1.1), (64, 1.1)):
        expected = [factor * table.tabulated(length, batch, batch * K32) for length in LENGTHS]
        assert costs.predict(LENGTHS, batch, batch * K32) == pytest.approx(expected, rel=0.01)


# ------------------------------------------------------------ the cost table


def test_the_table_is_what_was_measured():
    true = CostModel([1, 8, 32], [6.0, 6.1, 6.2], [1, 8, 32], [6.2, 6.3, 7.0], [0.1, 0.2, 0.5], 17e-6, 15e-7, "true")
    loads = [(1, 2000), (8, 2000), (32, 2000), (32, 30000), (1, 30000)]
    points = [Point(b, b * c, length, true.tabulated(length, b, b * c)) for b, c in loads for length in (0, 1, 5)]
    fitted = fit(points, "fitted")
    for p in points:
        assert fitted.predict([p.length], p.batch, p.kv) == pytest.approx([p.seconds], rel=1e-6)
    assert fitted.predict([3], 16, 200_000) == pytest.approx([true.tabulated(3, 16, 200_000)], rel=0.05)


def test_the_table_follows_what_steps_take_and_is_kept(tmp_path):
    costs = CostModel([1], [0.01], [1], [0.001], [0.0], 0.0, 0.0, "a test")
    for _ in range(100):
        costs.correct(2, 4, 1000, 0.02)
    costs.correct(2, 4, 1000, 60.0)  # a stall
    assert costs.predict([2], 4, 1000) == pytest.approx([0.02], rel=0.05)
    cost_file.save(costs, tmp_path / "folder" / "costs.json")
    assert cost_file.load(tmp_path / "folder" / "costs.json") == costs
    assert cost_file.load(tmp_path / "nothing.json") is None


TABLE = asdict(CostModel([1, 2], [0.01, 0.02], [1], [0.001], [0.0], 0.0, 0.0, "a test", {"draft/1/0": [1.1, 0.2, 3.0]}))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, json.dumps(TABLE)[:-9].encode(),
        *(
            json.dumps(TABLE | broken).encode()
            for broken in (
                {"tokens": 1}, {"tokens": []}, {"tokens": [2, 1]}, {"dense": [0.01]}, {"dense": [0.01, "0.02"]},
                {"dense": [0.0, 0.02]}, {"per_kv": None}, {"per_kv": float("nan")}, {"select": [[0.0]]},
                {"corrections": []}, {"corrections": {"draft/1/0": [1.0, 0.2, "3"]}},
                {"corrections": {"draft/1/0": [1.0]}}, {"corrections": {"draft/1/a": [1.0, 0.2, 3.0]}},
                {"corrections": {"1/1/0": 0.5}}, {"source": 3}, {"of a later version": 1},
            )
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_as_good_as_none(text, tmp_path):
    (tmp_path / "costs.json").write_bytes(text)
    assert cost_file.load(tmp_path / "costs.json") is None
    cost_file.save(CostModel(**TABLE), tmp_path / "costs.json")
    assert cost_file.load(tmp_path / "costs.json") == CostModel(**TABLE)


def test_engines_that_save_one_table_at_once_do_not_meet(tmp_path):
    """Every one of them saves, what lies there is always whole, and nothing else is left."""
    path, table = tmp_path / "costs.json", CostModel(**TABLE)
    cost_file.save(table, path)
    with ThreadPoolExecutor(4) as engines:
        saved = [engines.submit(cost_file.save, table, path) for _ in range(800)]
        while not all(save.done() for save in saved):
            assert cost_file.load(path) == table
        assert [save.result() for save in saved] == [None] * 800
    assert [found.name for found in tmp_path.iterdir()] == ["costs.json"]


def test_a_table_that_cannot_be_kept_leaves_things_as_they_are(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "costs.json", Path("/proc/vllm_std/costs.json")):
        with pytest.raises(OSError):
            cost_file.save(CostModel(**TABLE), path)
    code = f"""
import resource
from pathlib import Path
from vllm_std.control import CostModel, cost_file
path = Path({str(tmp_path / "costs.json")!r})
table = CostModel(**{TABLE!r})
cost_file.save(table, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # to a process that writes, the disk is full
table.corrections["plain/2/2"] = [1.0, 0.0, 1.0]
try:
    cost_file.save(table, path)
except OSError:
    assert cost_file.load(path) == CostModel(**{TABLE!r})
    print([found.name for found in path.parent.iterdir() if found.name != "file"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['costs.json']\n", done.stderr
