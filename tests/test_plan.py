"""What the cost model promises: the times that were measured, and sound advice where nothing was."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import full_models
import pytest
import transformers
from helpers import ROOT
from tiny_models import CONFIGS, REFUSED
from typer.testing import CliRunner

sys.path.insert(0, str(ROOT / "scripts"))
from gpu.parts import std  # noqa: E402
from gpu.records import load as load_records  # noqa: E402
from gpu.report import compared_cells  # noqa: E402
from gpu.shapes import QWEN2_7B, SHAPES, TINY, VICUNA_7B  # noqa: E402

from vllm_std.control import cost_file  # noqa: E402
from vllm_std.mask import MaskShape  # noqa: E402
from vllm_std.models import load as load_config  # noqa: E402
from vllm_std.refusals import refuse_model  # noqa: E402
from vllm_std.roofline.devices import device_named  # noqa: E402
from vllm_std.roofline.estimate import estimate, for_engine, kv_seconds, pass_parts  # noqa: E402
from vllm_std.roofline.shape import Shape  # noqa: E402
from vllm_std.tools.cli import app  # noqa: E402
from vllm_std.tools.plan.limits import memory_need, time_shares  # noqa: E402
from vllm_std.tools.plan.predict import fastest, plain_seconds, predictions, tokens_per_step  # noqa: E402
from vllm_std.tools.plan.workload import Workload  # noqa: E402

pytestmark = pytest.mark.unit

RESULTS = ROOT / "docs/records"
MEASURED = json.loads((RESULTS / "steps-h100.json").read_text())
CONFIG = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}
MIXTRAL = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip


def shape_of(fields: dict, **options) -> Shape:
    return Shape.of(CONFIG[fields["model_type"]](**fields), **options)


def workload(batch=32, context=32000, fields=QWEN2_7B, p=0.9, gpu="H100", ks=(1024,), **options) -> Workload:
    return Workload(shape_of(fields, **options), device_named(gpu), batch, context, (1, 2, 3, 5, 7), ks, (p,))


def best(**options) -> float:
    return fastest(predictions(workload(**options))).speedup


# ------------------------------------------------------------ times that were measured


@pytest.mark.parametrize("step", MEASURED["steps"], ids=lambda step: "{batch}x{context}".format(**step))
def test_plain_steps_take_what_was_measured(step):
    asked = workload(step["batch"], step["context"], gpu=MEASURED["device"])
    costs = estimate(asked.shape, asked.device, MaskShape.plan(1024, 16, 64, 16, 32000), 32, 7)
    assert 1e3 * costs.tabulated(0, asked.batch, asked.kv) == pytest.approx(step["ms"], rel=0.1)
    assert 1e3 * plain_seconds(asked) == pytest.approx(step["ms"], rel=0.1)


def test_attention_over_a_mask_takes_what_was_measured():
    asked, attention = workload(), MEASURED["attention_of_one_layer"]
    cell = fastest(predictions(asked))
    masked = cell.draft_ms - 1e3 * sum(pass_parts(asked.shape, asked.device, asked.batch).values())
    assert masked == pytest.approx(asked.shape.layers * attention["masked_ms"], rel=0.1)
    # Alone, a layer's dense attention took longer than its share of a whole step.
    dense = 1e3 * asked.kv * kv_seconds(asked.shape, asked.device)
    assert dense == pytest.approx(asked.shape.layers * attention["dense_ms"], rel=0.15)


def test_tokens_beside_the_first_cost_a_draft_step_what_they_compute():
    asked, mask = workload(batch=64), MaskShape.plan(1024, 16, 64, 16, 32000)
    one, four = (estimate(asked.shape, asked.device, mask, 64, 7, query_len=length).draft for length in (1, 4))
    parts = [sum(pass_parts(asked.shape, asked.device, tokens).values()) for tokens in (64, 256)]
    assert four[-1] - one[-1] == pytest.approx(parts[1] - parts[0])
    assert four[0] == pytest.approx(one[0], rel=0.01), "the weights are read once"


def test_a_draft_step_costs_a_third_of_a_plain_one_at_32x32k_and_nearly_all_of_it_at_batch_1():
    draft_ms = {batch: fastest(predictions(workload(batch))).draft_ms for batch in (1, 32)}
    share = {batch: ms / 1e3 / plain_seconds(workload(batch)) for batch, ms in draft_ms.items()}
    assert 0.25 < share[32] < 0.33 and 0.88 < share[1] < 0.95
    select_ms = fastest(predictions(workload())).select_ms
    assert 1.6 < select_ms < 4, "what it reads takes 1.6 ms at the full rate of the memory"


# ------------------------------------------------------------ times that gpu/day.sh has measured


def compare(rows: list[dict]) -> list[tuple[float, str]]:
    """(predicted over measured speed-up, cell) of synthetic acceptance, worst first; rows: records of gpu/day.sh."""
    found = []
    for row in compared_cells(rows):
        if row["rate"] is None or row["gamma"] == "adaptive" or row["options"]["method"] != "std" or not row["ratios"]:
            continue
        fields, top_k = SHAPES[row["model"]] | (TINY if row["tiny"] else {}), row["options"]["top_k"]
        asked = workload(row["batch"], row["context"], fields, row["rate"], row["device"], (top_k,))
        (cell,) = predictions(replace(asked, gammas=(row["gamma"],)))
        ratio = cell.speedup / median(row["ratios"])
        name = "{part} {batch} x {context:,} gamma={gamma} p={rate}".format(**row)
        found.append((ratio, f"{name} K={top_k}: {ratio:.2f} of what was measured"))
    return sorted(found, key=lambda one: -abs(math.log(one[0])))


def made_up_records(off: dict[int, float]) -> list[dict]:
    """As gpu/day.sh writes them: plain, and a cell for each draft length whose speed-up is 1/off of the predicted."""
    shared = dict(what="cell", part="7b", model="qwen2-7b", batch=32, context=32000, temperature=0.0, call="one")
    shared |= dict(device=MEASURED["device"], vllm="0", source="0", tiny=False, options=std(top_k=1024))
    speeds = [(0, None, 1000.0), (0, None, 990.0)]
    speeds += [(cell.gamma, 0.9, 1000.0 * cell.speedup / off.get(cell.gamma, 1.0)) for cell in predictions(workload())]
    return [
        shared | dict(side="std" if place else "plain", visit=place > 0, gamma=gamma, rate=rate)
        | {"turns": [{"tokens_per_s": speed}]}
        for place, (gamma, rate, speed) in enumerate(speeds)
    ]  # fmt: skip


def test_comparing_finds_the_cells_that_are_off():
    found = compare(made_up_records({3: 0.5, 7: 1.6}))
    assert [ratio for ratio, _ in found] == pytest.approx([0.5, 1.6, 1.0, 1.0, 1.0], rel=0.01)
    assert found[0][1].startswith("7b 32 x 32,000 gamma=3 p=0.9 K=1024: 0.50")


@pytest.mark.parametrize("file", sorted((RESULTS / "gpu").glob("*.jsonl")), ids=lambda file: file.stem)
def test_predicted_speedups_are_those_of_the_bench(file):
    found = compare(load_records(file))
    if not found:
        pytest.skip("no speed-ups in this file")
    worst = "; ".join(name for _, name in found[:5])
    assert all(0.65 < ratio < 1.5 for ratio, _ in found), worst
    ratios = sorted(ratio for ratio, _ in found)
    assert 0.8 < ratios[len(ratios) // 2] < 1.25, worst


# ------------------------------------------------------------ what must hold of any prediction


@pytest.mark.parametrize("name, values", [
    ("context", (2048, 4096, 8192, 16384, 32768, 131072)), ("batch", (1, 2, 4, 8, 16, 32)), ("p", (0.5, 0.7, 0.9, 1.0)),
])  # fmt: skip
def test_speedup_grows_with(name, values):
    grows = [best(**{name: value}) for value in values]
    assert grows == sorted(grows) and grows[0] < grows[-1]


def test_one_request_of_a_gqa_model_gains_nothing_and_one_of_an_mha_model_does():
    assert all(cell.speedup < 1 for cell in predictions(workload(batch=1)))
    assert best(batch=1, fields=VICUNA_7B) > 1.1
    wins = [next(b for b in range(1, 99) if best(batch=b, context=8192, fields=f) > 1) for f in (QWEN2_7B, VICUNA_7B)]
    assert wins[0] > wins[1]


def test_two_workers_halve_weights_and_kv_and_wait_for_each_other():
    one, two, device = shape_of(QWEN2_7B), shape_of(QWEN2_7B, workers=2), device_named("H100")
    assert two.kv_bytes == one.kv_bytes / 2 and two.weights.active == one.weights.active / 2
    assert two.weights.every_pass == one.weights.every_pass / 2
    parts = [pass_parts(shape, device, 1) for shape in (one, two)]
    assert parts[1]["weights"] == parts[0]["weights"] / 2 and parts[1]["launches"] > parts[0]["launches"]
    assert shape_of(QWEN2_7B, workers=7).kv_heads == 1, "a KV head cannot be split"
    with pytest.raises(ValueError, match="--tensor-parallel-size 3 does not divide the 28 heads"):
        shape_of(QWEN2_7B, workers=3)


def test_shapes_are_those_of_the_models():
    qwen = shape_of(QWEN2_7B)
    assert qwen.kv_bytes == 57344 and qwen.weights.stored == pytest.approx(15.2e9, rel=0.01)
    assert shape_of(QWEN2_7B, cache_dtype="fp8").kv_bytes == 57344 / 2
    packed = Shape.of(transformers.Qwen2Config(**QWEN2_7B, quantization_config={"quant_method": "awq", "bits": 4}))
    assert packed.weights.stored == pytest.approx(15.23e9 - 1.5 * 6.53e9, rel=0.01), (
        "embeddings and head stay as they are"
    )
    tied = shape_of(QWEN2_7B | {"tie_word_embeddings": True})
    assert tied.weights.every_pass == qwen.weights.every_pass
    assert qwen.weights.stored - tied.weights.stored == 2 * 3584 * 152064


def test_few_tokens_read_few_experts():
    moe = Shape.of(transformers.MixtralConfig(**MIXTRAL))
    assert moe.weights.stored == pytest.approx(93.4e9, rel=0.01)
    assert moe.weights.active == pytest.approx(12.7e9, rel=0.02)
    assert moe.weights.read(1) == pytest.approx(2 * moe.weights.active, rel=0.01)
    assert moe.weights.read(64) == pytest.approx(moe.weights.every_pass + moe.weights.experts)


GPT_OSS = dict(full_models.GPT_OSS, dtype="bfloat16")
GEMMA_27B = dict(full_models.MODELS["gemma-3-27b"][1], dtype="bfloat16")
GEMMA_4 = dict(full_models.MODELS["gemma-4-31b"][1], dtype="bfloat16")


def windowed(config, context=65536, batch=8, **options) -> Workload:
    return Workload(Shape.of(config, **options), device_named("H100"), batch, context, (1, 3, 5), (1024,), (0.9,))


def test_kv_of_sliding_windows_is_bounded():
    """Full layers' KV grows with the context and windowed layers' does not, in time and in memory."""
    shape = Shape.of(transformers.Gemma3TextConfig(**GEMMA_27B))
    assert (shape.layers, shape.full, shape.window) == (62, 10, 1024)
    token = 2 * 16 * 128 * 2  # bytes of a layer
    assert shape.kv_bytes == 10 * token and shape.window_bytes(10**6) == 52 * 1024 * token
    assert shape.window_bytes(100) == 52 * 100 * token
    for context in (2048, 65536):
        loads = (
            windowed(transformers.Gemma3TextConfig(**GEMMA_27B), context),
            windowed(transformers.Gemma3TextConfig(**GEMMA_27B), 2 * context),
        )
        one, two = map(plain_seconds, loads)
        assert two - one == pytest.approx(8 * context * kv_seconds(shape, loads[0].device))
        drafts = [fastest(predictions(load)).draft_ms for load in loads]
        assert drafts[0] == pytest.approx(drafts[1]), "a mask is as long, and so are the windows"
        sizes = [memory_need(load)["kv_bytes"] / 8 - shape.window_bytes(context) for load in loads]
        assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.01)


def test_a_round_reads_the_windows_of_a_request_in_each_pass(tmp_path):
    asked = windowed(transformers.Gemma3TextConfig(**GEMMA_27B))
    costs = estimate(asked.shape, asked.device, MaskShape.plan(1024, 16, 64, 16, 65536), 8, 5, asked.context)
    without = replace(costs, windows=0.0)
    assert costs.windows == pytest.approx(asked.shape.window_bytes(65536) / (0.98 * asked.device.bandwidth))
    for length in (0, 1, 5):
        more = costs.tabulated(length, 8, asked.kv) - without.tabulated(length, 8, asked.kv)
        assert more == pytest.approx(8 * costs.windows), "of requests, not of the drafts they verify"
    cost_file.save(costs, tmp_path / "costs.json")
    assert cost_file.load(tmp_path / "costs.json").windows == costs.windows


def test_layers_of_different_heads_are_counted_as_they_are():
    """Gemma-4's full layers have fewer and larger KV heads than its windowed ones."""
    shape = Shape.of(transformers.Gemma4TextConfig(**GEMMA_4))
    assert (shape.full, shape.kv_heads, shape.head_size) == (10, 4, 512)
    assert shape.kv_bytes == 10 * 2 * 4 * 512 * 2 and shape.windowed_bytes == 50 * 2 * 16 * 256 * 2
    assert shape.weights.stored == pytest.approx(61e9, rel=0.03)


