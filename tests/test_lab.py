"""What the acceptance lab promises: that its counts are the sampler's, its intervals cover, and its runs resume."""

import json

import numpy as np
import pytest
from helpers import Acceptance, std, token_prompts
from typer.testing import CliRunner
from vllm import SamplingParams

from vllm_std.tools.acceptance import grid, run
from vllm_std.tools.acceptance.records import Records, count
from vllm_std.tools.acceptance.stats import difference, ratio
from vllm_std.tools.acceptance.summary import summarise
from vllm_std.tools.cli import app
from vllm_std.tools.demo.sign_video import SignVideo
from vllm_std.tools.prompts import load_prompts

TOKENS, GAMMA = 16, 3
WORDS = "clock sign scene small orange diamond upper left navy video from until describe follow".split()
ENGINE = {"dtype": "float32", "block_size": 32}  # what the engines of helpers.py have


def vllm_std(*args) -> tuple[int, str]:
    """Exit code and output of the command."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# ------------------------------------------------------------ counts


@pytest.mark.unit
def test_the_last_round_counts_in_full_and_what_runs_ahead_of_it_does_not():
    prompt_end, rounds, ahead = [(0, 0), (0, 0), (1, 3)], [(4, 0), (1, 3), (3, 1)], [(2, 2)]
    counts = count(prompt_end + rounds + ahead, generated=7, gamma=3)
    assert counts["rounds"] == 3 and counts["drafted"] == 9
    assert counts["accepted_by_position"] == [2, 2, 1] and counts["drafted_by_position"] == [3, 3, 3]
    assert counts["mean_acceptance_length"] == pytest.approx(1 + 5 / 3, abs=1e-4)


@pytest.mark.unit
def test_passes_that_cannot_have_made_the_answer_are_a_fault():
    with pytest.raises(RuntimeError):
        count([(1, 0), (2, 1)], generated=4, gamma=2)


@pytest.mark.unit
def test_a_position_is_judged_where_all_before_it_were_accepted(tmp_path):
    records = Records(tmp_path)
    for prompt, accepted in (("p", [8, 4, 1]), ("q", [4, 4, 0])):
        counts = {"rounds": 10, "drafted": 30, "drafted_by_position": [10] * 3, "accepted_by_position": accepted}
        answer = {"accepted": sum(accepted), "context": 90, "task": None, "right": None, "tokens": [1]}
        cell = {"policy": "verify", "k": 96, "gamma": 3, "refresh": 1, "temperature": 0.0}
        records.rows.append({"prompt": prompt, **cell, **counts, **answer})
    positions = summarise(records)["cells"][0]["positions"]
    assert [at["acceptance"] for at in positions] == pytest.approx([12 / 20, 8 / 12, 1 / 8], abs=1e-4)
    assert [at["tokens"] for at in positions] == pytest.approx([1.6, 2.0, 2.05])


# ------------------------------------------------------------ intervals


def answers(rng, prompts: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """(drafted, accepted) of prompts whose shares vary about `mean`."""
    drafted = rng.integers(40, 200, prompts)
    return drafted, rng.binomial(drafted, rng.beta(8 * mean, 8 * (1 - mean), prompts))


@pytest.mark.unit
def test_intervals_cover_the_known_share_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    ends = np.array([ratio(*answers(rng, 40, 0.7))[1] for _ in range(200)])
    assert 0.88 < ((ends[:, 0] <= 0.7) & (0.7 <= ends[:, 1])).mean() <= 0.99


@pytest.mark.unit
def test_pairs_see_a_difference_that_apart_is_lost_between_prompts():
    rng = np.random.default_rng(2)
    drafted, accepted = answers(rng, 40, 0.6)
    better = np.minimum(drafted, accepted + drafted // 20)
    value, (low, high) = difference(np.array([drafted, drafted]), np.array([better, accepted]))
    assert 0.02 < low < value < high < 0.06
    assert ratio(drafted, better)[1][0] < ratio(drafted, accepted)[1][1]


@pytest.mark.unit
def test_four_prompts_have_no_interval():
    assert ratio(np.array([10] * 4), np.array([4] * 4)) == (0.4, None)


# ------------------------------------------------------------ input


@pytest.mark.unit
def test_refresh_makes_no_cells_of_policies_that_select_once():
    cells = grid.make_cells("verify,text", "0.05", "3", "1,4", "0")
    assert [(cell.policy, cell.refresh) for cell in cells] == [("verify", 1), ("text", 1), ("verify", 4)]


BAD = {
    "no prompts": ([], "--prompts FILE"),
    "no file": (["--prompts", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
    "no videos": (["--videos", "FOLDER"], "no *.mp4"),
    "policy": (["--policy", "verify,best"], "--policy verify,best does not work: give names among verify, "),
    "k": (["--k", "0.05,1.5"], "--k 0.05,1.5 does not work"),
    "mixed k": (["--k", "0.05,512"], "mixes tokens and shares"),
    "gamma": (["--gamma", "0"], "whole numbers >= 1"),
    "refresh": (["--refresh", "often"], "--refresh often does not work"),
    "temperature": (["--temperature", "-1"], "numbers from 0 to 10"),
    "engine": (["--prompts", "FILE", "--engine", "dtype"], "is not a JSON object"),
    "engine that is ours": (["--prompts", "FILE", "--engine", '{"seed": 1}'], "--engine seed is set by the lab"),
    "engine that vLLM does not know": (
        ["--prompts", "FILE", "--engine", '{"dtypo": 1}'],
        "--engine dtypo is not an argu",
    ),
    "against": (["--policy", "verify", "--against", "text"], "--against text is not in --policy verify"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.unit
def test_bad_options_get_one_sentence_and_exit_code_2(name, tmp_path):
    args, says = BAD[name]
    (tmp_path / "one.txt").write_text("a prompt")
    here = {"FOLDER": str(tmp_path), "FILE": str(tmp_path / "one.txt")}
    code, output = vllm_std("acceptance", "--model", "m", "--out", tmp_path, *(here.get(arg, arg) for arg in args))
    assert code == 2
    assert says in output and len(output.splitlines()) == 1


@pytest.mark.unit
def test_without_matplotlib_nothing_begins(monkeypatch, tmp_path):
    monkeypatch.setattr("vllm_std.tools.console.find_spec", lambda name: None)
    code, output = vllm_std("acceptance", "--model", "m", "--prompts", tmp_path / "nowhere.jsonl")
    assert code == 2 and "pip install 'vllm-std[bench]'" in output and "nowhere" not in output


@pytest.mark.unit
def test_prompts_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one"}\n\n{"id": "x", "task": "t", "messages": [{"role": "user", "content": "two"}]}\n'
    )
    (tmp_path / "b.txt").write_text("three\nlines")
    (tmp_path / "v.mp4").touch()
    (tmp_path / "v.json").write_text('{"questions": [{"task": "list", "question": "what?", "answer": "that"}]}')
    read = load_prompts([tmp_path / "a.jsonl", tmp_path / "b.txt"], [tmp_path])
    assert [(prompt.id, prompt.task) for prompt in read] == [("a:1", None), ("x", "t"), ("b", None), ("v:1", "list")]
    video, question = read[-1].messages[0]["content"]
    assert video["video_url"]["url"] == (tmp_path / "v.mp4").as_uri() and question["text"] == "what?"
    with pytest.raises(ValueError, match="two prompts have the id 'a:1'"):
        load_prompts([tmp_path / "a.jsonl"] * 2, [])


@pytest.mark.unit
def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    records = Records(tmp_path)
    records.begin(tokens=8)
    records.add({"prompt": "p"})
    (tmp_path / "records.jsonl").open("a").write('{"prompt": "q')
    again = Records(tmp_path)
    assert again.header == {"tokens": 8} and again.rows == [{"prompt": "p"}]
    with pytest.raises(ValueError, match="was made with tokens=8, and this run has 9"):
        again.begin(tokens=9)


# ------------------------------------------------------------ a run


class Lab:
    """`vllm-std acceptance` on a tiny model, on an engine of the tests."""

    def __init__(self, engines, model, out):
        self.engines, self.model, self.out, self.started = engines, model, out, 0
        self.options = {"disable_log_stats": True}  # vLLM's metrics know one draft length only

    def engine(self, plan=None, folders=None):
        self.started += 1
        config = {
            "method": "std",
            "adaptive": False,
            "num_speculative_tokens": GAMMA,
            "top_k": 1024,
            "sink": 1,
            "recent": 32,
        }
        return self.engines(self.model, config, **self.options)

    def __call__(self, *args) -> str:
        code, output = vllm_std(
            "acceptance", "--model", self.model, "--out", self.out, "--tokens", TOKENS, "--batch", 2,
            "--sink", 1, "--recent", 32, "--engine", json.dumps(ENGINE), *args,
        )  # fmt: skip
        assert code == 0, output
        return output


@pytest.fixture
def lab(engines, models, tmp_path, monkeypatch):
    lab = Lab(engines, models("qwen2"), tmp_path / "out")
    monkeypatch.setattr(run, "start", lab.engine)
    return lab


@pytest.mark.engine
def test_requests_that_come_one_by_one_get_what_they_get_together(engines, models, monkeypatch):
    from vllm_std.patches import offline

    llm = engines(models("llama"), std())
    inputs = [{"type": "token", **prompt} for prompt in token_prompts([40, 97, 33, 150])]
    params = [SamplingParams(temperature=0, max_tokens=24, ignore_eos=True) for _ in inputs]
    together = [output.outputs[0].token_ids for output in offline.generate(llm, inputs, params)]
    engine, running = llm.llm_engine, []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: running.append(engine.get_num_unfinished_requests()) or step())
    apart = [output.outputs[0].token_ids for output in offline.one_by_one(llm, inputs, params, apart=10)]
    assert apart == together
    assert running[0] == 1 and max(running) > 1, "the first is alone, and later ones run beside it"


@pytest.fixture
def texts(tmp_path):
    """Three prompts, of 238, 321 and 386 tokens: two end just behind a block of 32."""
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(WORDS, 205 + 60 * i)) for i in range(3)]
    lines = [{"id": f"p{i}", "task": "ab"[i % 2], "prompt": text} for i, text in enumerate(texts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "--prompts", tmp_path / "prompts.jsonl"


GRID = ("--policy", "verify,streaming", "--k", 96, "--gamma", GAMMA)


@pytest.mark.engine
def test_counts_are_those_of_vllm_and_a_mask_of_all_is_accepted_whole(lab, texts):
    lab.options = {}
    with Acceptance(lab.engine()) as seen:
        output = lab(*texts, "--policy", "verify", "--k", "96,1024", "--gamma", GAMMA)
    records = Records(lab.out)
    assert len(records.rows) == 3 * 2 and {row["task"] for row in records.rows} == {"a", "b"}
    assert sum(row["drafted"] for row in records.rows) == seen.drafted
    assert sum(row["accepted"] for row in records.rows) == seen.accepted
    assert records.header["dtype"] == "float32" and records.header["tokens"] == TOKENS
    for row in records.rows:
        assert len(row["tokens"]) == row["generated"] == TOKENS
        assert row["drafted"] == sum(row["drafted_by_position"]) == GAMMA * row["rounds"]
        assert row["context"] > 200 and (row["accepted"] == row["drafted"] or row["k"] == 96)
    assert "equal token by token in all cells, for 3 prompts" in output
    assert "By draft position" in output and "±" not in output, "three prompts are too few for an interval"
    assert all((lab.out / f"{name}.png").stat().st_size for name in ("acceptance", "positions", "tokens"))


@pytest.mark.engine
def test_draft_lengths_are_switched_and_every_cell_computes_the_last_tokens_of_a_prompt(lab, texts):
    lab(*texts, "--policy", "streaming", "--k", 1024, "--gamma", f"{GAMMA},1")
    rows = Records(lab.out).rows
    for row in rows:
        assert row["accepted_by_position"] == [row["rounds"]] * row["gamma"]
    assert all(0 <= row["context"] - GAMMA - 1 - row["cached"] < 32 for row in rows if row["gamma"] == 1)


@pytest.mark.engine
def test_a_stopped_run_goes_on_to_the_same_summary(lab, texts):
    lab(*texts, *GRID)
    whole = (lab.out / "summary.json").read_text()
    file = lab.out / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))
    lab(*texts, *GRID)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [json.dumps(line) + "\n" for line in kept[:4]] == lines[:4] and len(kept) == len(lines)
    assert (lab.out / "summary.json").read_text() == whole
    lab(*texts, *GRID)
    assert lab.started == 2, "a run that is complete needs no engine"


@pytest.mark.engine
def test_a_report_needs_no_engine_and_says_what_the_run_said(lab, texts):
    said = lab(*texts, *GRID, "--against", "streaming")
    summary = (lab.out / "summary.json").read_text()
    (lab.out / "summary.json").unlink()
    code, reported = vllm_std("report", lab.out, "--against", "streaming")
    assert code == 0 and said.endswith(reported)  # after the progress
    assert (lab.out / "summary.json").read_text() == summary
    compared = [cell for cell in json.loads(summary)["cells"] if "against" in cell]
    assert {cell["policy"] for cell in compared} == {"verify"} and compared[0]["against"]["prompts"] == 3


@pytest.mark.unit
def test_records_of_other_settings_are_refused_before_an_engine_starts(tmp_path):
    (tmp_path / "one.txt").write_text("a prompt")
    (tmp_path / "records.jsonl").write_text('{"model": "m", "tokens": 64}\n')
    code, output = vllm_std("acceptance", "--model", "m", "--prompts", tmp_path / "one.txt", "--out", tmp_path)
    assert code == 2 and "was made with tokens=64, and this run has 128: use another --out" in output


@pytest.mark.engine
def test_each_question_is_asked_about_its_own_video(lab, models, tmp_path):
    lab.model, lab.options = models("qwen2_vl"), lab.options | {"allowed_local_media_path": str(tmp_path)}
    (tmp_path / "videos").mkdir()
    for seed, name in enumerate(("one", "two")):
        path = tmp_path / "videos" / f"{name}.mp4"
        SignVideo(scenes=6, seed=seed).write(path)
        question = {"question": "What happens?", "answer": "nobody knows"}
        path.with_suffix(".json").write_text(json.dumps({"questions": [question]}))
    lab("--videos", tmp_path / "videos", "--policy", "streaming", "--k", 96, "--gamma", GAMMA)
    one, two = Records(lab.out).rows
    assert one["context"] == two["context"] and one["cached"] == two["cached"] == 0
    assert one["tokens"] != two["tokens"] and one["right"] is False
