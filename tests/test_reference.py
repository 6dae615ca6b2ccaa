"""The reference against transformers' own greedy decoding, and the vLLM path against the reference, in float32.

Everything is compared for equality. Scores of two blocks may tie to within float32 rounding, and then either block is
a right choice; so what differs is shown with its scores, and differences below TIE are none.
"""

import itertools

import pytest
import torch
from helpers import SIGN_MODEL, greedy, speculator_of, std, token_prompts
from reference import POLICIES, Options, Reference, Round, paged_attention
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from vllm_std.tools.acceptance.policies import POLICIES as LAB
from vllm_std.tools.demo.rope_index import original_rope_index
from vllm_std.tools.demo.sign_video import SignVideo

BLOCK, GAMMA, TOP_K, RECENT, TOKENS = 32, 3, 192, 40, 40
PROMPTS = token_prompts([490, 773], seed=7)
TIE = 1e-5  # of the greater score
MODELS = ("llama", "qwen3")


def load(folder, model_class=AutoModelForCausalLM):
    return model_class.from_pretrained(folder, dtype=torch.float32)


def tensors(prompt: dict) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([prompt["prompt_token_ids"]])}


def options(selection="exact", **given) -> Options:
    return Options(
        **dict(block_size=BLOCK, gamma=GAMMA, top_k=TOP_K, sink=1, recent=RECENT, selection=selection) | given
    )


# ------------------------------------------------------------ the reference and transformers


@pytest.fixture(scope="module", params=MODELS)
def generated(request, models):
    """A model, a prompt, and the tokens that transformers' own greedy decoding gives."""
    model, inputs = load(models(request.param)), tensors(PROMPTS[0])
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return model, inputs, out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("selection", POLICIES)
@pytest.mark.unit
def test_tokens_are_those_of_transformers(generated, selection):
    model, inputs, expected = generated
    decoded = Reference(model, options(selection)).decode(inputs, TOKENS)
    assert decoded.tokens == expected
    assert 0 < decoded.acceptance < 1
    for done in decoded.rounds:
        assert len(done.chosen) == 2, "layers"
        assert all(len(blocks) == 3 and 1 <= min(blocks) < max(blocks) < 16 for blocks in done.chosen)


@pytest.mark.unit
def test_a_mask_that_keeps_everything_drafts_what_the_target_says(generated):
    model, inputs, expected = generated
    reference = Reference(model, options(top_k=1024))
    decoded = reference.decode(inputs, TOKENS)
    assert decoded.tokens == reference.dense(inputs, TOKENS) == expected
    assert decoded.acceptance == 1.0


@pytest.mark.unit
def test_the_papers_mask_keeps_what_left_the_recent_window_since_the_prompt(generated):
    """Block 14 is the first to leave it; in the end such blocks take all there is to choose."""
    model, inputs, _ = generated
    rounds = Reference(model, options("text")).decode(inputs, 165).rounds
    first, last = rounds[0].chosen[0], rounds[-1].chosen[0]
    assert max(first) < 14 and last == [16, 17, 18]
    assert all(done.chosen[0] == first for done in rounds if done.length < 15 * BLOCK + RECENT)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("n, masked", [(1, True), (1, False), (4, False)])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers has no CPU path")
def test_paged_attention_of_xformers(block_size, n, masked):
    """float16 against torch in float32, over some blocks or all of them."""
    pytest.importorskip("xformers")
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, h, m, 64, generator=generator).half().cuda() for h, m in ((6, n), (2, 333), (2, 333))]
    last = 332 // block_size
    kept = [0, last] if masked else list(range(last + 1))
    out = paged_attention(*tensors, kept, block_size, 0.125)
    blocks = torch.tensor([block in kept for block in range(last + 1)])
    visible = blocks.repeat_interleave(block_size)[:333] & torch.ones(n, 333, dtype=torch.bool).tril(333 - n)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.float() for x in tensors), attn_mask=visible.cuda(), scale=0.125, enable_gqa=True
    )
    assert torch.allclose(out.float(), dense, atol=2e-3)


# ------------------------------------------------------------ the vLLM path and the reference


