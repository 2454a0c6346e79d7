"""Mistakes that users make: each message names the argument, what it got, what is allowed, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from simple_hierarchical_transformer import CheckpointError, HierarchicalTransformer, attention

SHAPE: dict[str, Any] = {"num_tokens": 9, "dim": 4, "depth": 1, "seq_len": 8, "dim_head": 2, "heads": 2}
TWO: dict[str, Any] = {"hierarchies": (1, 4)}

# arguments that can't be built from; error; what the message says, in this order
CONSTRUCTOR: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({**TWO, "dim": (4, 4, 4)}, ValueError, ["dim", "3 values", "2 streams", "tuple of 2"]),
    ({**TWO, "heads": (1,)}, ValueError, ["heads", "1 values", "2 streams", "one value for all"]),
    ({**TWO, "window_sizes": (None, 2, 3)}, ValueError, ["window_sizes", "3 values", "order of hierarchies"]),
    ({**TWO, "hierarchical_stride": [1]}, ValueError, ["hierarchical_stride", "1 values", "2 streams"]),
    ({"hierarchies": (1, 3)}, ValueError, ["hierarchies", "power of two", "got 3", "2 and 4"]),
    ({"hierarchies": (1, 0)}, ValueError, ["hierarchies", "at least 1", "got 0"]),
    ({"hierarchies": -2}, ValueError, ["hierarchies", "at least 1", "got -2"]),
    ({"hierarchies": (1, 2.0)}, TypeError, ["hierarchies", "whole number", "2.0"]),
    ({"hierarchies": "1,4"}, TypeError, ["hierarchies", "tuple or list", "(1, 8)", "'1,4'", "str"]),
    ({**TWO, "hierarchical_stride": 4}, ValueError, ["hierarchical_stride", "factor 1", "got 4", "choose 1", "tuple"]),
    ({"window_sizes": "none"}, TypeError, ["window_sizes", "if not None", "'none'"]),
    ({"hierarchies": ()}, ValueError, ["hierarchies", "empty", "(1, 8)"]),
    ({"hierarchies": (1, 4, 4)}, ValueError, ["hierarchies", "unique", "(1, 4, 4)", "drop"]),
    (
        {**TWO, "hierarchical_stride": (1, 8)},
        ValueError,
        ["hierarchical_stride", "factor 4", "divide", "got 8", "from 1 to 4"],
    ),
    ({**TWO, "hierarchical_stride": (1, 3)}, ValueError, ["hierarchical_stride", "power of two", "got 3"]),
    ({**TWO, "predict_hierarchy": 2}, ValueError, ["predict_hierarchy", "(1, 4)", "got 2", "choose"]),
    (
        {**TWO, "predict_hierarchy": 4, "hierarchical_stride": (1, 2)},
        ValueError,
        ["predict stream", "predict_hierarchy=4", "stride 1", "got hierarchical_stride 2", "set its stride to 1"],
    ),
    (
        {**TWO, "predict_hierarchy": 4, "hierarchical_stride": (1, 2), "hierarchy_merge_all": True},
        ValueError,
        ["predict stream", "stride 1", "got hierarchical_stride 2"],
    ),
    ({"window_sizes": -1}, ValueError, ["window_sizes", "None", "0", "positive", "got -1"]),
    ({"window_sizes": 2.5}, TypeError, ["window_sizes", "whole number", "2.5"]),
    ({"dim_head": 3}, ValueError, ["dim_head", "even", "rotary", "got 3"]),
    ({"dim": 5}, ValueError, ["dim", "even", "got 5"]),
    ({"dim": "512"}, TypeError, ["dim", "whole number", "'512'", "str"]),
    ({"depth": 0}, ValueError, ["depth", "at least 1", "got 0"]),
    ({"num_tokens": True}, TypeError, ["num_tokens", "whole number", "True"]),
    ({"ff_mult": 0}, ValueError, ["ff_mult", "above 0", "got 0"]),
    ({**TWO, "recon_loss_weight": -0.1}, ValueError, ["recon_loss_weight", "at least 0", "got -0.1"]),
    ({"checkpoint_activations": 1}, TypeError, ["checkpoint_activations", "True or False", "got 1 of type int"]),
    ({**TWO, "merge_type": "mean"}, ValueError, ["merge_type", "'mlp', 'linear'", "'mean'", "choose"]),
    ({"merge_type": "linear"}, ValueError, ["merge_type='linear'", "no effect", "several hierarchies"]),
    ({**TWO, "depth": 2, "compress_after": 2}, ValueError, ["compress_after", "below depth=2", "got 2", "lower"]),
    ({"depth": 2, "compress_after": 1}, ValueError, ["compress_after=1", "no effect", "several hierarchies"]),
    ({"ngram_sizes": 3}, TypeError, ["ngram_sizes", "tuple or list", "(2, 3, 4)", "got 3"]),
    ({"ngram_sizes": (1, 2)}, ValueError, ["ngram_sizes", "at least 2", "got 1"]),
    ({"ngram_sizes": (2, 2)}, ValueError, ["ngram_sizes", "differ", "(2, 2)", "drop"]),
    ({"ngram_table_size": 64}, ValueError, ["ngram_table_size=64", "no effect", "ngram_sizes"]),
    ({"ngram_sizes": (2,), "ngram_table_size": 0}, ValueError, ["ngram_table_size", "at least 1", "got 0"]),
    ({"use_flash_attn": "yes"}, TypeError, ["use_flash_attn", "True or False", "'yes'"]),
    ({"prophet_loss_weight": 0.1}, ValueError, ["prophet_loss_weight=0.1", "no effect", "factor above 1", "leave"]),
    ({**TWO, "rq_codebook_size": 16}, ValueError, ["rq_codebook_size=16", "no effect", "prophet_loss_use_quantized"]),
    ({**TWO, "num_rollouts": 2}, ValueError, ["num_rollouts=2", "no effect", "next_latent_loss_weight > 0"]),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "next_latent_loss_type": "l1"},
        ValueError,
        ["next_latent_loss_type", "mse_and_cosine_sim", "callable", "got 'l1'"],
    ),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "num_rollouts": 2, "rollout_weights": (1.0,)},
        ValueError,
        ["rollout_weights", "got 1", "num_rollouts=2"],
    ),
    (
        {**TWO, "next_latent_loss_weight": (0.1, 0.0), "chunk_summarizers": (None, nn.Identity())},
        ValueError,
        ["chunk_summarizers", "factor 4", "next_latent_loss_weight is 0", "give it a weight"],
    ),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "chunk_summarizers": "mean"},
        TypeError,
        ["chunk_summarizers", "None or modules", "str"],
    ),
    ({"recon_loss_weight": 5}, ValueError, ["recon_loss_weight=5", "no effect", "factor above 1"]),
    ({"hierarchical_ar_loss_weight": 5}, ValueError, ["hierarchical_ar_loss_weight=5", "no effect"]),
    ({"hierarchy_merge_all": True}, ValueError, ["hierarchy_merge_all=True", "no effect", "several hierarchies"]),
    ({"predict_use_all_hierarchy": True}, ValueError, ["predict_use_all_hierarchy=True", "no effect", "several"]),
    (
        {**TWO, "hierarchy_merge_all": True, "recon_loss_weight": 0, "hierarchical_ar_loss_weight": 0},
        ValueError,
        ["hierarchy_merge_all=True", "no effect", "depth > 1"],
    ),
    ({"window_sizes": 0, "use_xpos": True}, ValueError, ["use_xpos=True", "no effect", "window other than 0"]),
    ({"window_sizes": 0, "use_flash_attn": True}, ValueError, ["use_flash_attn=True", "no effect"]),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "dynamics_num_layers": 1, "dynamics_hidden_dim": 7},
        ValueError,
        ["dynamics_hidden_dim=7", "no effect", "dynamics_num_layers > 1"],
    ),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "rollout_weights": (3.0,)},
        ValueError,
        ["rollout_weights=(3.0,)", "no effect", "num_rollouts > 1"],
    ),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "dynamic_rollout_loss_weight": False},
        ValueError,
        ["dynamic_rollout_loss_weight=False", "no effect", "num_rollouts > 1"],
    ),
    (
        {**TWO, "next_latent_loss_weight": 0.1, "num_rollouts": 2, "rollout_weights": 1.0},
        TypeError,
        ["rollout_weights", "tuple or list", "1.0"],
    ),
    ({"ignore_index": 2**64}, ValueError, ["ignore_index", "at most", str(2**64)]),
    ({"ignore_index": 0.5}, TypeError, ["ignore_index", "whole number", "0.5"]),
    ({"typo": 1}, TypeError, ["typo"]),
]


def says(words: list[str]) -> str:
    return ".*".join(map(re.escape, words))


@pytest.mark.parametrize(("arguments", "error", "words"), CONSTRUCTOR, ids=lambda value: None)
def test_a_model_that_makes_no_sense_is_refused(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error, match=says(words)):
        HierarchicalTransformer(**SHAPE | arguments)


@pytest.fixture
def model() -> HierarchicalTransformer:
    torch.manual_seed(0)
    return HierarchicalTransformer(**SHAPE, **TWO)


IDS = torch.tensor([[1, 2, 3, 4]])
Call = Callable[[HierarchicalTransformer], Any]
CALLS: list[tuple[Call, type[Exception], list[str]]] = [
    (lambda m: m(IDS.float()), TypeError, ["ids", "integer", "float32", "ids.long()"]),
    (lambda m: m(IDS.bool()), TypeError, ["ids", "integer", "bool"]),
    (lambda m: m([[1, 2]]), TypeError, ["ids", "tensor", "list", "torch.tensor"]),
    (lambda m: m("The"), TypeError, ["ids", "tensor", "str", "torch.tensor([list(text.encode())])"]),
    (lambda m: m.generate(b"The", 3), TypeError, ["prompt", "tensor", "bytes", "torch.tensor([list(text)])"]),
    (lambda m: m(IDS, IDS), TypeError, ["return_loss", "True or False", "Tensor"]),
    (lambda m: m(IDS[0]), ValueError, ["ids", "(batch, length)", "(4,)", "ids[None]"]),
    (lambda m: m(IDS[None]), ValueError, ["ids", "(batch, length)", "(1, 1, 4)"]),
    (lambda m: m(IDS[:, :0]), ValueError, ["ids", "empty", "(1, 0)", "at least one"]),
    (lambda m: m(IDS[:0]), ValueError, ["ids", "empty", "(0, 4)"]),
    (lambda m: m(IDS.repeat(1, 3)), ValueError, ["ids", "12 tokens", "seq_len=8", "shorten"]),
    (lambda m: m(IDS.repeat(1, 3), return_loss=True), ValueError, ["12 tokens", "seq_len=8", "plus one token"]),
    (lambda m: m(IDS + 6), ValueError, ["ids[0, 2] is 9", "0 to 8", "ignore_index=-100", "num_tokens"]),
    (lambda m: m(IDS - 2), ValueError, ["ids[0, 0] is -1", "0 to 8"]),
    (lambda m: m(IDS[:, :1], return_loss=True), ValueError, ["length 1", "return_loss=True", "at least 2"]),
    (
        lambda m: m(IDS, return_loss=True, state=m.init_state(1)),
        ValueError,
        ["return_loss=True", "state", "without a state"],
    ),
    (
        lambda m: m(IDS, return_loss=True, return_hierarchical_embeds=True),
        ValueError,
        ["return_loss and return_hierarchical_embeds", "one thing", "choose"],
    ),
    (
        lambda m: m(IDS, return_random_proj_quantize_ids=True),
        ValueError,
        ["return_random_proj_quantize_ids", "prophet_loss_use_quantized=True", "build it"],
    ),
    (lambda m: m(IDS, return_loss="yes"), TypeError, ["return_loss", "True or False", "'yes'"]),
    (lambda m: m(IDS, state=m.init_state(2)), ValueError, ["state", "batch size 2", "needs 1", "init_state(1)"]),
    (lambda m: m(IDS, state={}), TypeError, ["state", "init_state", "dict"]),
    (
        lambda m: m(IDS, state=HierarchicalTransformer(**SHAPE, **TWO).init_state(1)),
        ValueError,
        ["state", "another model", "this model's init_state"],
    ),
    (lambda m: m.init_state(0), ValueError, ["batch_size", "at least 1", "got 0"]),
    (lambda m: m.init_state(1, max_rewind=-1), ValueError, ["max_rewind", "at least 0", "got -1"]),
    (lambda m: m.init_state(1).rewind(1), ValueError, ["num_tokens", "at most 0", "seen so far", "got 1", "fewer"]),
    (lambda m: m.init_state(1).rewind(0.5), TypeError, ["num_tokens", "whole number", "0.5"]),
    (lambda m: m.generate(IDS[:, :0], 3), ValueError, ["prompt", "empty", "at least one"]),
    (lambda m: m.generate(IDS + 6, 3), ValueError, ["prompt[0, 2] is 9", "0 to 8"]),
    (lambda m: m.generate(IDS[0], 3), ValueError, ["prompt", "(batch, length)", "prompt[None]"]),
    (lambda m: m.generate(IDS, -1), ValueError, ["seq_len", "number of tokens to generate", "at least 0", "got -1"]),
    (lambda m: m.generate(IDS, 3.0), TypeError, ["seq_len", "whole number", "3.0"]),
    (lambda m: m.generate(IDS, 3, temperature=-1), ValueError, ["temperature", "1:", "0:", "at least 0", "got -1"]),
    (lambda m: m.generate(IDS, 3, filter_thres=1.5), ValueError, ["filter_thres", "0 to 1", "got 1.5", "tenth"]),
    (lambda m: m.generate(IDS, 3, filter_thres="a"), TypeError, ["filter_thres", "number", "'a'"]),
    (lambda m: m.generate(IDS, 3, temperature=10**400), ValueError, ["temperature", "finite number", "lower it"]),
    (lambda m: m.generate(IDS, 3, top_k=0), ValueError, ["top_k", "at least 1", "got 0"]),
    (lambda m: m.generate(IDS, 3, top_p=0), ValueError, ["top_p", "above 0", "got 0"]),
    (lambda m: m.generate(IDS, 3, top_p=1.5), ValueError, ["top_p", "at most 1", "got 1.5"]),
    (lambda m: m.generate(IDS, 3, min_p=2), ValueError, ["min_p", "from 0 to 1", "got 2"]),
    (lambda m: m.generate(IDS, 3, repetition_penalty=0), ValueError, ["repetition_penalty", "above 0", "got 0"]),
    (
        lambda m: m.generate(IDS, 3, filter_thres=0.9, top_p=0.9),
        ValueError,
        ["filter_thres must stand alone", "contradicts top_p=0.9", "leave"],
    ),
    (lambda m: m.generate([], 3), ValueError, ["prompt", "empty list", "at least one"]),
    (lambda m: m.generate([IDS[0], IDS[0, :0]], 3), ValueError, ["prompt[1]", "empty"]),
    (lambda m: m.generate([IDS], 3), ValueError, ["prompt[0]", "(length,)", "got (1, 4)", "list(prompt)"]),
    (
        lambda m: m.generate(["The"], 3),
        TypeError,
        ["prompt[0]", "tensor", "str", "torch.tensor([list(text.encode())])"],
    ),
    (lambda m: m.generate([IDS[0], IDS[0].float()], 3), TypeError, ["prompt[1]", "integer", "float32"]),
    (lambda m: m.generate([IDS[0], IDS[0] + 6], 3), ValueError, ["prompt[1, 2] is 9", "0 to 8"]),
    (lambda m: m.generate(IDS, 3, prompt_lens=[2, 2]), ValueError, ["prompt_lens", "2 lengths", "1 prompt", "each"]),
    (lambda m: m.generate(IDS, 3, prompt_lens=[0]), ValueError, ["prompt_lens[0]", "at least 1", "got 0"]),
    (lambda m: m.generate(IDS, 3, prompt_lens=[5]), ValueError, ["prompt_lens[0]", "at most 4", "got 5"]),
    (lambda m: m.generate(IDS, 3, prompt_lens=3), TypeError, ["prompt_lens", "one length per prompt", "got 3"]),
    (lambda m: m.generate(IDS, 3, prompt_lens=[2.5]), TypeError, ["prompt_lens[0]", "whole number", "2.5"]),
    (lambda m: m.generate([IDS[0]], 3, prompt_lens=[2]), ValueError, ["prompt_lens", "list of prompts", "leave"]),
    (lambda m: m.generate(IDS, 3, eos_token_id=9), ValueError, ["eos_token_id", "at most 8", "got 9"]),
    (
        lambda m: m.generate(IDS, 3, eos_token_id="."),
        TypeError,
        ["eos_token_id", "list of several", "0 to 8"],
    ),
    (lambda m: m.generate(IDS, 3, eos_token_id={2, 3}), TypeError, ["eos_token_id", "list of several", "got {2, 3}"]),
    (lambda m: m.generate(IDS, 3, prefill_chunk=0), ValueError, ["prefill_chunk", "at least 1", "got 0"]),
    (lambda m: m.generate(IDS, 3, generator=7), TypeError, ["generator", "torch.Generator", "got 7"]),
    (lambda m: m.generate(IDS, 3, backend="fast"), ValueError, ["backend", "auto", "eager", "compile", "got 'fast'"]),
    (lambda m: m.generate(IDS, 3, backend="cuda_graphs"), ValueError, ["cuda_graphs", "CUDA", "cpu", "model.cuda()"]),
    (lambda m: m.generate(IDS, 3, state=m.init_state(2)), ValueError, ["state", "batch size 2", "needs 1"]),
    (
        lambda m: m.generate(IDS, 3, state=m.init_state(1, max_rewind=0), backend="compile"),
        ValueError,
        ["state has max_rewind=0", "backend='compile' needs max_rewind=1", "init_state(1, max_rewind=1)"],
    ),
    (lambda m: m.generate(IDS, 3, return_logprobs=1), TypeError, ["return_logprobs", "True or False", "got 1"]),
    (
        lambda m: m.generate([*IDS.repeat(2, 1), IDS[0, :2]], 3, return_state=True),
        ValueError,
        ["return_state=True", "one length", "alone"],
    ),
    (
        lambda m: m.generate(IDS, 3, return_acceptance_length=True),
        ValueError,
        ["return_acceptance_length=True", "no effect", "speculative=True"],
    ),
    (
        lambda m: m.generate(IDS, 3, speculative=True),
        ValueError,
        ["prophet heads", "hasn't", "prophet_loss_weight is 0", "train it with prophet_loss_weight=0.1"],
    ),
    (lambda m: m.init_state(1, drafts=True), ValueError, ["prophet heads", "prophet_loss_weight is 0"]),
    (lambda m: m(IDS, logits_to_keep=0), ValueError, ["logits_to_keep", "at least 1", "got 0"]),
    (
        lambda m: m(IDS, return_loss=True, logits_to_keep=1),
        ValueError,
        ["logits_to_keep", "no effect", "return_loss=True"],
    ),
    (lambda m: m.save_pretrained(__file__), FileExistsError, ["is a file", "folder"]),
]


@pytest.mark.parametrize(("call", "error", "words"), CALLS, ids=lambda value: None)
def test_a_call_that_makes_no_sense_is_refused(
    model: HierarchicalTransformer, call: Call, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error, match=says(words)):
        call(model)


SPECULATIVE: list[tuple[Call, list[str]]] = [
    (lambda m: m.generate(IDS.repeat(2, 1), 3), ["one text at a time", "2 prompts", "alone"]),
    (lambda m: m.generate(IDS, 3, backend="compile"), ["backend='compile'", "single tokens", "choose one"]),
    (
        lambda m: m.generate(IDS, 3, state=m.init_state(1)),
        ["max_rewind=16, drafts=False", "needs max_rewind=4, drafts=True", "init_state(1, max_rewind=4, drafts=True)"],
    ),
    (
        lambda m: m.generate(IDS, 3, state=m.init_state(1, max_rewind=2, drafts=True)),
        ["max_rewind=2, drafts=True", "needs max_rewind=4"],
    ),
]


@pytest.mark.parametrize(("call", "words"), SPECULATIVE, ids=lambda value: None)
def test_speculation_that_makes_no_sense_is_refused(call: Call, words: list[str]) -> None:
    model = HierarchicalTransformer(**SHAPE, **TWO, prophet_loss_weight=0.1)
    model.generate = partial(model.generate, speculative=True)
    with pytest.raises(ValueError, match=says(words)):
        call(model)


def test_a_model_that_predicts_codes_can_not_draft() -> None:
    model = HierarchicalTransformer(**SHAPE, **TWO, prophet_loss_weight=0.1, prophet_loss_use_quantized=True)
    with pytest.raises(ValueError, match=says(["prophet_loss_use_quantized=True: codes", "build and train"])):
        model.generate(IDS, 3, speculative=True)


def test_a_refused_call_leaves_the_state_as_it_was(model: HierarchicalTransformer) -> None:
    state = model.init_state(1)
    expected = model(IDS, state=state.clone())
    for wrong in (IDS + 6, IDS.float(), IDS.repeat(2, 1)):
        with pytest.raises((ValueError, TypeError)):
            model(wrong, state=state)
    assert state.position == 0
    assert torch.equal(model(IDS, state=state), expected)


def test_a_call_that_fails_halfway_leaves_the_state_as_it_was(model: HierarchicalTransformer) -> None:
    """A kernel that is missing, or memory that runs out, shows in the middle of a call; the call can be repeated."""
    state = model.init_state(1)
    model(IDS[:, :2], state=state)
    expected, nbytes = model(IDS, state=state.clone()), state.nbytes

    def fail(*_: Any) -> None:
        raise MemoryError

    handle = model.to_logits.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model(IDS, state=state)
    handle.remove()
    assert (state.position, state.nbytes) == (2, nbytes)
    assert torch.equal(model(IDS, state=state), expected)


def test_more_than_the_state_holds_can_not_be_taken_back(model: HierarchicalTransformer) -> None:
    state = model.init_state(1, max_rewind=2)
    model(IDS, state=state)
    with pytest.raises(ValueError, match=says(["num_tokens", "at most 2", "max_rewind is 2", "got 3", "clone"])):
        state.rewind(3)
    state.rewind(2)
    assert state.position == 2


def test_a_state_of_another_type_is_refused(model: HierarchicalTransformer) -> None:
    state = model.init_state(1)
    with pytest.raises(ValueError, match=says(["state", "float32", "needs", "float64", "init_state(1)"])):
        model.double()(IDS, state=state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_on_another_device_is_refused(model: HierarchicalTransformer) -> None:
    state = model.init_state(1)
    with pytest.raises(ValueError, match=says(["state", "cpu", "needs", "cuda"])):
        model.cuda()(IDS.cuda(), state=state)


def test_merges_can_not_be_switched_off_halfway(model: HierarchicalTransformer) -> None:
    state = model.init_state(1)
    model(IDS, state=state)
    with pytest.raises(ValueError, match=says(["ablate_hierarchical_merge=True", "begun with False", "same"])):
        model(IDS, state=state, ablate_hierarchical_merge=True)


def test_only_fused_kernels_means_only_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fused kernel, use_flash_attn=True says so instead of quietly taking another path."""
    monkeypatch.setattr(attention, "FUSED_KERNELS", [SDPBackend.CUDNN_ATTENTION])  # which no CPU has
    monkeypatch.setattr(attention, "is_for_blockwise", lambda *_: False)
    fused = HierarchicalTransformer(**SHAPE, **TWO, use_flash_attn=True)
    with pytest.raises(ValueError, match=says(["use_flash_attn=True", "no fused", "float32 on cpu", "None"])):
        fused(IDS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_fused_kernel_for_float64_on_cuda() -> None:
    fused = HierarchicalTransformer(**SHAPE, **TWO, use_flash_attn=True).double().cuda()
    with pytest.raises(ValueError, match=says(["use_flash_attn=True", "no fused", "float64 on cuda", "float16"])):
        fused(IDS.cuda())


def test_own_summarizers_and_losses_of_the_wrong_shape_are_refused() -> None:
    arguments = {**SHAPE, **TWO, "next_latent_loss_weight": (0.0, 0.1)}
    wrong_summary = HierarchicalTransformer(**arguments, chunk_summarizers=(None, nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=says(["chunk_summarizers", "(1, 3, 3)", "needs (1, 3, 4)"])):
        wrong_summary(IDS, return_loss=True)
    wrong_loss = HierarchicalTransformer(**arguments, next_latent_loss_type=nn.MSELoss())
    with pytest.raises(ValueError, match=says(["next_latent_loss_type", "per feature", "got ()", "reduction='none'"])):
        wrong_loss(torch.tensor([[1, 2, 3, 4, 5, 6]]), return_loss=True)


# saved models

Damage = Callable[[Path], Any]


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def take_weights_of(**arguments: Any) -> Damage:
    def damage(folder: Path) -> None:
        HierarchicalTransformer(**SHAPE | arguments).save_pretrained(folder / "other")
        (folder / "other" / "model.safetensors").rename(folder / "model.safetensors")

    return damage


DAMAGES: list[tuple[Damage, list[str]]] = [
    (lambda f: (f / "config.json").unlink(), ["config.json", "missing", "save_pretrained wrote", "copy"]),
    (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "missing", "copy the folder again"]),
    (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON", "save it again"]),
    (lambda f: (f / "config.json").write_text("[]"), ["config.json", "no model configuration"]),
    (lambda f: (f / "model.safetensors").write_bytes(b""), ["model.safetensors", "damaged", "copy the folder"]),
    (edit_config(lambda c: c["model"].update(depth=2)), ["config.json", "checksum", "changed or damaged"]),
    (edit_config(lambda c: c.update(format_version=99)), ["config.json", "version 99 is not 1", "newer version"]),
    (take_weights_of(hierarchies=(1, 4), dim=8), ["model.safetensors", "another configuration", "copy"]),
    (take_weights_of(hierarchies=(1, 4), heads=1, dim_head=4), ["another configuration than config.json"]),
    (take_weights_of(hierarchies=(1, 4), hierarchical_stride=(1, 4)), ["another configuration than config.json"]),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=lambda value: None)
def test_a_damaged_model_folder_is_refused(
    model: HierarchicalTransformer, tmp_path: Path, damage: Damage, words: list[str]
) -> None:
    model.save_pretrained(tmp_path)
    HierarchicalTransformer.from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=says(words)):
        HierarchicalTransformer.from_pretrained(tmp_path)


def test_a_folder_that_holds_the_folder_of_a_model_is_refused(model: HierarchicalTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=says(["folder of a training run", "give", "model"])):
        HierarchicalTransformer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=says(["a file, not a folder", "give the folder"])):
        HierarchicalTransformer.from_pretrained(tmp_path / "model" / "model.safetensors")


def test_an_argument_that_does_not_exist_is_no_argument_of_loading(
    model: HierarchicalTransformer, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says(["no argument window_size", "seq_len, window_sizes"])):
        HierarchicalTransformer.from_pretrained(tmp_path, window_size=3)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says(["nowhere", "no such folder", "save_pretrained"])):
        HierarchicalTransformer.from_pretrained(tmp_path / "nowhere")


def test_thirty_mistakes_and_more_are_tried() -> None:
    assert len(CONSTRUCTOR) + len(CALLS) + len(DAMAGES) >= 30
