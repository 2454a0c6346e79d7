from __future__ import annotations

import builtins
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer, __version__, cli, commands, hub
from simple_hierarchical_transformer.describe import DescribeArguments
from simple_hierarchical_transformer.evaluation import evaluate
from simple_hierarchical_transformer.flags import Sources, attributes_of
from simple_hierarchical_transformer.text.data import load_split, load_whole
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig
from simple_hierarchical_transformer.training import loop as training_loop
from simple_hierarchical_transformer.training import plot as plot_module
from simple_hierarchical_transformer.training.presets import PRESETS
from simple_hierarchical_transformer.training.run_folder import CONFIG_FILE
from simple_hierarchical_transformer.training.settings import RUN_FORMAT, write_toml

# the package that is tested here, from whatever folder a command is started in
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
TINY = shlex.split("--dim 16 --depth 1 --heads 2 --dim-head 8 --hierarchies 1 4 --stride 1 4 --window-sizes 8 none")
SHORT = shlex.split("--steps 3 --seq-len 32 --batch-size 2 --validate-every 2 --sample-length 5 --device cpu")


def tiny_model(**arguments: Any) -> HierarchicalTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_tokens": 256, "dim": 8, "depth": 1, "heads": 1, "dim_head": 4, "seq_len": 8}
    return HierarchicalTransformer(**{**settings, **arguments})


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"line %d of a text that says nothing new\n" % number for number in range(100)))
    return path


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: its status, output and errors."""

    def command(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, *capsys.readouterr()

    return command


Command = Callable[..., tuple[int, str, str]]


def test_training_and_generating_work_from_the_command_line(text_file: Path, tmp_path: Path, run: Command) -> None:
    command = [sys.executable, "-m", "simple_hierarchical_transformer", "train", "--data", str(text_file)]
    trained = subprocess.run(
        [*command, *SHORT, *TINY], check=False, capture_output=True, cwd=tmp_path, env=ENVIRONMENT, encoding="utf-8"
    )
    assert trained.returncode == 0
    assert "bits per byte after 3 steps" in trained.stdout
    assert "sample, after the first 64 bytes of the validation text:" in trained.stdout
    assert "100%" in trained.stderr
    status, written, _ = run("generate", "--model", tmp_path / "runs" / "default", "--prompt", "line", "--length", 10)
    assert status == 0
    assert written.startswith("line")


def test_either_folder_gives_the_same_text(tmp_path: Path, run: Command) -> None:
    tiny_model().save_pretrained(tmp_path / "run" / "model")
    folders = (tmp_path / "run", tmp_path / "run" / "model")
    texts = [run("generate", "--model", folder, "--length", 20, "--seed", 3)[:2] for folder in folders]
    assert texts[0] == texts[1]
    assert texts[0][0] == 0


def test_of_a_run_that_is_not_finished_a_checkpoint_is_named(tmp_path: Path, run: Command) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000300"
    for folder in (checkpoint, checkpoint.with_name("step-00000200")):
        tiny_model().save_pretrained(folder)
    status, _, errors = run("generate", "--model", tmp_path / "run")
    assert status == 2
    assert f"run isn't finished, so it has no model/ yet: name one of its checkpoints, such as {checkpoint}" in errors
    assert run("generate", "--model", checkpoint, "--length", 5)[0] == 0


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, run: Command) -> Callable[..., TrainConfig]:
    """The configuration with which a run would be started."""
    configs: list[TrainConfig] = []

    def remember(config: TrainConfig, report: object) -> training_loop.TrainResult:
        configs.append(config)
        return training_loop.TrainResult(Path("model"), 0, None, None, None, interrupted=False)

    monkeypatch.setattr(training_loop, "train", remember)

    def command(*arguments: object) -> TrainConfig:
        assert run("train", *arguments) == (0, "", "")
        return configs.pop()

    return command


def test_flags_reach_the_run_and_all_others_keep_their_default(configured: Callable[..., TrainConfig]) -> None:
    flags = (
        "--data a b --text-field words --tokenizer t.json --separator 0 --split 90e6,5e6,5e6 --cache k --out c "
        "--resume --resume-fallback --steps 5 --tokens 1e6 --minutes 0.5 --batch-size 4 --accumulate 2 --seq-len 64 "
        "--optimizer muon --muon-lr 0.02 --adamw-lr 0.001 --ngram-lr 0.02 --weight-decay 0.1 --schedule constant "
        "--warmup 0.1 --cooldown 0.2 --final-lr 0.3 --clip-norm 2 --average 0.9 --precision bfloat16 --compile "
        "--device cpu --workers 2 --seed 7 --validate-every 9 --validation-sequences 8 --final-validation-sequences 6 "
        "--sample-every 5 --sample-length 1 --checkpoint-every 11 --keep 2 --log-every 3 --log wandb trackio "
        "--checkpoint-minutes none "
        "--dim 16 32 --depth 2 --heads 3 --dim-head 8 --ff-mult 2.5 --hierarchies 1 4 --stride 1 2 "
        "--window-sizes none 8 --prophet-loss-weight 0.2 --checkpoint-activations "
        "--merge-type mlp --compress-after 1 --ngram-sizes 2 5 --ngram-table-size 99"
    )
    assert configured() == TrainConfig()
    config = configured(*flags.split())
    assert config == TrainConfig(
        **{"data": ("a", "b"), "text_field": "words", "tokenizer": "t.json", "separator": 0, "out": Path("c")},
        **{"split": (90_000_000, 5_000_000, 5_000_000), "cache": Path("k"), "resume": True, "resume_fallback": True},
        **{"steps": 5, "tokens": 10**6, "minutes": 0.5, "batch_size": 4, "accumulate": 2, "seq_len": 64},
        **{
            "optimizer": "muon",
            "muon_lr": 0.02,
            "adamw_lr": 0.001,
            "ngram_lr": 0.02,
            "weight_decay": 0.1,
            "schedule": "constant",
        },
        **{"warmup": 0.1, "cooldown": 0.2, "final_lr": 0.3, "clip_norm": 2.0, "average": 0.9, "device": "cpu"},
        **{"precision": "bfloat16", "compile": True, "workers": 2, "seed": 7, "validate_every": 9, "keep": 2},
        **{"validation_sequences": 8, "final_validation_sequences": 6, "sample_every": 5, "sample_length": 1},
        **{"checkpoint_every": 11, "checkpoint_minutes": None, "log_every": 3, "log": ("wandb", "trackio")},
        model=ModelArguments(
            **{"dim": (16, 32), "depth": 2, "heads": 3, "dim_head": 8, "ff_mult": 2.5, "hierarchies": (1, 4)},
            **{"hierarchical_stride": (1, 2), "window_sizes": (None, 8), "prophet_loss_weight": 0.2},
            **{"merge_type": "mlp", "compress_after": 1, "ngram_sizes": (2, 5), "ngram_table_size": 99},
            checkpoint_activations=True,
        ),
    )
    # so that a new setting without a flag, or one that isn't tried here, is found
    same = {name for name, value in vars(config).items() if value == getattr(TrainConfig(), name)}
    assert same == {"optimizer", "batch_size", "schedule"}


def test_a_flag_may_be_written_in_several_ways(configured: Callable[..., TrainConfig]) -> None:
    assert configured("--batch_size=8") == configured("--batch-size", 8) == TrainConfig(batch_size=8)
    assert configured("--hierarchical-stride", 1, 2) == configured("--stride", 1, 2)
    assert configured("--window-sizes", "NONE").model.window_sizes is None
    assert configured("--dim", 64).model.dim == 64
    assert configured("--compile", "--no-compile") == TrainConfig()
    assert configured("--data", "none", "--log", "None", "--steps", "none") == TrainConfig()
    assert configured("--steps", 3, "--steps", 4).steps == 4


def test_an_interrupted_run_ends_with_the_status_of_an_interruption(
    monkeypatch: pytest.MonkeyPatch, run: Command
) -> None:
    stopped = training_loop.TrainResult(Path("model"), 0, None, None, None, interrupted=True)
    monkeypatch.setattr(training_loop, "train", lambda config, report: stopped)
    assert run("train")[0] == 130


# where settings come from


def test_flags_win_over_the_file_and_the_file_over_the_preset(
    configured: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    preset = PRESETS["long-context"]
    assert configured("--preset", "long-context") == preset
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\nsteps = 7\n[model]\ndepth = 3\nheads = 8", encoding="utf-8")
    from_file = configured("--preset", "long-context", "--config", file)
    assert from_file == replace(preset, seed=1, steps=7, model=replace(preset.model, depth=3, heads=8))
    flags = ("--steps", 9, "--heads", 2, "--no-checkpoint-activations")
    assert configured("--preset", "long-context", "--config", file, *flags) == replace(
        preset,
        **{"seed": 1, "steps": 9},
        model=replace(preset.model, depth=3, heads=2, checkpoint_activations=False),
    )


def test_settings_are_checked_together_and_not_source_by_source(
    configured: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text("cooldown = 0.2\nresume_fallback = true", encoding="utf-8")
    config = configured("--preset", "long-context", "--config", file, "--schedule", "constant", "--resume")
    assert (config.cooldown, config.resume_fallback) == (0.2, True)


def test_other_streams_get_strides_and_windows_that_fit(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[model]\nhierarchies = [1, 2]\nwindow_sizes = 5", encoding="utf-8")
    configs = [
        configured("--hierarchies", 1, 4, 16),
        configured("--hierarchies", 4, 1, "--stride", 2, 1),
        configured("--hierarchies", 1),
        configured("--preset", "long-context", "--dim", 256, "--hierarchies", 1, 8),
        configured("--config", tmp_path / "run.toml"),
        configured("--config", tmp_path / "run.toml", "--stride", 1),
        configured("--config", tmp_path / "run.toml", "--hierarchies", 1, 4),
    ]
    shapes = [(config.model.hierarchical_stride, config.model.window_sizes) for config in configs]
    assert shapes == [
        ((1, 4, 16), (64, None, None)),
        ((2, 1), (None, 64)),
        ((1,), (64,)),
        ((1, 8), (64, None)),
        ((1, 2), 5),
        (1, 5),
        ((1, 4), (64, None)),
    ]
    for config in configs:
        HierarchicalTransformer(**config.model_arguments(256))


@pytest.fixture
def started(tmp_path: Path) -> tuple[Path, TrainConfig]:
    """The folder of a run, and what it was started with."""
    config = replace(PRESETS["long-context"], out=Path("where it was before"), data=("a",), seed=5)
    (tmp_path / "run").mkdir()
    text = f'# a run\nformat = "{RUN_FORMAT}"\n{write_toml(config)}'
    (tmp_path / "run" / CONFIG_FILE).write_text(text, encoding="utf-8")
    return tmp_path / "run", config


def test_a_run_goes_on_with_its_own_settings_but_for_those_given(
    configured: Callable[..., TrainConfig], started: tuple[Path, TrainConfig], tmp_path: Path
) -> None:
    folder, config = started
    config = replace(config, out=folder, resume=True)
    assert configured("--out", folder, "--resume") == config
    file = tmp_path / "more.toml"
    file.write_text(f"resume = true\nout = '{folder}'\nsteps = 30_000\nkeep = 9", encoding="utf-8")
    assert configured("--config", file, "--keep", 5) == replace(config, steps=30_000, keep=5)
    # without --resume, another run is started, and --config takes any run's file
    assert configured("--out", folder) == TrainConfig(out=folder)
    assert configured("--config", folder / CONFIG_FILE) == replace(
        config, out=Path("where it was before"), resume=False
    )


def test_there_is_nothing_to_resume_at_first(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert configured("--out", out, "--resume", "--preset", "long-context") == replace(
        PRESETS["long-context"], out=out, resume=True
    )


def test_a_command_can_be_given_again_with_resume_and_another_preset_is_refused(
    configured: Callable[..., TrainConfig], started: tuple[Path, TrainConfig], run: Command
) -> None:
    folder, config = started
    again = ("--out", folder, "--data", "./a", "--seed", 5, "--resume")
    assert configured(*again, "--preset", "long-context") == replace(config, out=folder, data=("./a",), resume=True)
    status, _, errors = run("train", *again, "--preset", "tiny")
    assert status == 2
    assert "--preset tiny would change the run" in errors
    assert "in its steps, seq_len, schedule, final_lr, average, precision, " in errors


def test_a_file_that_is_at_fault_is_named(run: Command, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for text, message in (
        (
            "seeds = 3",
            f"{file}: there is no setting seeds: the nearest settings are seed, steps; correct it, or leave it out",
        ),
        ("steps = 0", f"steps must be at least 1, got 0: raise it; some of the settings are those of {file}"),
    ):
        file.write_text(text, encoding="utf-8")
        assert run("train", "--config", file) == (2, "", f"hierarchical-transformer: error: {message}\n")


def test_a_damaged_configuration_of_a_run_is_named(run: Command, started: tuple[Path, TrainConfig]) -> None:
    folder, _ = started
    (folder / CONFIG_FILE).write_text("steps = ", encoding="utf-8")
    status, _, errors = run("train", "--out", folder, "--resume")
    assert status == 2
    assert f"{folder / CONFIG_FILE} can't be read as TOML" in errors


# help and extras


def test_help_says_every_default(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, shown, _ = run("train", "--help")
    words = " ".join(shown.replace("│", " ").split())
    assert status == 0
    assert f"(default: {TrainConfig().batch_size})" in words
    assert "(default: 64 none)" in words
    assert "three of them where no budget is given (default: none)" in words
    for name in (*PRESETS, *(field.name.replace("_", "-") for field in fields(ModelArguments))):
        assert name in words


@pytest.mark.parametrize("settings", [Sources, TrainConfig, ModelArguments, DescribeArguments])
def test_every_flag_says_what_it_is_for(settings: type) -> None:
    assert all(attributes_of(settings).get(field.name) for field in fields(settings))


def test_the_version_is_that_of_the_package(run: Command) -> None:
    assert run("--version") == (0, f"hierarchical-transformer {__version__}\n", "")


def test_the_package_and_the_help_need_no_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('accelerate', 'tqdm', 'tyro', 'tomli_w', 'matplotlib', 'tokenizers', 'zstandard'):\n"
        "    sys.modules[name] = None\n"
        "from simple_hierarchical_transformer import cli\n"
        "assert cli.main(['train', '--help']) == 2\n"
        "assert cli.main(['describe']) == 2\n"
        "cli.main(['--help'])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, env=ENVIRONMENT, encoding="utf-8")
    assert done.returncode == 0
    assert "train | generate | evaluate | describe | plot | visualize | demo" in done.stdout
    assert done.stderr.splitlines() == [
        f"hierarchical-transformer: error: `hierarchical-transformer {command}` needs the package tyro, which isn't "
        'installed: pip install "simple-hierarchical-transformer[train]"'
        for command in ("train", "describe")
    ]


@pytest.mark.parametrize("missing", ["accelerate", "tqdm"])
def test_training_without_the_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, run: Command, missing: str
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.endswith("training.loop"):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    status, _, errors = run("train")
    assert status == 2
    assert errors == (
        f"hierarchical-transformer: error: training needs the package {missing}, which isn't installed: "
        'pip install "simple-hierarchical-transformer[train]"\n'
    )


# generating


def test_the_prompt_is_echoed_and_bytes_that_are_no_text_are_escaped(
    model_folder: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = lambda *_, **options: iter(torch.tensor([[0xFF], [0x1B], [0xC3], [0xB6], [0x21]]))  # noqa: E731
    monkeypatch.setattr(HierarchicalTransformer, "stream", written)
    status, shown, speed = run("generate", "--model", model_folder, "--prompt", "größe ")
    assert (status, shown) == (0, "größe \\xff\\x1bö!\n")
    assert re.fullmatch(r"5 bytes in [\d.]+ s: [\d,]+ bytes per second, the first after [\d.]+ s\n", speed)


def test_every_byte_is_shown_when_it_has_come_and_a_character_when_it_is_whole(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, seen = io.BytesIO(), []

    def write(*_: Any, **options: Any) -> Iterator[torch.Tensor]:
        for byte in "aö€".encode():
            yield torch.tensor([byte])
            seen.append(shown.getvalue().decode())

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="utf-8"))
    monkeypatch.setattr(HierarchicalTransformer, "stream", write)
    assert cli.main(["generate", "--model", str(model_folder), "--prompt", "="]) == 0
    assert seen == ["=a", "=a", "=aö", "=aö", "=aö", "=aö€"]


def test_a_prompt_that_is_no_utf8_is_escaped(model_folder: Path, run: Command) -> None:
    assert run("generate", "--model", model_folder, "--prompt", "a\udcff", "--length", 0)[:2] == (0, "a\\xff\n")


def test_text_that_the_terminal_cannot_show_is_escaped(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert cli.main(["generate", "--model", str(model_folder), "--prompt", "größe", "--length", "0"]) == 0
    assert shown.getvalue().rstrip() == rb"gr\xf6\xdfe"


def test_a_reader_that_has_seen_enough_is_no_error(model_folder: Path) -> None:
    code = (
        "import sys; from simple_hierarchical_transformer import cli\n"
        f"sys.exit(cli.main(['generate', '--model', {str(model_folder)!r}, '--length', '1']))\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"rror" not in process.stderr.read()
    assert process.returncode == 0


def test_the_length_is_in_bytes_and_options_change_the_text(model_folder: Path, run: Command) -> None:
    def written(*options: object) -> str:
        status, text, _ = run("generate", "--model", model_folder, "--prompt", "a", "--length", 30, *options)
        assert status == 0
        return text

    assert written() == written("--seed", 0) != written("--seed", 1)
    assert written("--temperature", 0) == written("--temperature", 0, "--seed", 1) != written()
    assert written("--filter-thres", 1.0) == written("--temperature", 0) != written("--filter-thres", 0)
    assert written("--top-k", 1) == written("--temperature", 0) != written("--top-k", 200)
    assert written("--top-p", 0.001) == written("--min-p", 1) == written("--temperature", 0) != written("--top-p", 0.9)
    assert written("--temperature", 0, "--repetition-penalty", 9) != written("--temperature", 0)
    assert written("--backend", "eager") == written()


def test_a_model_with_a_prophet_loss_writes_speculatively(tmp_path: Path, run: Command) -> None:
    streams = {"hierarchies": (1, 4), "hierarchical_stride": (1, 4)}
    tiny_model(**streams, prophet_loss_weight=0.1).save_pretrained(tmp_path / "model")
    arguments = ("generate", "--model", tmp_path / "model", "--length", 20, "--temperature", 0)
    assert run(*arguments, "--speculative")[:2] == run(*arguments)[:2]


@pytest.fixture
def word_model(tmp_path: Path) -> Path:
    """The folder of a model of words, with its tokenizer, and of a separator just past them."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "three": 2}, unk_token="one"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "words"
    tiny_model(num_tokens=4).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_model_with_a_tokenizer_writes_its_tokens(
    word_model: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[int]] = []

    def write(_: Any, prompt: torch.Tensor, length: int, **options: Any) -> Iterator[torch.Tensor]:
        prompts.append(prompt.tolist()[0])
        return (torch.tensor([token]) for token in (1, 0, 2, 3))

    assert run("generate", "--model", word_model, "--prompt", "two", "--length", 5)[0] == 0
    monkeypatch.setattr(HierarchicalTransformer, "stream", write)
    status, shown, _ = run("generate", "--model", word_model, "--prompt", "three one two")
    assert (status, shown, prompts) == (0, "three one two two one three\n", [[2, 0, 1]])


