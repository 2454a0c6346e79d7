"""Each example runs, in a small setting and without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.checkpoint import CONFIG_FILE, WEIGHTS_FILE

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = b"".join(b"line %d of a text that says little\n" % number for number in range(200))
SMALL: dict[str, Any] = {
    "num_tokens": 256, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "seq_len": 32,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (4, None),
}  # fmt: skip
# in a process of its own, with what it is given and a word that it prints
COMMANDS = {
    "own_loop.py": (["text.txt", "--steps", "3", "--seq-len", "64", "--dim", "16"], "step 3:"),
    "own_loop_accelerate.py": (["text.txt", "--steps", "3", "--seq-len", "32", "--dim", "16"], "step 3:"),
    "digits.py": (["--steps", "3", "--dim", "16", "--samples", "2"], "digits.png"),
    "lm_eval_run.py": (["model", "--documents", "mine.jsonl"], '"acc,none"'),
}
IN_PROCESS = {"hub_round_trip.py", "streaming_server.py", "idea.ipynb"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == {*COMMANDS, *IN_PROCESS}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_runs(name: str, tmp_path: Path) -> None:
    arguments, word = COMMANDS[name]
    (tmp_path / "text.txt").write_bytes(TEXT)
    HierarchicalTransformer(**SMALL).save_pretrained(tmp_path / "model")
    document = {"question": "Two and two are", "choices": [" three", " four"], "answer": 1}
    (tmp_path / "mine.jsonl").write_text(json.dumps(document) + "\n")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=tmp_path,
        env=os.environ | offline | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


class FakeApi:
    """Puts what is uploaded into the cache of the Hub, from where it then comes back."""

    def __init__(self, **_: Any) -> None: ...

    def create_repo(self, *_: Any, **__: Any) -> None: ...

    def file_exists(self, *_: Any, **__: Any) -> bool:
        return False

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> huggingface_hub.CommitInfo:
        commit = "0" * 40
        repository = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (snapshot / name).write_bytes(Path(folder_path, name).read_bytes())
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/{commit}",
            commit_message="",
            commit_description="",
            oid=commit,
        )


def test_the_hub_gives_back_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(sys, "argv", ["hub_round_trip.py", "user/name"])
    runpy.run_path(str(EXAMPLES / "hub_round_trip.py"), run_name="__main__")
    assert "came back with the same" in capsys.readouterr().out


def test_texts_stream_behind_a_prefix_that_was_read_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    HierarchicalTransformer(**SMALL).save_pretrained(tmp_path / "model")
    example = load("streaming_server.py")
    model = example.load(tmp_path)
    state = example.read_prefix(model, b"a prefix that is longer than what the model reads at once. " * 2)
    position = state.position
    with example.make_server(model, state, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/?"
        asked = urllib.parse.urlencode({"prompt": "def ", "length": 20})
        with urllib.request.urlopen(address + asked, timeout=60) as answer:
            assert len(answer.read()) == 20
        for wrong in ({"prompt": ""}, {"prompt": "a", "length": "-1"}, {"prompt": "a", "length": "999999"}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(address + urllib.parse.urlencode(wrong), timeout=60)
        server.shutdown()
    assert state.position == position == 118


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "idea.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before you commit it"
    (settings,) = [cell for cell in notebook.cells if "STEPS = 150" in cell.source]
    settings.source = settings.source.replace("STEPS = 150", "STEPS = 2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
