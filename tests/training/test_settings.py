from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simple_hierarchical_transformer.training import ModelArguments, TrainConfig
from simple_hierarchical_transformer.training.config import DEVICES, PRECISIONS, TRACKERS
from simple_hierarchical_transformer.training.presets import PRESETS
from simple_hierarchical_transformer.training.settings import (
    RUN_FORMAT,
    checked,
    default_streams,
    layered,
    merge,
    read_toml,
    write_toml,
)

COUNTS = st.integers(1, 2**53)
SHARES = st.floats(0, 0.5, allow_subnormal=False)
POSITIVE = st.floats(0, 1e300, exclude_min=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ["none", "None", "a\r\nb", "'\""]
)


def one_or_several(value: st.SearchStrategy[Any], item: st.SearchStrategy[Any] | None = None) -> Any:
    return value | st.lists(value if item is None else item, max_size=4).map(tuple)


MODELS = st.builds(
    ModelArguments,
    dim=one_or_several(COUNTS),
    depth=COUNTS,
    heads=one_or_several(COUNTS),
    ff_mult=one_or_several(POSITIVE | COUNTS),
    hierarchies=one_or_several(COUNTS),
    hierarchical_stride=one_or_several(COUNTS),
    window_sizes=one_or_several(st.none() | st.integers(0), st.none() | COUNTS),
    merge_type=st.none() | st.sampled_from(["mlp", "linear"]),
    compress_after=st.none() | COUNTS,
    ngram_sizes=st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
    ngram_table_size=COUNTS,
    prophet_loss_weight=POSITIVE,
    checkpoint_activations=st.booleans(),
)
CONFIGS = st.builds(
    TrainConfig,
    data=st.lists(TEXTS, max_size=3).map(tuple),
    text_field=TEXTS,
    tokenizer=TEXTS,
    separator=st.none() | COUNTS,
    split=st.none() | st.tuples(COUNTS, COUNTS, st.integers(0, 2**53)),
    cache=st.none() | TEXTS.map(Path),
    out=TEXTS.map(Path),
    steps=st.none() | COUNTS,
    minutes=st.none() | POSITIVE,
    muon_lr=st.none() | POSITIVE,
    adamw_lr=POSITIVE,
    ngram_lr=st.none() | POSITIVE,
    warmup=SHARES,
    cooldown=st.none() | SHARES,
    precision=st.sampled_from(PRECISIONS),
    device=st.sampled_from(DEVICES),
    compile=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    log=st.lists(st.sampled_from(TRACKERS)).map(tuple),
    model=MODELS,
)
# as far from the default as can be, to see that nothing of it is left
OTHER = replace(
    PRESETS["long-context"],
    cooldown=None,
    data=("x",),
    cache=Path("x"),
    separator=3,
    split=(1, 2, 3),
    minutes=1.0,
    tokens=5,
    final_validation_sequences=7,
    log=("wandb",),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@given(config=CONFIGS)
@example(config=TrainConfig(cache=Path("none"), out=Path("NONE"), data=("none",), text_field="none"))
@example(config=OTHER)
def test_every_configuration_that_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, config: TrainConfig
) -> None:
    path = written(tmp_path_factory.mktemp("run"), write_toml(config))
    for base in (TrainConfig(), OTHER):
        assert merge(base, read_toml(path), str(path)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_that_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    assert merge(OTHER, read_toml(written(tmp_path, write_toml(PRESETS[name]))), "") == PRESETS[name]


def test_how_a_run_is_started_is_not_written() -> None:
    assert "resume" not in write_toml(TrainConfig(resume=True, resume_fallback=True))


def test_the_mark_of_a_run_is_known_and_another_is_refused(tmp_path: Path) -> None:
    marked = written(tmp_path, f'format = "{RUN_FORMAT}"\n{write_toml(OTHER)}')
    assert merge(TrainConfig(), read_toml(marked)) == OTHER
    assert merge(TrainConfig(), {"format": RUN_FORMAT}) == TrainConfig()
    with pytest.raises(ValueError, match=r"run.toml: format is 'a run, version 9' .* but .*version 1' is the one that"):
        read_toml(written(tmp_path, 'format = "a run, version 9"'))


def test_values_of_toml_become_those_of_python(tmp_path: Path) -> None:
    text = """
        data = ["a", "b/*.gz"]
        tokens = 1e9
        minutes = 3
        split = "90e6,5e6,5e6"
        cache = "None"
        log = "none"
        [model]
        dim = [16.0, 32]
        ff_mult = 2
        window_sizes = [64, "none"]
    """
    assert merge(OTHER, read_toml(written(tmp_path, text))) == replace(
        OTHER,
        data=("a", "b/*.gz"),
        tokens=10**9,
        minutes=3.0,
        split=(90_000_000, 5_000_000, 5_000_000),
        cache=None,
        log=(),
        model=replace(OTHER.model, dim=(16, 32), ff_mult=2, window_sizes=(64, None)),
    )


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    assert read_toml(written(tmp_path, "\ufeffsteps = 3")) == {"steps": 3}


def test_what_a_layer_says_wins_setting_by_setting() -> None:
    first = {"steps": 1, "seed": 2, "model": {"dim": 8, "depth": 2}}
    second = {"steps": 3, "model": {"depth": 4}}
    assert layered(first, second, {}) == {"steps": 3, "seed": 2, "model": {"dim": 8, "depth": 4}}
    assert layered({}, {"steps": 1}) == {"steps": 1}


def test_strides_and_windows_follow_compress_factors_where_they_are_not_given() -> None:
    base = TrainConfig(model=ModelArguments(hierarchical_stride=(1, 2), window_sizes=7))
    for factors, strides, windows in (
        ([1, 4, 16], (1, 4, 16), (64, None, None)),
        ([4, 1], (4, 1), (None, 64)),
        (1, (1,), (64,)),
    ):
        model = merge(base, {"model": {"hierarchies": factors}}).model
        assert (model.hierarchical_stride, model.window_sizes) == (strides, windows)
    model = merge(base, {"model": {"hierarchies": [4, 1], "hierarchical_stride": [2, 1]}}).model
    assert (model.hierarchical_stride, model.window_sizes) == ((2, 1), (None, 64))
    assert merge(base, {"model": {"dim": 3}}).model.window_sizes == 7
    assert default_streams(()) == {"hierarchical_stride": (), "window_sizes": ()}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("stepss = 3", ValueError, "there is no setting stepss: the nearest setting is steps; correct it"),
        ("xyzzy = 3", ValueError, "there is no setting xyzzy: no setting is like it"),
        ("dim = 3", ValueError, r"there is no setting dim: write it under \[model\]"),
        ("[model]\nsteps = 3", ValueError, "there is no setting model.steps: write it above all tables"),
        ("[model]\ndims = 3", ValueError, "there is no setting model.dims: the nearest setting is dim; correct it"),
        ("[modle]\ndim = 3", ValueError, "there is no setting modle: "),
        ("model = 3", TypeError, r"model must be a table, got 3 of type int: write its settings under \[model\]"),
        ("steps = 'few'", TypeError, "steps must be a whole number, or none, got 'few' of type str"),
        ("steps = 2.5", TypeError, "steps must be a whole number, or none, got 2.5"),
        ("steps = true", TypeError, "steps must be a whole number, or none, got True"),
        ("steps = inf", TypeError, "steps must be a whole number, or none, got inf"),
        ("steps = [3]", TypeError, r"steps must be a whole number, or none, got \[3\]"),
        ("steps = 1979-05-27", TypeError, "steps must be a whole number, or none, got datetime"),
        ("batch_size = 'none'", TypeError, "batch_size must be a whole number, got 'none'"),
        ("compile = 1", TypeError, "compile must be true or false, got 1"),
        ("data = 'text.txt'", TypeError, "data must be a list of texts, got 'text.txt'"),
        ("out = 3", TypeError, "out must be a path, got 3"),
        ("[model]\ndim = ['a']", TypeError, "model.dim must be a whole number or a list of whole numbers, got"),
        ("[model]\nhierarchies = [1, 'none']", TypeError, "model.hierarchies must be a whole number or a list"),
        ("steps = ", ValueError, r"can't be read as TOML \(Invalid value \(at .*\): correct it"),
        ("steps = 1\nsteps = 2", ValueError, "can't be read as TOML"),
        ("steps = " + "[" * 100_000, ValueError, "can't be read as TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(error, match=message) as raised:
        read_toml(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.toml doesn't exist: check the path"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(OSError, match="can't be read"):
        read_toml(tmp_path)
    (tmp_path / "run.toml").write_bytes(b"data = ['\xff']")
    with pytest.raises(ValueError, match="can't be read as TOML"):
        read_toml(tmp_path / "run.toml")


def test_a_value_out_of_range_is_refused_with_its_source() -> None:
    with pytest.raises(ValueError, match=r"^a\.toml: steps must be at least 1, got 0: raise it$"):
        merge(TrainConfig(), {"steps": 0}, "a.toml")
    with pytest.raises(ValueError, match=r"^out is an empty path"):
        merge(TrainConfig(), {"out": ""})


def test_what_was_checked_is_checked_again_without_change() -> None:
    values = {"cache": "x", "split": "1,2,3", "model": {"hierarchies": [1, 4], "dim": [8.0, 16]}}
    assert checked(checked(values)) == checked(values)


def test_a_name_that_no_file_can_hold_is_refused_by_setting() -> None:
    with pytest.raises(ValueError, match=r"data holds a name that is no UTF-8.*'a\\udcff'"):
        write_toml(TrainConfig(data=("a\udcff",)))


def test_writing_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "tomli_w":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"tomli_w, which isn't installed: pip install .*\[train\]"):
        write_toml(TrainConfig())