def test_a_tokenizer_of_another_model_is_refused(word_model: Path, run: Command) -> None:
    for num_tokens in (2, 5):
        tiny_model(num_tokens=num_tokens).save_pretrained(word_model)
        status, _, errors = run("generate", "--model", word_model)
        assert status == 2
        assert f"words has a vocabulary of {num_tokens} tokens, but its tokenizer" in errors


def test_a_byte_model_with_a_separator_writes_bytes(tmp_path: Path, run: Command) -> None:
    tiny_model(num_tokens=257).save_pretrained(tmp_path / "model")
    assert run("generate", "--model", tmp_path / "model", "--length", 20)[0] == 0


def test_a_model_that_is_not_here_is_looked_for_on_the_hub(
    model_folder: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find(name: str) -> Path:
        asked.append(name)
        return model_folder

    monkeypatch.setattr(hub, "find", lambda name, **_: Path(name) if isinstance(name, Path) else find(name))
    texts = [run("generate", "--model", name, "--length", 5)[:2] for name in (model_folder, "user/name")]
    assert texts[0] == texts[1]
    assert asked == ["user/name"]


# evaluating and plotting


def test_evaluating_shows_what_the_library_says(text_file: Path, tmp_path: Path, run: Command) -> None:
    model = tiny_model(hierarchies=(1, 4), hierarchical_stride=(1, 4))
    model.save_pretrained(tmp_path / "model")
    arguments = ("evaluate", "--model", tmp_path / "model", "--data", text_file, "--device", "cpu")
    split = load_split([text_file], model.seq_len)
    validation = (0, f"{evaluate(model, split.validation).table()}\n")
    assert run(*arguments, "--part", "validation")[:2] == validation
    whole, what = load_whole([text_file])
    expected = (f"{evaluate(model, whole).table()}\n", f"text: all of {what}, {len(whole):,} tokens\n")
    assert run(*arguments) == (0, *expected)
    others = ("--split", "3e3,500,100", "--part", "test", "--limit", 50, "--batch-size", 2, "--json", "--no-ablation")
    status, shown, _ = run(*arguments, *others)
    split = load_split([text_file], model.seq_len, split=(3000, 500, 100))
    assert split.test is not None
    assert (status, json.loads(shown)) == (
        0,
        evaluate(model, split.test, limit=50, batch_size=2, ablate=False).as_dict(),
    )


def test_a_run_is_evaluated_on_what_it_was_validated_on(text_file: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "run"
    settings = ("--split", "3e3,500,100", *SHORT, *TINY)
    assert run("train", "--data", text_file, "--out", out, *settings)[0] == 0
    model = HierarchicalTransformer.from_pretrained(out / "model")
    split = load_split([text_file], model.seq_len, split=(3000, 500, 100))
    for part, corpus in (("validation", split.validation), ("test", split.test)):
        assert corpus is not None
        status, shown, errors = run("evaluate", "--model", out, "--part", part, "--device", "cpu")
        assert (status, shown) == (0, f"{evaluate(model, corpus).table()}\n")
        assert f"text: the {part} part of {text_file}" in errors
    assert run("evaluate", "--model", out, "--device", "cpu")[1] == f"{evaluate(model, split.validation).table()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--part test", "--part test: the text has no such part: say with --split where it stands"),
        ("--part none", "argument --part: invalid choice: 'none'"),
        ("--split 1,2", "split must be three whole numbers, none below 0, got '1,2'"),
        ("--limit 0", "limit must be at least 1, got 0"),
        ("--bath-size 3", "unrecognized arguments: --bath-size 3; the nearest flag is --batch-size; see"),
    ],
)
def test_a_mistake_in_evaluating_ends_in_one_line(
    text_file: Path, model_folder: Path, run: Command, arguments: str, message: str
) -> None:
    status, _, errors = run("evaluate", "--model", model_folder, "--data", text_file, *arguments.split())
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors


def test_plotting_shows_where_the_curves_are(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def remember(*arguments: Any) -> list[Path]:
        calls.append(arguments)
        return [Path("curves.png"), Path("curves.html")]

    monkeypatch.setattr(plot_module, "plot", remember)
    assert run("plot", "a") == (0, "curves.png\ncurves.html\n", "")
    assert run("plot", "a", "b", "--out", "c", "--by", "time")[0] == 0
    assert calls == [([Path("a")], None, "step"), ([Path("a"), Path("b")], Path("c"), "time")]


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "",
            "the following arguments are required: train | generate | evaluate | describe | plot | visualize | demo",
        ),
        ("learn", "invalid choice: 'learn'"),
        ("train --step 3", "unrecognized arguments: --step 3; the nearest flags are --steps, --stride; see hierarch"),
        ("train --xyzzy", "unrecognized arguments: --xyzzy; no flag is like it; see hierarchical-transformer train"),
        ("train text.txt", "unrecognized arguments: text.txt; see hierarchical-transformer train --help"),
        ("train --compile yes", "unrecognized arguments: yes; see hierarchical-transformer train --help"),
        ("train --steps few", "argument --steps must be a whole number, or none, got 'few' of type str: correct it"),
        ("train --steps 2.5", "argument --steps must be a whole number, or none, got 2.5 of type float"),
        ("train --steps 3 4", "argument --steps must be a whole number, or none, got 2 values, 3 4: give one"),
        ("train --steps", "argument --steps must be a whole number, or none, got nothing: give it, or leave --steps"),
        ("train --data", "argument --data must be a list of texts, got nothing"),
        ("train --batch-size none", "argument --batch-size must be a whole number, got 'none'"),
        ("train --steps 0", "steps must be at least 1, got 0"),
        ("train --device tpu", "device must be one of auto, cpu, cuda, mps, got 'tpu': choose one of them"),
        (
            "train --window-sizes 64 all",
            "argument --window-sizes must be a whole number or a list of whole numbers, or",
        ),
        ("train --preset small", "preset must be one of tiny, enwik8-12m, enwik8-40m, long-context, got 'small'"),
        ("train --preset enwik8-12m", "no data is given: name the file, such as --data enwik8"),
        ("train --config none.toml --seed 3", "the configuration none.toml doesn't exist: check the path"),
        ("train --resume-fallback", "resume_fallback=True has no effect without resume"),
        ("train --dim 8 8 8 --data text.txt", "dim has 3 values"),
        ("train --stride 1 3 --data text.txt", "hierarchical_stride of the stream with compress factor 16"),
        ("train --data none.txt", "none.txt doesn't exist: check the path"),
        ("train --data text.txt --seq-len 5000", "lower --seq-len"),
        ("train --data text.txt --out text.txt", "out: text.txt is not a folder"),
        ("train --data text.txt --out .", "out: the folder . holds files that aren't those of an earlier run"),
        ("generate", "the following arguments are required: --model"),
        ("generate --model none", "--model: none isn't a folder: name the run folder"),
        ("generate --model none --legnth 3", "unrecognized arguments: --legnth 3; the nearest flag is --length; see"),
        ("generate --model .", "config.json"),
        ("generate --model model --length -1", "argument --length: invalid length value: '-1'"),
        ("generate --model model --temperature -1", "must be a finite number of at least 0, got -1"),
        ("generate --model model --filter-thres 2", "filter_thres must be "),
        ("generate --model model --top-k 5 --filter-thres 0.5", "filter_thres must stand alone"),
        ("generate --model model --speculative", "prophet_loss_weight is 0"),
        ("generate --model model --backend cuda_graphs --device cpu", "backend='cuda_graphs' needs a CUDA device"),
        ("generate --model model --device abacus", "--device: torch finds no device 'abacus' here: use --device cpu"),
        ("generate --model damaged", "model.safetensors"),
        ("generate --model words", "has a vocabulary of 300 tokens, but text goes in and out as 256 bytes"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_two(
    text_file: Path, run: Command, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    folder = text_file.parent
    monkeypatch.chdir(folder)
    for name in {"model", "damaged", "words"} & set(arguments.split()):
        tiny_model(num_tokens=300 if name == "words" else 256).save_pretrained(folder / name)
        if name == "damaged":
            weights = folder / name / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])
    status, shown, errors = run(*arguments.split())
    assert (status, shown) == (2, "")
    assert errors.startswith("hierarchical-transformer: error: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_an_empty_prompt_is_refused(model_folder: Path, run: Command) -> None:
    status, _, errors = run("generate", "--model", model_folder, "--prompt", "")
    assert status == 2
    assert errors.startswith("hierarchical-transformer: error: prompt is empty")


def test_training_that_diverges_ends_in_one_line_and_status_one(
    text_file: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise training_loop.NonFiniteError("the loss of step 3 is nan")

    monkeypatch.setattr(training_loop.Run, "take_step", diverge)
    status, _, errors = run("train", "--data", text_file, "--out", tmp_path / "run", *SHORT, *TINY)
    assert status == 1
    assert errors.splitlines()[-1] == (
        "hierarchical-transformer: error: the loss of step 3 is nan; there is no checkpoint yet"
    )


def test_an_interruption_outside_of_training_is_no_traceback(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "find_model", interrupt)
    assert run("generate", "--model", "here") == (130, "", "hierarchical-transformer: interrupted\n")