def test_experts_packed_in_four_bits_stand_beside_attention_that_is_not():
    shape = Shape.of(transformers.GptOssConfig(**GPT_OSS))
    assert (shape.full, shape.windowed, shape.window) == (12, 12, 128)
    assert shape.weights.stored == pytest.approx(13.8e9, rel=0.05), "as published"
    assert shape.weights.active == pytest.approx(3.6e9, rel=0.1)


def test_a_draft_pass_of_many_requests_reads_the_experts_that_a_dense_pass_reads():
    """So that drafting saves the reading of KV and nothing else."""
    config = transformers.GptOssConfig(**GPT_OSS)
    few, many = (windowed(config, 32768, batch) for batch in (1, 64))
    assert many.shape.weights.read(64) == pytest.approx(
        many.shape.weights.every_pass + many.shape.weights.experts, rel=0.01
    )
    assert few.shape.weights.read(1) < 0.4 * many.shape.weights.read(64)
    for load in (few, many):
        best = fastest(predictions(load))
        weights = time_shares(load, best)["draft step"]["weights"] * best.draft_ms / 1e3
        read = load.shape.weights.read(load.batch) / (0.85 * load.device.bandwidth)
        assert weights == pytest.approx(read, rel=0.01)


@pytest.mark.parametrize("config, reason", [
    (transformers.Llama4TextConfig(num_hidden_layers=4), "chunked_attention layers"),
    (transformers.MistralConfig(sliding_window=64), "a sliding window of 64 tokens in every layer"),
    (transformers.Gemma3TextConfig(num_hidden_layers=6), None), (transformers.GptOssConfig(num_hidden_layers=4), None),
])  # fmt: skip
def test_a_model_is_refused_by_what_its_config_says(config, reason, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = load_config(str(tmp_path))
    if reason is None:
        return refuse_model(str(tmp_path), loaded)
    with pytest.raises(ValueError, match=reason):
        refuse_model(str(tmp_path), loaded)


def test_shares_by_position_are_the_tokens_they_add():
    assert tokens_per_step((0.5,), 2) == 1.75 and tokens_per_step((0.5, 0.25, 0.2), 2) == 1.75


@pytest.mark.parametrize("says, name", [
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("h100", "H100"), ("H100 SXM", "H100"),
    ("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("NVIDIA A100 80GB PCIe", "A100 PCIe"), ("NVIDIA L4", "L4"),
    ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("AMD Instinct MI300X", "MI300X"), ("cpu", "CPU"),
])  # fmt: skip
def test_devices_are_known_by_the_names_that_drivers_give(says, name):
    assert device_named(says).name == name


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "V100"])
def test_a_device_without_a_data_sheet_needs_its_clock(name):
    with pytest.raises(ValueError, match=f"{name} is not a GPU .* use one of B200, .*H100.*, or CPU"):
        device_named(name)
    assert device_named(name, memory_clock=877_000, bus_width=4096).bandwidth == pytest.approx(898e9, rel=0.001)


