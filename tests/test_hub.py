"""Models on the Hugging Face Hub, without it: a cache that is laid out as its own, and an API that only takes notes."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants, errors

from simple_hierarchical_transformer import HierarchicalTransformer, hub
from simple_hierarchical_transformer.checkpoint import model_files
from simple_hierarchical_transformer.files import pieces_of
from simple_hierarchical_transformer.model_card import is_ours, make_model_card

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 256, "dim": (8, 4), "depth": 2, "seq_len": 32, "dim_head": 2, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model() -> HierarchicalTransformer:
    torch.manual_seed(0)
    return HierarchicalTransformer(**ARGUMENTS).eval()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network, and none finds a folder by chance."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def put_into_cache(cache: Path, model: HierarchicalTransformer, name: str = "user/name") -> Path:
    """As huggingface_hub keeps it: the files as blobs, named by links in the folder of a commit."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for i, (file, content) in enumerate(model_files(model.config, model.state_dict()).items()):
        (repository / "blobs" / f"{i:040}").write_bytes(b"".join(pieces_of(content)))
        (snapshot / file).symlink_to(Path("..", "..", "blobs", f"{i:040}"))
    return snapshot


def same(one: HierarchicalTransformer, other: HierarchicalTransformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# from the Hub


def test_a_cached_model_loads_in_offline_mode(model: HierarchicalTransformer, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", model)
    assert same(HierarchicalTransformer.from_pretrained("user/name"), model)
    assert same(HierarchicalTransformer.from_pretrained("user/name", revision=COMMIT), model)
    assert HierarchicalTransformer.from_pretrained("user/name", seq_len=64).seq_len == 64


def test_a_cached_model_loads_without_the_network_where_that_is_asked_for(
    model: HierarchicalTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    put_into_cache(tmp_path / "another", model)
    loaded = HierarchicalTransformer.from_pretrained(
        "user/name", cache_dir=tmp_path / "another", local_files_only=True, token=False
    )
    assert same(loaded, model)


def test_the_environment_alone_says_offline_and_where_the_cache_is(
    model: HierarchicalTransformer, tmp_path: Path
) -> None:
    put_into_cache(tmp_path / "cache", model)
    code = (
        "import sys; from simple_hierarchical_transformer import HierarchicalTransformer as Model; "
        "print('huggingface_hub' in sys.modules, Model.from_pretrained('user/name').num_tokens); "
        "Model.from_pretrained('user/another')"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout == "False 256\n"
    assert run.stderr.splitlines()[-1].startswith("FileNotFoundError: there is no folder user/another here, and")


def test_a_folder_that_is_here_goes_first(model: HierarchicalTransformer, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", HierarchicalTransformer(**ARGUMENTS))
    model.save_pretrained("user/name")
    assert same(HierarchicalTransformer.from_pretrained("user/name"), model)
    with pytest.raises(ValueError, match=r"revision='main' has no effect on a folder that is here.*leave revision out"):
        HierarchicalTransformer.from_pretrained("user/name", revision="main")
    with pytest.raises(ValueError, match="token=… has no effect") as caught:
        HierarchicalTransformer.from_pretrained("user/name", token="secret")
    assert "secret" not in str(caught.value)


def test_a_path_is_never_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    for path in (
        Path("user/name"),
        "name",
        "a/b/c",
        "/user/name",
        "./name",
        "../name",
        "user/na--me",
        "user/..",
        "-/a",
    ):
        with pytest.raises(ValueError, match="there is no such folder here"):
            HierarchicalTransformer.from_pretrained(path)


def test_only_the_files_of_a_model_are_fetched(
    model: HierarchicalTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = inspect.signature(huggingface_hub.snapshot_download), {}

    def download(*args: Any, **kwargs: Any) -> str:
        asked.update(real.bind(*args, **kwargs).arguments)
        return str(tmp_path / "fetched")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model.save_pretrained(tmp_path / "fetched")
    assert same(HierarchicalTransformer.from_pretrained("user/name", revision="v1", token="secret"), model)
    assert (asked["repo_id"], asked["revision"], asked["token"]) == ("user/name", "v1", "secret")
    assert set(asked["allow_patterns"]) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_name.json", "README.md",
    }  # fmt: skip
    assert not asked["local_files_only"]


def of_response(kind: type[Exception], status: int = 404) -> Exception:
    """As the package makes it of an answer; what it needs of one differs by its version."""
    error = kind.__new__(kind)
    Exception.__init__(error, "from the Hub\nwith details")
    error.response = type("Response", (), {"status_code": status})()  # type: ignore[attr-defined]
    return error


MISTAKES: list[tuple[Exception, bool, type[Exception], str]] = [
    (of_response(errors.RepositoryNotFoundError), False, FileNotFoundError, "no user/name that you may see: check"),
    (of_response(errors.GatedRepoError, 403), False, PermissionError, "user/name is gated: accept its terms"),
    (of_response(errors.RevisionNotFoundError), False, FileNotFoundError, "no user/name at revision v1: name one of"),
    (
        errors.LocalEntryNotFoundError("x"),
        True,
        FileNotFoundError,
        r"isn't, or not wholly, in the cache.*HF_HUB_OFFLINE",
    ),
    (errors.LocalEntryNotFoundError("x"), False, ConnectionError, "couldn't be asked.*LocalEntryNotFoundError: x"),
    (errors.OfflineModeIsEnabled("x"), False, FileNotFoundError, "isn't asked in offline mode"),
    (of_response(errors.HfHubHTTPError, 401), False, PermissionError, "doesn't let you.*give token=…, or sign in"),
    (
        of_response(errors.HfHubHTTPError, 500),
        False,
        ConnectionError,
        r"from the Hub\): check the name or the network",
    ),
    (
        ConnectionResetError("reset"),
        False,
        ConnectionError,
        "ConnectionResetError: reset.*check the name or the network",
    ),
]


@pytest.mark.parametrize(("error", "offline", "kind", "words"), MISTAKES, ids=lambda value: None)
def test_what_goes_wrong_with_the_hub_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, offline: bool, kind: type[Exception], words: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=f"there is no folder user/name here, and .*{words}"):
        HierarchicalTransformer.from_pretrained("user/name", revision="v1")


def test_a_model_that_is_not_in_the_cache_is_an_error_in_offline_mode() -> None:
    with pytest.raises(FileNotFoundError, match=r"user/name isn't, or not wholly, in the cache.*load it once with"):
        HierarchicalTransformer.from_pretrained("user/name")


def test_without_the_extra_the_remedy_is_named(model: HierarchicalTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    remedy = re.escape('pip install "simple-hierarchical-transformer[hub]"')
    with pytest.raises(ValueError, match=f"no folder user/name here, and to look for it on the Hub needs .*{remedy}"):
        HierarchicalTransformer.from_pretrained("user/name")
    with pytest.raises(ValueError, match=f"to upload to the Hub needs huggingface_hub.*{remedy}"):
        model.push_to_hub("user/name")


# to the Hub


class FakeApi:
    """Takes notes of calls, each of which the real API would take."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]]
    files: ClassVar[dict[str, bytes]]
    cards: ClassVar[bool]  # whether the repository has one

    def __init__(self, **kwargs: Any) -> None:
        inspect.signature(huggingface_hub.HfApi.__init__).bind(self, **kwargs)
        self.calls.append(("token", kwargs))

    def note(self, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = inspect.signature(getattr(REAL_API, method)).bind(self, *args, **kwargs)
        given = {name: value for name, value in bound.arguments.items() if name != "self"}
        self.calls.append((method, given))
        return given

    def create_repo(self, *args: Any, **kwargs: Any) -> None:
        self.note("create_repo", *args, **kwargs)

    def create_branch(self, *args: Any, **kwargs: Any) -> None:
        self.note("create_branch", *args, **kwargs)

    def file_exists(self, *args: Any, **kwargs: Any) -> bool:
        return self.cards and bool(self.note("file_exists", *args, **kwargs))

    def upload_folder(self, *args: Any, **kwargs: Any) -> huggingface_hub.CommitInfo:
        given = self.note("upload_folder", *args, **kwargs)
        names = given["allow_patterns"]
        self.files.update({name: (Path(given["folder_path"]) / name).read_bytes() for name in names})
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/user/name/commit/{COMMIT}",
            commit_message=given["commit_message"],
            commit_description="",
            oid=COMMIT,
        )


REAL_API = huggingface_hub.HfApi


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    for name, value in (("calls", []), ("files", {}), ("cards", False)):
        monkeypatch.setattr(FakeApi, name, value, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


def test_what_is_pushed_is_what_is_saved(model: HierarchicalTransformer, api: type[FakeApi], tmp_path: Path) -> None:
    address = model.push_to_hub("user/name", private=True, token="secret", commit_message="mine")
    assert address == f"https://huggingface.co/user/name/commit/{COMMIT}"
    calls = dict(api.calls)
    assert calls["token"] == {"token": "secret"}
    assert calls["create_repo"] == {"repo_id": "user/name", "private": True, "exist_ok": True}
    assert calls["upload_folder"]["repo_id"] == "user/name"
    assert calls["upload_folder"]["commit_message"] == "mine"
    assert "create_branch" not in calls
    assert api.files.keys() == {"config.json", "model.safetensors", "README.md"}
    assert not Path(calls["upload_folder"]["folder_path"]).exists()
    for name, content in api.files.items():
        (tmp_path / name).write_bytes(content)
    assert same(HierarchicalTransformer.from_pretrained(tmp_path), model)
    assert 'from_pretrained("user/name")' in api.files["README.md"].decode()


def test_a_revision_is_a_branch_that_is_made(model: HierarchicalTransformer, api: type[FakeApi]) -> None:
    model.push_to_hub("user/name", revision="step-100")
    calls = dict(api.calls)
    assert calls["create_branch"] == {"repo_id": "user/name", "branch": "step-100", "exist_ok": True}
    assert calls["upload_folder"]["revision"] == "step-100"


def test_a_card_that_the_repository_has_stays_unless_one_is_given(
    model: HierarchicalTransformer, api: type[FakeApi]
) -> None:
    api.cards = True
    model.push_to_hub("user/name")
    assert "README.md" not in api.files
    model.push_to_hub("user/name", model_card="mine")
    assert api.files["README.md"] == b"mine"


def test_the_folder_of_a_run_is_uploaded_with_its_tokenizer_and_nothing_else(
    model: HierarchicalTransformer, api: type[FakeApi], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, model_card="mine")
    for name in ("tokenizer.json", "secrets.txt", "train.safetensors"):
        (tmp_path / name).write_text(name)
    hub.upload(tmp_path, "user/name")
    assert api.files.keys() == {"config.json", "model.safetensors", "README.md", "tokenizer.json"}


@pytest.mark.parametrize("name", ["name", "a/b/c", "user/", "", "user/na me", 7])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(
    model: HierarchicalTransformer, api: type[FakeApi], name: Any
) -> None:
    with pytest.raises(ValueError, match=r"repo_id must name a repository on the Hub, got .*such as user/name"):
        model.push_to_hub(name)
    assert not api.calls


def test_an_upload_that_is_not_allowed_is_said_in_words(
    model: HierarchicalTransformer, api: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise of_response(errors.HfHubHTTPError, 403)

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(PermissionError, match=r"nothing was uploaded: the Hub doesn't let you.*sign in once"):
        model.push_to_hub("user/name")


# the card


def run_usage(card: str) -> str:
    """What the code in a card prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(card.split("```python\n")[1].split("```")[0], {})
    return printed.getvalue()


def test_the_card_of_a_saved_model_is_read_by_the_hub_and_its_code_runs(model: HierarchicalTransformer) -> None:
    model.save_pretrained("my-model")
    text = Path("my-model/README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "simple-hierarchical-transformer"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license is None
    assert "hierarchical-transformer" in card.data.tags
    assert "# my-model\n" in text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert run_usage(text)


def test_a_card_says_what_the_model_was_made_of_and_how_good_it_is(model: HierarchicalTransformer) -> None:
    text = make_model_card(
        model.config,
        title="mine",
        data=["enwik8 | the first 90 MB", "books"],
        figures={"steps": 2000, "tokens": 4_096_000, "validation bits per byte": 1.23456, "time": "3 h | 4 min"},
        tokenizer="gpt2",
        license="cc-by-4.0",
        tags=["bytes: yes", "bytes: yes"],
    )
    assert ModelCard(text).data.license == "cc-by-4.0"
    assert ModelCard(text).data.tags.count("bytes: yes") == 1
    assert "| of factor 1 | 1 input token | 1 input token | 8 | 2 of width 2 | 3 tokens of its own" in text
    assert "| of factor 4 | 2 input tokens | 4 input tokens | 4 | 2 of width 2 | everything |" in text
    assert "- enwik8 | the first 90 MB\n- books" in text
    assert "| tokens | 4,096,000 |\n| validation bits per byte | 1.235 |\n| time | 3 h \\| 4 min |" in text
    assert 'tiktoken.get_encoding("gpt2")' in text


def test_the_code_of_a_card_runs_with_a_tokenizer_file_and_with_none() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"Once": 0, "upon": 1, "a": 2, "time": 3}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    model = HierarchicalTransformer(**ARGUMENTS | {"num_tokens": 4})
    model.save_pretrained("words")
    tokenizer.save("words/tokenizer.json")
    for name in ("elsewhere/my.json", None):
        card = make_model_card(model.config, title="words", tokenizer=name)
        printed = run_usage(card)
        assert len(json.loads(printed) if name is None else printed.split()) == 100


Change = Callable[[str], str]


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (lambda card: card, True),
        (lambda card: card.replace("\n", "\r\n"), True),
        (lambda card: card + "\n", False),
        (lambda card: card.replace("language", "Language"), False),
        (lambda card: card.rsplit("<!--", 1)[0], False),
        (lambda card: "", False),
    ],
    ids=lambda value: None,
)
def test_a_card_is_ours_until_anyone_changes_it(
    model: HierarchicalTransformer, change: Change, ours: bool, tmp_path: Path
) -> None:
    path = tmp_path / "README.md"
    assert is_ours(path)
    path.write_bytes(change(make_model_card(model.config, title="mine")).encode())
    assert is_ours(path) is ours
    path.write_bytes(b"\xff")
    assert not is_ours(path)
