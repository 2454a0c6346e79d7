"""A saved model is the same model, and one flipped bit is caught."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import SLOW, build, examples, model_arguments, random_ids
from hypothesis import given
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import Tensor, nn

from simple_hierarchical_transformer import CheckpointError, HierarchicalTransformer, saved_config
from simple_hierarchical_transformer.arguments import to_arguments
from simple_hierarchical_transformer.checkpoint import fewest_tensors, model_config_json, model_files
from simple_hierarchical_transformer.config import ModelConfig
from simple_hierarchical_transformer.files import pieces_of, write_atomically
from simple_hierarchical_transformer.model_card import make_model_card
from simple_hierarchical_transformer.weights import checksum_of_tensors, weights_file

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


@examples(quick=25, slow=500)
@given(arguments=model_arguments())
def test_no_model_has_fewer_tensors_than_are_asked_of_its_file(arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = HierarchicalTransformer(**arguments)
    fewest, count = fewest_tensors(model.config), len(model.state_dict())
    assert fewest <= count <= 3 * fewest + 20


def test_loading_draws_no_random_number_and_imports_no_compiler(tmp_path: Path) -> None:
    model = HierarchicalTransformer(
        **ARGUMENTS, prophet_loss_weight=0.1, prophet_loss_use_quantized=True, rq_codebook_dim=4
    )
    model.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    ids = random_ids(2, 16, seed=0)
    codes = [m(ids, return_random_proj_quantize_ids=True) for m in (model, loaded)]
    assert all(torch.equal(one, other) for one, other in zip(*codes, strict=True))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))

    HierarchicalTransformer(**ARGUMENTS).save_pretrained(tmp_path)
    code = (
        "import sys; from simple_hierarchical_transformer import HierarchicalTransformer; "
        f"HierarchicalTransformer.from_pretrained({str(tmp_path)!r}); print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_files_of_other_tensors_are_those_of_the_model_that_holds_them(tmp_path: Path) -> None:
    """Averaged weights, or those that several processes gathered, are on no model."""
    model, other = (HierarchicalTransformer(**ARGUMENTS) for _ in range(2))
    contents = model_files(model.config, {name: tensor.clone() for name, tensor in other.state_dict().items()})
    files = {name: b"".join(pieces_of(content)) for name, content in contents.items()}
    other.save_pretrained(tmp_path)
    assert files == {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    content = json.loads(files["config.json"])
    assert content == json.loads(json.dumps(model_config_json(model.config)))


def test_the_weights_file_is_one_of_safetensors_and_always_the_same(tmp_path: Path) -> None:
    """What the package itself writes differs each time, in the order of the metadata."""
    tensors = {
        "b": torch.randn(3, 2).bfloat16(), "a": torch.randn(5), "d": torch.randn(2).double(), "é": torch.tensor(True),
        "c": torch.randn(3, 4).t(), "e": torch.empty(0, 3), "f": torch.arange(3), "g": torch.randn(2).half(),
        "h": torch.arange(5).to(torch.int8),
    }  # fmt: skip
    content = b"".join(weights_file(tensors, "0" * 64))
    loaded = load(content)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert b"".join(weights_file(dict(reversed(tensors.items())), "0" * 64)) == content
    (tmp_path / "file").write_bytes(content)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"sha256": checksum_of_tensors(tensors), "config_sha256": "0" * 64}


def test_what_has_no_values_or_no_name_in_the_format_is_not_saved() -> None:
    with pytest.raises(ValueError, match="g is on the meta device and has no values to save"):
        weights_file({"g": torch.empty(3, device="meta")}, "")
    with pytest.raises(ValueError, match=r"g is of type torch.complex64, which can't be saved"):
        weights_file({"g": torch.zeros(3, dtype=torch.complex64)}, "")


def test_a_file_that_changes_after_it_was_verified_changes_no_weight(tmp_path: Path) -> None:
    """What is verified is what is loaded, not what lies in the file a moment later."""
    model = HierarchicalTransformer(**ARGUMENTS)
    model.save_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_of_the_first_version_of_the_format_loads_with_the_same_logits() -> None:
    """For ever: it was made by `frozen/make_format_1.py`, once."""
    folder = Path(__file__).parent / "frozen" / "format-1"
    model = HierarchicalTransformer.from_pretrained(folder).eval()
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["ids"]), expected["logits_float32"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.double()(expected["ids"]), expected["logits_float64"], rtol=1e-10, atol=1e-10)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000


def test_a_models_own_card_stays(tmp_path: Path) -> None:
    model, card = HierarchicalTransformer(**ARGUMENTS), tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    made = card.read_text()
    model.save_pretrained(tmp_path, model_card=make_model_card(model.config, title="another"))
    another = card.read_text()
    assert another != made and "# another" in another
    card.write_text(another.replace("# another", "# another one"))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, model_card="mine")
    assert "# another one" in card.read_text()
    card.unlink()
    model.save_pretrained(tmp_path, model_card="mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"
    with pytest.raises(TypeError, match="model_card must be a text, or None"):
        model.save_pretrained(tmp_path, model_card=Path("card.md"))  # type: ignore[arg-type]


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
    # every bit of where the header begins, and some of the rest
    places = {*range((400 if SLOW else 40) * 8), *(chance.randrange(len(good) * 8) for _ in range(400))}
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
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "notes.txt",
    }
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

    monkeypatch.setattr(saved_config, "to_arguments", older)
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