def test_what_is_assumed_of_std_is_what_std_does():
    from vllm_std.config import StdConfig
    from vllm_std.refusals import CACHE_DTYPES
    from vllm_std.roofline import shape
    from vllm_std.tools.plan import workload as planned_for

    assert (planned_for.SINK, planned_for.RECENT) == (StdConfig.sink, StdConfig.recent)
    assert tuple(shape.CACHE_BYTES) == CACHE_DTYPES


# ------------------------------------------------------------ the engine's own


def engine_config(folder: Path, **options):
    """What `for_engine` reads of a VllmConfig."""
    from vllm.config import ModelConfig

    return SimpleNamespace(
        model_config=ModelConfig(model=str(folder), skip_tokenizer_init=True, **options),
        speculative_config=SimpleNamespace(
            mask_shape=lambda block: MaskShape.plan(1024, 16, 64, block, 32000), num_speculative_tokens=5, proposals=0
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=32), parallel_config=SimpleNamespace(tensor_parallel_size=1),
        cache_config=SimpleNamespace(block_size=16, cache_dtype="auto"),
    )  # fmt: skip


def test_an_engine_gets_the_costs_of_a_plan(folder):
    engine, asked = engine_config(folder, dtype="bfloat16"), workload()
    assert Shape.of(engine.model_config) == asked.shape
    costs = for_engine(engine, "NVIDIA H100 80GB HBM3")
    assert costs.tabulated(0, 32, asked.kv) == pytest.approx(plain_seconds(asked))
    (five,) = (cell for cell in predictions(asked) if cell.gamma == 5)
    assert 1e3 * costs.tabulated(5, 32, asked.kv) == pytest.approx(five.step_ms, rel=0.01)
    assert costs.source == "estimated from the data sheet of H100"