class Recorder:
    """What the vLLM path does for one request, round by round; chosen: [rounds][layers] block indices."""

    def __init__(self, llm, monkeypatch):
        self.chosen, self.drafts, self.accepted = [], [], []
        self.speculator = speculator_of(llm)
        plain = self.speculator._round

        def round(inputs):
            num_sampled = int(inputs.num_sampled[0])
            drafts = plain(inputs)
            if num_sampled:  # else in the middle of the prompt
                self.see(num_sampled, drafts[0].tolist())
            return drafts

        monkeypatch.setattr(self.speculator, "_round", round)

    def see(self, num_sampled: int, drafts: list[int]) -> None:
        if self.drafts:
            self.accepted.append(num_sampled - 1)
        owned = self.speculator.block_tables.input_block_tables[0][0].tolist()
        sink, top = self.speculator.std.selector.mask.sink, self.speculator.std.selector.mask.top
        tables = self.speculator.std.selector.tables[:, 0, sink : sink + top].tolist()
        self.chosen.append([[owned.index(block) for block in table] for table in tables])
        self.drafts.append(drafts)


def differences(mine: Round, chosen: list[list[int]]) -> list[tuple]:
    """(layer, blocks only one of the two has chosen, their scores), ties left out."""
    found = []
    for layer, (ours, theirs) in enumerate(zip(mine.chosen, chosen)):
        blocks = sorted(set(ours) ^ set(theirs))
        scores = [mine.scores[layer][block].item() for block in blocks]
        if len(ours) != len(theirs) or (blocks and max(scores) - min(scores) > TIE * max(scores)):
            found.append((layer, blocks, scores))
    return found


def check(llm, monkeypatch, prompt: dict, reference: Reference, inputs: dict, tokens: int = TOKENS) -> None:
    """The same tokens, and in each round the same blocks, drafts and accepted length."""
    speculator_of(llm).std.selector.change(LAB[reference.options.selection], top_k=TOP_K)
    seen = Recorder(llm, monkeypatch)
    (answer,) = greedy(llm, [prompt], tokens)
    expected = reference.decode(inputs, tokens)
    for index, (mine, chosen) in enumerate(zip(expected.rounds, seen.chosen)):
        assert not differences(mine, chosen), f"round {index}"
    assert [mine.drafts for mine in expected.rounds] == seen.drafts[: len(expected.rounds)]
    assert [mine.accepted for mine in expected.rounds] == seen.accepted[: len(expected.rounds)]
    assert answer == expected.tokens


@pytest.mark.parametrize("name, selection", list(itertools.product(MODELS, POLICIES)))
def test_vllm_drafts_as_the_reference_does(engines, models, monkeypatch, name, selection):
    """Prompts in chunks of 256 tokens; the last chunk holds all observation queries."""
    llm = engines(
        models(name), std(top_k=TOP_K, recent=RECENT), enable_prefix_caching=False, max_num_batched_tokens=256
    )
    reference = Reference(load(models(name)), options(selection))
    for prompt in PROMPTS:
        with monkeypatch.context() as patch:
            check(llm, patch, prompt, reference, tensors(prompt))


@pytest.fixture(scope="module")
def video():
    """The bundled trained model in transformers, a vLLM prompt of 1,080 visual tokens, and the same as tensors."""
    model = load(SIGN_MODEL, AutoModelForImageTextToText)
    model.base_model.get_rope_index = original_rope_index
    film = SignVideo(scenes=60, seed=3)
    prompt = film.prompt(film.ask("follow", sentences=4)["question"])
    frames = prompt["multi_modal_data"]["video"][0][0]
    processor = AutoProcessor.from_pretrained(SIGN_MODEL)
    return model, prompt, dict(processor(text=[prompt["prompt"]], videos=[frames], return_tensors="pt"))


@pytest.mark.parametrize("selection", POLICIES)
def test_vllm_drafts_on_a_video_as_the_reference_does(engines, monkeypatch, video, selection):
    model, prompt, inputs = video
    room = dict(max_model_len=2048, max_num_batched_tokens=2048, enable_prefix_caching=False)
    llm = engines(SIGN_MODEL, std(top_k=TOP_K, recent=RECENT), **room)
    check(llm, monkeypatch, prompt, Reference(model, options(selection)), inputs, tokens=80)
