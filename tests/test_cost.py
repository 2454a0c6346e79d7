"""What a model is said to cost is what it costs: counted, measured, and differentiated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configurations import SEEDS, build, examples, model_arguments, stream_arguments
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simple_hierarchical_transformer import HierarchicalTransformer, cli, cost
from simple_hierarchical_transformer.attention import band
from simple_hierarchical_transformer.config import StreamConfig
from simple_hierarchical_transformer.cost import receptive_field, visible_pairs

SMALL: dict[str, Any] = {
    "num_tokens": 300, "dim": (16, 32), "depth": 2, "heads": 2, "dim_head": 8, "seq_len": 64, "hierarchies": (1, 4),
    "hierarchical_stride": (1, 2), "window_sizes": (8, None),
}  # fmt: skip


def on_meta(arguments: dict[str, Any]) -> HierarchicalTransformer:
    with torch.device("meta"):
        return HierarchicalTransformer(**arguments)


# multiply-adds


def attend_for_nothing(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """In place of attention, without a product: what torch counts of it depends on the kernel it takes."""
    return q + k.mean(dim=-2, keepdim=True) + v.mean(dim=-2, keepdim=True)


def count_cross_entropy(x: Any, weight: Any, *rest: Any, **options: Any) -> int:
    """Of rows (n, d) and a head (v, d): the logits, and the gradients of both."""
    return 3 * 2 * x[0] * x[1] * weight[0]


CROSS_ENTROPY = {torch.ops.simple_hierarchical_transformer.linear_cross_entropy: count_cross_entropy}


def count_flops(model: HierarchicalTransformer, seq_len: int, training: bool) -> int:
    """What torch counts in one call on one sequence, and of attention two flops for each product, by a loop."""
    ids = torch.zeros(1, seq_len + training, dtype=torch.long, device=model.device)
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False, custom_mapping=CROSS_ENTROPY) as mode:
        patch.setattr(F, "scaled_dot_product_attention", attend_for_nothing)
        if training:
            model(ids, return_loss=True)[0].backward()
        else:
            with torch.no_grad():
                model(ids)
    attention = 0
    for i, s in enumerate(model.config.streams):
        reach = s.reach(model.seq_len) if s.window_size != 0 else 0
        if reach:
            tokens = range(-(-seq_len // s.stride))
            pairs = sum(min(token // s.phase_groups, reach) + 1 for token in tokens)
            attention += model.config.depth_of(i) * pairs * 2 * 2 * s.heads * s.dim_head
    passes = 3 + model.config.checkpoint_activations if training else 1
    return mode.get_total_flops() + passes * attention


def disagreement(model: HierarchicalTransformer, seq_len: int, *, training: bool = False) -> float:
    counted = count_flops(model, seq_len, training)
    return abs(model.flops(seq_len, training=training).total - counted) / counted


@st.composite
def countable(draw: st.DrawFn) -> dict[str, Any]:
    """All configurations, with attention that takes no other kernel than the one that is replaced."""
    # a vocabulary larger than the text, so that no product is looked up in a table
    arguments = draw(model_arguments()) | {"num_tokens": draw(st.integers(120, 300))}
    return {name: value for name, value in arguments.items() if name != "use_flash_attn"}


@examples(quick=50, slow=300)
@given(data=st.data(), arguments=countable())
def test_flops_are_what_torch_counts(data: st.DataObject, arguments: dict[str, Any]) -> None:
    assert disagreement(on_meta(arguments), data.draw(st.integers(1, arguments["seq_len"]))) < 0.01


@examples(quick=50, slow=300)
@given(data=st.data(), arguments=countable())
def test_flops_of_training_are_what_torch_counts(data: st.DataObject, arguments: dict[str, Any]) -> None:
    seq_len = data.draw(st.integers(1, arguments["seq_len"]))
    # not on the meta device, for which there is no autocast to turn off
    assert disagreement(HierarchicalTransformer(**arguments), seq_len, training=True) < 0.01


def test_a_count_that_forgets_strides_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement(on_meta(SMALL), 60) < 0.01
    monkeypatch.setattr(cost, "stream_length", lambda stream, seq_len: seq_len)
    assert disagreement(on_meta(SMALL), 60) > 0.1


@given(tokens=st.integers(0, 60), groups=st.sampled_from([1, 2, 4, 8]), reach=st.integers(1, 70))
def test_pairs_are_those_that_the_mask_shows(tokens: int, groups: int, reach: int) -> None:
    rows = [len(range(phase, tokens, groups)) for phase in range(groups)]
    seen = sum(int(band(m, m, 0, reach, torch.device("cpu")).sum()) for m in rows)
    assert visible_pairs(tokens, groups, reach) == seen


def test_work_per_token_is_that_of_the_streams_own_rate() -> None:
    model = on_meta({**SMALL, "dim": 16, "hierarchies": (1, 8), "hierarchical_stride": (1, 8)})
    share = {(part, stream): amount for part, stream, amount in model.flops()}
    assert share["feedforward", 1] == 8 * share["feedforward", 8]


# parameters and cache


@examples(quick=30, slow=200)
@given(arguments=model_arguments())
def test_every_parameter_and_every_byte_of_cache_has_its_place(arguments: dict[str, Any]) -> None:
    model = HierarchicalTransformer(**arguments)
    parameters, cache = model.num_parameters(), model.describe().cache_bytes
    assert parameters.total == int(parameters) == sum(p.numel() for p in model.parameters())
    assert cache.total == model.init_state(1).nbytes
    for breakdown in (parameters, cache):
        assert sum(breakdown.by_part().values()) == sum(breakdown.by_stream().values()) == breakdown.total
        assert set(breakdown.by_stream()) <= {None, *arguments["hierarchies"]}
    unbuilt = on_meta(arguments)
    assert unbuilt.num_parameters() == parameters
    assert unbuilt.describe().cache_bytes == cache


def test_bytes_follow_the_type() -> None:
    single, half = on_meta(SMALL).describe(), on_meta(SMALL).to(torch.bfloat16).describe()
    assert single.cache_bytes == half.cache_bytes.times(2, "bytes")
    assert single.activation_bytes == half.activation_bytes.times(2, "bytes")
    assert (single.dtype, half.dtype) == ("float32", "bfloat16")


# activations


def layer_bytes(arguments: dict[str, Any], batch_size: int) -> int:
    """What one layer more or less makes of `saved_bytes`, of a model that keeps all."""
    models = [HierarchicalTransformer(**arguments | {"depth": depth}) for depth in (2, 1)]
    more, less = (saved_bytes(model, batch_size) for model in models)
    return more - less


def saved_bytes(model: HierarchicalTransformer, batch_size: int) -> int:
    """What autograd keeps of a training call, each memory once, without parameters."""
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # so that no memory comes to stand for two tensors
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor.detach()  # one that knows its own graph would keep it for ever

    ids = torch.randint(0, model.num_tokens, (batch_size, model.seq_len + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, return_loss=True)
    return sum(kept.values())


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"dim": 64, "depth": 1},
        {"hierarchical_stride": 1},
        {"hierarchies": (1, 4, 16), "hierarchical_stride": (1, 2, 16), "window_sizes": (16, 32, None), "dim": 48},
        {"hierarchy_merge_all": True, "prophet_loss_weight": 0.1},
        {"hierarchies": 1, "hierarchical_stride": 1, "window_sizes": None, "dim": 64},
        {"next_latent_loss_weight": 0.1, "num_rollouts": 2, "predict_use_all_hierarchy": True},
        {"window_sizes": 0, "ff_mult": 1},
    ],
    ids=lambda changed: " ".join(changed) or "plain",
)
def test_activations_are_what_autograd_keeps_within_a_quarter(changed: dict[str, Any], batch_size: int) -> None:
    shape = {"dim": (32, 64), "heads": 4, "dim_head": 16, "seq_len": 256, "window_sizes": (32, None), "depth": 3}
    model = HierarchicalTransformer(**SMALL | shape | changed)
    estimate = model.describe(batch_size=batch_size).activation_bytes.total
    assert estimate == pytest.approx(saved_bytes(model, batch_size), rel=0.25)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("depth", [1, 4, 24])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"hierarchical_stride": 1, "hierarchy_merge_all": True},
        {"hierarchies": 1, "hierarchical_stride": 1, "window_sizes": None, "dim": 64},
    ],
    ids=lambda changed: " ".join(changed) or "plain",
)
def test_activations_that_are_checkpointed_are_those_kept_and_of_one_layer_within_a_quarter(
    changed: dict[str, Any], depth: int, batch_size: int
) -> None:
    shape = {"dim": (32, 64), "heads": 4, "dim_head": 16, "seq_len": 256, "window_sizes": (32, None)}
    arguments = SMALL | shape | changed | {"depth": depth}
    model = HierarchicalTransformer(**arguments, checkpoint_activations=True)
    most = saved_bytes(model, batch_size) + layer_bytes(arguments, batch_size)
    assert model.describe(batch_size=batch_size).activation_bytes.total == pytest.approx(most, rel=0.25)


def test_checkpointing_keeps_at_most_a_third_of_a_deep_model() -> None:
    shape = {"dim": (16, 32), "heads": 2, "dim_head": 8, "seq_len": 128, "depth": 24}
    kept = [
        saved_bytes(HierarchicalTransformer(**SMALL | shape | {"checkpoint_activations": checkpointed}), batch_size=2)
        for checkpointed in (True, False)
    ]
    assert kept[0] < kept[1] / 3


# receptive field


def seen_tokens(model: HierarchicalTransformer, seq_len: int, position: int, stream: int | None = None) -> int:
    """How far back the gradient of an output at a position reaches, itself included; of a stream's tokens or logits."""
    captured: list[Tensor] = []

    def capture(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    handle = model.token_emb.register_forward_hook(capture)
    ids = torch.randint(0, model.num_tokens, (1, seq_len), generator=torch.Generator().manual_seed(0))
    out = model(ids) if stream is None else model(ids, return_hierarchical_embeds=True)[stream]
    handle.remove()
    stride = 1 if stream is None else model.config.streams[stream].stride
    weights = torch.linspace(-1, 2, out.shape[-1], dtype=out.dtype)
    (gradient,) = torch.autograd.grad((out[0, position // stride] * weights).sum(), captured[0])
    first = int(gradient[0].any(dim=-1).nonzero()[0])
    return position - first + 1


@st.composite
def wide_streams(draw: st.DrawFn) -> dict[str, Any]:
    """So wide that no layer has only units that are off by chance."""
    arguments = draw(stream_arguments())
    arguments |= {"dim": tuple(dim + 12 for dim in arguments["dim"]), "ff_mult": 2, "ignore_index": -100}
    arguments["seq_len"] = draw(st.integers(1, 200))
    arguments["window_sizes"] = tuple(draw(st.sampled_from([0, 1, 2, 5, None])) for _ in arguments["hierarchies"])
    if not any(window != 0 for window in arguments["window_sizes"]):
        arguments |= {"use_flash_attn": None, "use_xpos": False}
    arguments.pop("ngram_table_size", None)
    arguments["ngram_sizes"] = ()  # no gradient flows to an id that is looked up
    if arguments["depth"] == 1 + arguments["compress_after"] and set(arguments["hierarchies"]) <= {
        1,
        arguments["predict_hierarchy"],
    }:
        arguments["hierarchy_merge_all"] = False
    return arguments


@examples(quick=40, slow=300)
@given(data=st.data(), arguments=wide_streams(), seed=SEEDS)
def test_the_receptive_field_is_how_far_gradients_reach(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments | coarse_losses(arguments), seed=seed)
    seq_len = data.draw(st.integers(1, model.seq_len))
    strides = [s.stride for s in model.config.streams]
    stream = data.draw(st.sampled_from([None, *range(len(strides))]))
    places = range(max(seq_len - max(strides), 0), seq_len)
    places = [p for p in places if stream is None or p % strides[stream] == 0] or [0]
    reached = max(seen_tokens(model, seq_len, place, stream) for place in places)
    assert receptive_field(model.config, seq_len, stream) == reached


def coarse_losses(arguments: dict[str, Any]) -> dict[str, Any]:
    """The default losses of coarse streams, where there is one."""
    on = float(max(arguments["hierarchies"]) > 1)
    return {"recon_loss_weight": 0.1 * on, "hierarchical_ar_loss_weight": 0.25 * on}


def test_a_receptive_field_that_forgets_a_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({**SMALL, "window_sizes": (2, 1), "seq_len": 64})
    true = max(seen_tokens(model, 64, place) for place in (62, 63))
    assert receptive_field(model.config, 64) == true < 64
    reach = StreamConfig.reach
    monkeypatch.setattr(StreamConfig, "reach", lambda self, seq_len: reach(self, seq_len) - 1)
    assert receptive_field(model.config, 64) < true


def test_a_receptive_field_by_hand() -> None:
    # per layer one token back by each of two shifts, and two by the window
    one = on_meta({**SMALL, "dim": 16, "hierarchies": 1, "hierarchical_stride": 1, "window_sizes": 2, "depth": 3})
    assert one.describe().receptive_field == 1 + 3 * (2 + 2)
    # the last but one token of stride 4 stands 3 before, and covers 4; one layer takes it back by 4·(1 + 2)
    two = on_meta({**SMALL, "depth": 1, "hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (2, 1)})
    assert two.describe().receptive_field == 1 + 3 + 4 * (1 + 2) + 3


# data, tables, errors


def test_the_description_is_the_same_as_data_and_as_a_table() -> None:
    description = on_meta(SMALL).describe(48, batch_size=2)
    data = json.loads(json.dumps(description.as_dict()))
    assert (data["seq_len"], data["batch_size"]) == (48, 2)
    assert data["total"]["parameters"] == description.parameters.total
    assert data["total"]["training_multiply_adds_per_token"] == description.training_multiply_adds.total / 48
    for name in data["total"]:
        assert sum(part[name] for part in data["parts"]) == pytest.approx(data["total"][name])
    assert data["streams"][1] == {
        "compress_factor": 4, "stride": 2, "dim": 32, "window_size": None,
        "receptive_field": description.receptive_fields[4],
    }  # fmt: skip
    lines = description.table().splitlines()
    assert str(description) == description.table()
    for part in data["parts"]:
        stream = "all" if part["stream"] is None else str(part["stream"])
        (line,) = (line for line in lines if line.split()[:2] == [part["part"], stream])
        amounts = [round(amount) for name, amount in part.items() if name not in ("part", "stream") and amount]
        assert line.split()[2:] == [f"{amount:,}" for amount in amounts]
    assert f"at most {description.receptive_field} of 48 input tokens" in lines[-1]


def test_a_breakdown_is_a_table_too() -> None:
    flops = on_meta(SMALL).flops(10)
    first, *_, last = flops.table().splitlines()
    assert first.split() == ["part", "stream", "flops"]
    assert last.split() == ["total", f"{flops.total:,}"]
    assert len(list(flops)) == len(flops) == len(flops.table().splitlines()) - 2
    assert flops.total == 2 * on_meta(SMALL).describe(10).multiply_adds.total


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model.flops(0), ValueError, "seq_len must be at least 1, got 0"),
        (lambda model: model.flops(65), ValueError, "seq_len must be at most 64, got 65"),
        (lambda model: model.flops("9"), TypeError, "seq_len must be a whole number, got '9'"),
        (lambda model: model.flops(9, training=1), TypeError, "training must be True or False"),
        (lambda model: model.describe(9, batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(on_meta(SMALL))


# the command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    def command(arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(["describe", *arguments.split()])
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, *capsys.readouterr()

    return command


Command = Callable[[str], tuple[int, str, str]]
FLAGS = (
    "--num-tokens 300 --dim 16 32 --depth 2 --heads 2 --dim-head 8 --hierarchies 1 4 --stride 1 2 "
    "--window-sizes 8 none --merge-type mlp --compress-after 0 --ngram-sizes none --recon-loss-weight 0.1 "
    "--hierarchical-ar-loss-weight 0.25"
)


def test_the_command_describes_what_the_flags_say(run: Command) -> None:
    description = on_meta(SMALL).describe()
    assert run(f"{FLAGS} --seq-len 64") == (0, f"{description.table()}\n", "")
    status, shown, _ = run(f"{FLAGS} --seq-len 64 --json --dtype float16 --batch-size 3")
    assert status == 0
    assert json.loads(shown) == on_meta(SMALL).half().describe(batch_size=3).as_dict()
    again = on_meta({**SMALL, "checkpoint_activations": True}).describe()
    assert run(f"{FLAGS} --seq-len 64 --checkpoint-activations")[1] == f"{again.table()}\n"
    assert again.activation_bytes.total < description.activation_bytes.total
    assert again.training_multiply_adds.total > description.training_multiply_adds.total


def test_the_command_describes_a_saved_model_without_its_weights(run: Command, tmp_path: Path) -> None:
    model = HierarchicalTransformer(**SMALL, next_latent_loss_weight=0.1, next_latent_loss_type=F.l1_loss)
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    for folder in ("run", "run/model"):
        assert run(f"--model {tmp_path / folder}") == (0, f"{model.describe().table()}\n", "")
    longer = on_meta({**SMALL, "seq_len": 200, "next_latent_loss_weight": 0.1}).describe()
    assert run(f"--model {tmp_path / 'run'} --seq-len 200")[1] == f"{longer.table()}\n"
    again = on_meta({**SMALL, "checkpoint_activations": True, "next_latent_loss_weight": 0.1}).describe()
    assert run(f"--model {tmp_path / 'run'} --checkpoint-activations")[1] == f"{again.table()}\n"


def test_the_command_describes_presets_and_files(run: Command, tmp_path: Path) -> None:
    status, shown, _ = run("--preset long-context --num-tokens 300 --json")
    assert (status, json.loads(shown)["seq_len"]) == (0, 16_384)
    assert run("--preset enwik8-12m")[0] == 0  # without its data
    (tmp_path / "run.toml").write_text("batch_size = 7\nseq_len = 32\n[model]\ndim = 16\nheads = 2", encoding="utf-8")
    assert run(f"--config {tmp_path / 'run.toml'} --seq-len 64") == run("--dim 16 --heads 2 --seq-len 64")


def test_the_command_takes_no_memory_for_a_model_of_any_size(run: Command) -> None:
    status, shown, _ = run("--dim 12288 --depth 96 --heads 96 --dim-head 128 --num-tokens 50000 --seq-len 8192 --json")
    assert status == 0
    assert json.loads(shown)["total"]["parameters"] > 1e11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dim 7", "dim of the stream with compress factor 1 must be even"),
        ("--dim wide", "argument --dim must be a whole number or a list of whole numbers, got 'wide'"),
        ("--seq-len 0", "seq_len must be at least 1, got 0"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--dtype int8", "dtype must be one of float32, bfloat16, float16, float64, got 'int8': choose one of them"),
        ("--steps 3", "unrecognized arguments: --steps 3; no flag is like it; see hierarchical-transformer describe"),
        ("--model own --preset tiny", "--preset would change the model that --model names: leave one of the two out"),
        ("--model own --hierarchies 1 2", "--hierarchies would change the model"),
        ("--preset small", "preset must be one of tiny, enwik8-12m, enwik8-40m, long-context, got 'small'"),
        ("--model nowhere", "--model: nowhere isn't a folder"),
        ("--model .", "config.json: the file is missing"),
        ("--model own --stride 1 4", "--stride would change the model that --model names: leave one of the two out"),
        ("--model own --num-tokens 9", "--num-tokens would change the model"),
        ("--model own", "own was built with its own chunk_summarizers, which no file can hold: describe it in Python"),
    ],
)
def test_a_mistake_ends_in_one_line(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "own" in arguments:
        own = {"next_latent_loss_weight": (0.0, 0.1), "chunk_summarizers": (None, torch.nn.Identity())}
        HierarchicalTransformer(**SMALL, **own).save_pretrained("own")
    status, shown, errors = run(arguments)
    assert (status, shown) == (2, "")
    assert errors.startswith("hierarchical-transformer: error: ")
    assert errors.count("\n") == 1
    assert message in errors