@pytest.mark.parametrize("name, says", [("cpu", "CPU"), ("Some GPU", "an A100, for want of one of Some GPU")])
def test_an_engine_starts_on_any_device(name, says, folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    costs = for_engine(engine_config(folder), name)
    assert costs.source == f"estimated from the data sheet of {says}" and costs.tabulated(3, 32, 32 * 8192) > 0


# ------------------------------------------------------------ the command


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of which there is only the config."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_7B))
    return tmp_path


def vllm_std(*args) -> tuple[int, str]:
    """Exit code and output of the command."""
    result = CliRunner().invoke(app, ["plan", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def told(folder, *args, batch=32, context=32000) -> str:
    code, output = vllm_std("--model", folder, "--gpu", "H100", "--batch", batch, "--context", context, *args)
    assert code == 0, output
    return output


def test_the_table_names_the_best_cell_and_what_limits_it(folder):
    output = told(folder, "--acceptance", 0.9, "--gamma", "1,5", "--k", "1024,2048")
    five = next(cell for cell in predictions(workload()) if cell.gamma == 5)
    assert "on H100, 32 requests of 32,000 tokens" in output and "K = 2,048" in output
    assert f"*{five.speedup:.2f}x" in output and output.count("*") == 1
    assert '--speculative-config \'{"method": "std", "num_speculative_tokens": 5, "top_k": 1024}\'' in output
    assert "Given: each draft is accepted with probability 0.9" in output and "vllm-std acceptance" in output
    assert "which fits" in output and "KV reading is 74 %" in output and "Weights are" in output


def test_where_no_length_wins_it_says_so(folder):
    output = told(folder, batch=1)
    assert "No draft length wins here: the nearest, 1 draft over K = 512," in output and "*" not in output
    assert "Assumed: each draft is accepted with probability 0.8" in output
    short = told(folder, context=300)
    assert "No draft length wins here: a context of 300 tokens is not longer than K = 512" in short


def test_json_is_json_alone(folder):
    given = json.loads(told(folder, "--acceptance", "0.9,0.8,0.7", "--gamma", "1,3", "--k", 1024, "--json"))
    (one, three) = given["predictions"]
    assert given["best"] == three and one["speedup"] < three["speedup"] and given["memory"]["fits"] is True
    assert given["acceptance"] == [0.9, 0.8, 0.7] and given["acceptance_is"] == "given"
    plain, whole = given["plain_ms"], three["step_ms"]
    assert three["speedup"] == pytest.approx((1 + 0.9 + 0.8 + 0.7) * plain / whole)
    assert whole == pytest.approx(3 * three["draft_ms"] + three["select_ms"] + three["verify_ms"])
    assert json.loads(told(folder, "--json", batch=1))["best"] is None


def test_a_batch_that_does_not_fit_is_said_to(folder):
    output = told(folder, batch=64)
    most = json.loads(told(folder, "--json", batch=64))["memory"]["largest_batch"]
    assert f"DOES NOT FIT: of the 85.0 GB of H100 vLLM uses 78.2; the largest batch that fits is {most}." in output
    assert json.loads(told(folder, "--json", batch=most))["memory"]["fits"] is True
    assert "best:" not in output and "*" not in output and json.loads(told(folder, "--json", batch=64))["best"] is None
    assert "which fits" in told(folder, "--tensor-parallel-size", 2, batch=64)


def test_one_request_that_does_not_fit_is_said_to(folder):
    of_any_length = {**QWEN2_7B, "max_position_embeddings": 4_000_000}
    (folder / "config.json").write_text(json.dumps(of_any_length))
    assert "not one request of this context fits" in told(folder, context=2_000_000, batch=1)


@pytest.mark.parametrize(
    "rope, longest",
    [
        ({}, 32768),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 32768),
        ({"rope_type": "linear", "factor": 2.0}, 65536),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            32768,
        ),
    ],
)
def test_a_context_beyond_the_models_own_is_refused(folder, rope, longest):
    """As far as vLLM lets the model go by itself, and no further."""
    settings = {**QWEN2_7B, "max_position_embeddings": 32768, "rope_scaling": rope or None}
    (folder / "config.json").write_text(json.dumps(settings))
    assert engine_config(folder).model_config.max_model_len == longest
    told(folder, context=longest)
    code, output = vllm_std("--model", folder, "--gpu", "H100", "--batch", 1, "--context", longest + 1)
    assert code == 2 and f"--context {longest + 1} does not work" in output and f"ends at {longest} tokens" in output


def test_the_map_is_a_picture(folder, tmp_path):
    told(folder, "--k", 1024, "--gamma", 3, "--plot", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


BAD = {
    "gpu": (["--gpu", "V100"], "V100 is not a GPU whose data sheet is known here: use one of B200"),
    "model": (["--model", "EMPTY"], "EMPTY has no config that transformers can read"),
    "batch": (["--batch", 0], "--batch 0 does not work"),
    "context": (["--context", 0], "--context 0 does not work"),
    "k": (["--k", "64,512"], "--k 64 leaves no block to choose"),
    "no k": (["--k", "5 %"], "--k 5 % does not work: give whole numbers"),
    "gamma": (["--gamma", "0,1"], "--gamma 0,1 does not work"),
    "acceptance": (["--acceptance", 1.2], "--acceptance 1.2 does not work: give numbers from 0 to 1"),
    "positions": (["--acceptance", "0.9,0.8"], "--acceptance has 2 positions and --gamma asks for 7 drafts"),
    "cache": (["--kv-cache-dtype", "int4"], "--kv-cache-dtype int4 does not work with std: use auto, "),
    "workers": (["--tensor-parallel-size", 3], "--tensor-parallel-size 3 does not divide the 28 heads"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_get_one_sentence_and_exit_code_2(name, folder):
    args, says = BAD[name]
    (folder / "empty").mkdir()
    empty = str(folder / "empty")
    good = ["--model", folder, "--gpu", "H100", "--batch", 1, "--context", 9000]
    code, output = vllm_std(*good, *(empty if arg == "EMPTY" else arg for arg in args))
    assert code == 2 and says.replace("EMPTY", empty) in output and len(output.splitlines()) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_std_refuses_is_not_planned(name, tmp_path):
    architecture, fields = CONFIGS[name]
    getattr(transformers, architecture).config_class(architectures=[architecture], **fields).save_pretrained(tmp_path)
    code, output = vllm_std("--model", tmp_path, "--gpu", "H100", "--batch", 1, "--context", 9000)
    assert code == 2 and f"'std' does not support --model={tmp_path} (" in output


def test_without_matplotlib_there_is_no_map(monkeypatch, folder):
    monkeypatch.setattr("vllm_std.tools.console.find_spec", lambda name: None)
    code, output = vllm_std("--model", folder, "--gpu", "H100", "--batch", 1, "--context", 9000, "--plot", "map.png")
    assert code == 2 and "pip install 'vllm-std[bench]'" in output
