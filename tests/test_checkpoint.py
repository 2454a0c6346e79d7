"""A saved model is the same model, and one flipped bit is caught."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import build, examples, model_arguments, random_ids
from hypothesis import given
from torch import Tensor, nn

from simple_hierarchical_transformer import CheckpointError, HierarchicalTransformer, checkpoint
from simple_hierarchical_transformer.arguments import to_arguments
from simple_hierarchical_transformer.config import ModelConfig
from simple_hierarchical_transformer.files import write_atomically

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 2, "seq_len": 16, "dim_head": 2, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip


@examples(quick=15, slow=100)
@given(arguments=model_arguments())
def test_a_loaded_model_gives_the_same_logits_and_losses(
    tmp_path_factory: pytest.TempPathFactory, arguments: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("model")
    model = build(arguments)
    model.save_pretrained(folder)
    loaded = HierarchicalTransformer.from_pretrained(folder)
    assert loaded.dtype == torch.float64
    assert loaded.config == model.config
    ids = random_ids(2, model.seq_len + 1, seed=0)
    assert torch.equal(model(ids[:, :-1]), loaded(ids[:, :-1]))
    assert torch.equal(model(ids, return_loss=True)[0], loaded(ids, return_loss=True)[0])


def test_loaded_weights_are_aligned_like_those_of_a_new_model(tmp_path: Path) -> None:
    """Where they lay in the file, some began at odd addresses: logits differed in their last bit."""
    model = HierarchicalTransformer(**ARGUMENTS)
    model.save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert one.data_ptr() % 64 == other.data_ptr() % 64 == 0


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_one_flipped_bit_is_caught(file: str, tmp_path: Path) -> None:
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    path, chance = tmp_path / file, random.Random(0)
    good = path.read_bytes()
    # every bit of the header, and some of the rest
    places = {*range(min(len(good), 400) * 8), *(chance.randrange(len(good) * 8) for _ in range(400))}
    for place in places:
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            HierarchicalTransformer.from_pretrained(tmp_path)
    path.write_bytes(good)
    HierarchicalTransformer.from_pretrained(tmp_path)


def test_truncated_and_extended_weights_are_caught(tmp_path: Path) -> None:
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    for damaged in (good[:-1], good[: len(good) // 2], good[:9], good + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            HierarchicalTransformer.from_pretrained(tmp_path)


def test_saving_twice_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = HierarchicalTransformer(**ARGUMENTS)
        model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    assert torch.equal(loaded.token_emb.weight, model.token_emb.weight)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically({path: b"old"})

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically({path: b"new"})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    model = HierarchicalTransformer(**ARGUMENTS).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    ids = random_ids(1, 16, seed=0)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(model(ids), loaded(ids))


def test_mixed_types_and_shared_weights_survive(tmp_path: Path) -> None:
    model = HierarchicalTransformer(**ARGUMENTS | {"dim": 8}).bfloat16()
    model.token_emb.float()
    model.to_logits.weight = model.token_emb.weight
    model.save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert loaded.get_parameter(name).dtype == parameter.dtype
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_a_mistake_in_what_is_changed_when_loading_is_the_users_not_the_files(tmp_path: Path) -> None:
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="seq_len must be at least 1, got -1") as caught:
        HierarchicalTransformer.from_pretrained(tmp_path, seq_len=-1)
    assert not isinstance(caught.value, CheckpointError)


def test_sequence_length_and_windows_change_no_parameter(tmp_path: Path) -> None:
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path, seq_len=64, window_sizes=(9, 2), use_flash_attn=False)
    assert loaded(random_ids(1, 64, seed=0)).shape == (1, 64, 11)
    with pytest.raises(ValueError, match=r"dim can't be changed.*seq_len, window_sizes"):
        HierarchicalTransformer.from_pretrained(tmp_path, dim=16)


def test_checkpointing_changes_no_parameter(tmp_path: Path) -> None:
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path, checkpoint_activations=True)
    assert loaded.config.checkpoint_activations
    loaded.save_pretrained(tmp_path)
    assert HierarchicalTransformer.from_pretrained(tmp_path).config.checkpoint_activations
    assert not HierarchicalTransformer.from_pretrained(
        tmp_path, checkpoint_activations=False
    ).config.checkpoint_activations


def test_a_file_that_is_older_than_an_argument_has_its_default_and_may_be_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(config: ModelConfig) -> dict[str, Any]:
        return {name: value for name, value in to_arguments(config).items() if name != "checkpoint_activations"}

    monkeypatch.setattr(checkpoint, "to_arguments", older)
    model = HierarchicalTransformer(**ARGUMENTS)
    model.save_pretrained(tmp_path)
    assert "checkpoint_activations" not in (tmp_path / "config.json").read_text()
    assert HierarchicalTransformer.from_pretrained(tmp_path).config == model.config
    assert HierarchicalTransformer.from_pretrained(tmp_path, checkpoint_activations=True).config.checkpoint_activations
    with pytest.raises(ValueError, match="takes no argument checkpoint_activation: it takes"):
        HierarchicalTransformer.from_pretrained(tmp_path, checkpoint_activation=True)


def test_objects_that_no_file_can_hold_are_given_again(tmp_path: Path) -> None:
    class Summarizer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, ::2])

    def absolute(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs()

    def objects() -> dict[str, Any]:
        return {"chunk_summarizers": (None, Summarizer(8, 4)), "next_latent_loss_type": absolute}

    model = HierarchicalTransformer(**ARGUMENTS, next_latent_loss_weight=(0.0, 0.1), **objects())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its own chunk_summarizers.*from_pretrained\(folder, chunk_summarizers=…\)"):
        HierarchicalTransformer.from_pretrained(tmp_path)
    other = objects() | {"chunk_summarizers": (None, nn.Linear(4, 8))}
    with pytest.raises(
        CheckpointError, match=r"don't fit.*has shape \(4, 8\) for \(8, 4\).*objects that the model was"
    ):
        HierarchicalTransformer.from_pretrained(tmp_path, **other)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path, **objects())
    ids = random_ids(1, 17, seed=0)
    assert torch.equal(model(ids, return_loss=True)[0], loaded(ids, return_loss=True)[0])


def test_everything_that_is_saved_is_a_parameter() -> None:
    model = HierarchicalTransformer(**ARGUMENTS, prophet_loss_weight=0.1, prophet_loss_use_quantized=True)
    assert model.state_dict().keys() == {name for name, _ in model.named_parameters()}
