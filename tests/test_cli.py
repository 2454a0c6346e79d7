from __future__ import annotations

import builtins
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer, __version__, cli
from simple_hierarchical_transformer.training import TrainConfig
from simple_hierarchical_transformer.training import loop as training_loop

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
    assert "100% |" in trained.stderr
    status, written, _ = run("generate", "--model", tmp_path / "runs" / "default", "--prompt", "line", "--length", 10)
    assert status == 0
    assert written.startswith("line")


def test_either_folder_gives_the_same_text(text_file: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "run"
    assert run("train", "--data", text_file, "--out", out, *SHORT, *TINY)[0] == 0
    texts = [run("generate", "--model", folder, "--length", 20, "--seed", 3)[:2] for folder in (out, out / "model")]
    assert texts[0] == texts[1]
    assert texts[0][0] == 0


def test_flags_reach_the_run_and_all_others_keep_their_default(monkeypatch: pytest.MonkeyPatch, run: Command) -> None:
    configs: list[TrainConfig] = []

    def remember(config: TrainConfig, report: object) -> training_loop.TrainResult:
        configs.append(config)
        return training_loop.TrainResult(Path("model"), 0, None, None, None, interrupted=len(configs) == 3)

    monkeypatch.setattr(training_loop, "train", remember)
    assert run("train")[0] == 0
    flags = (
        "--data a b --out c --steps 5 --minutes 0.5 --seed 7 --device cpu --batch-size 3 --seq-len 64 --muon-lr 0.02 "
        "--adamw-lr 0.001 --compile --validate-every 9 --sample-length 1 --dim 16 32 --depth 2 --heads 3 --dim-head 8 "
        "--ff-mult 2.5 --hierarchies 1 4 --stride 1 2 --window-sizes none 8 --prophet-loss-weight 0.2 "
        "--checkpoint-activations"
    )
    assert run("train", *flags.split())[0] == 0
    assert configs[0] == TrainConfig()
    assert vars(configs[1]) == {
        **vars(TrainConfig()),
        **{"data": (Path("a"), Path("b")), "out": Path("c"), "steps": 5, "minutes": 0.5, "seed": 7, "device": "cpu"},
        **{"batch_size": 3, "seq_len": 64, "muon_lr": 0.02, "adamw_lr": 0.001, "compile": True, "validate_every": 9},
        "sample_length": 1,
        "model": configs[1].model,
    }
    assert vars(configs[1].model) == {
        **{"dim": (16, 32), "depth": 2, "heads": 3, "dim_head": 8, "ff_mult": 2.5, "hierarchies": (1, 4)},
        **{"hierarchical_stride": (1, 2), "window_sizes": (None, 8), "prophet_loss_weight": 0.2},
        "checkpoint_activations": True,
    }
    assert run("train")[0] == 130  # an interrupted run


def test_help_says_every_default(run: Command) -> None:
    status, shown, _ = run("train", "--help")
    words = " ".join(shown.split())
    assert status == 0
    assert f"(default: {TrainConfig().batch_size})" in words
    assert "(default: 64 none)" in words
    assert "what ends first ends the run (default: 3.0)" in words


def test_the_version_is_that_of_the_package(run: Command) -> None:
    assert run("--version") == (0, f"hierarchical-transformer {__version__}\n", "")


def test_the_package_and_the_help_need_no_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['accelerate'] = sys.modules['tqdm'] = None\n"
        "from simple_hierarchical_transformer import cli\n"
        "cli.main(['--help'])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, env=ENVIRONMENT, encoding="utf-8")
    assert done.returncode == 0
    assert "train | generate | describe" in done.stdout


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


def test_a_model_with_a_prophet_loss_is_trained_and_writes_speculatively(
    text_file: Path, tmp_path: Path, run: Command
) -> None:
    out = tmp_path / "run"
    assert run("train", "--data", text_file, "--out", out, *SHORT, *TINY, "--prophet-loss-weight", 0.1)[0] == 0
    arguments = ("generate", "--model", out, "--length", 20, "--temperature", 0)
    assert run(*arguments, "--speculative")[:2] == run(*arguments)[:2]


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: train | generate | describe; see hierarchical-transformer --help"),
        ("learn", "invalid choice: 'learn'"),
        ("train --step 3", "unrecognized arguments: --step 3; see hierarchical-transformer train --help"),
        ("train --steps few", "argument --steps: invalid int value: 'few'"),
        ("train --steps 0", "steps must be at least 1, got 0"),
        ("train --device tpu", "argument --device: invalid choice: 'tpu'"),
        ("train --window-sizes 64 all", "argument --window-sizes: invalid window value: 'all'"),
        ("train --dim 8 8 8 --data text.txt", "dim has 3 values"),
        ("train --stride 1 3 --data text.txt", "hierarchical_stride of the stream with compress factor 8"),
        ("train --data none.txt", "none.txt doesn't exist: check the path"),
        ("train --data text.txt --seq-len 5000", "lower --seq-len"),
        ("train --data text.txt --out text.txt", "out: text.txt is not a folder"),
        ("train --data text.txt --out .", "out: the folder . holds files that aren't those of an earlier run"),
        ("generate", "the following arguments are required: --model"),
        ("generate --model none", "--model: none isn't a folder: name the run folder"),
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
    assert errors.splitlines()[-1] == "hierarchical-transformer: error: the loss of step 3 is nan"


def test_an_interruption_outside_of_training_is_no_traceback(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "find_model", interrupt)
    assert run("generate", "--model", "here") == (130, "", "hierarchical-transformer: interrupted\n")


def test_other_streams_get_strides_and_windows_that_fit(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []

    def remember(config: TrainConfig, report: Any = None) -> Any:
        configs.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(training_loop, "train", remember)
    run("train", "--hierarchies", 1, 4, 16)
    run("train", "--hierarchies", 4, 1, "--stride", 2, 1)
    run("train", "--hierarchies", 1)
    shapes = [(c.model.hierarchical_stride, c.model.window_sizes, c.model.dim) for c in configs]
    assert shapes == [((1, 4, 16), (64, None, None), 192), ((2, 1), (None, 64), 192), ((1,), (64,), 192)]
    for config in configs:
        HierarchicalTransformer(**config.model_arguments())
