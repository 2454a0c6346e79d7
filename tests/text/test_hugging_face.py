from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer.text.data import Split, load_split

from .conftest import json_lines
from .test_corpus import whole

TEXTS = [f"document {number} of the größe\n" for number in range(30)]


@pytest.fixture(params=["jsonl", "parquet"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A local dataset of two splits."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split, texts in (("train", TEXTS), ("test", TEXTS[::-1])):
        if request.param == "jsonl":
            (folder / f"{split}.jsonl").write_bytes(json_lines(texts))
        else:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / f"{split}.parquet")
    return folder


def load(name: str, **options: Any) -> tuple[Split, list[str]]:
    said: list[str] = []
    return load_split([name], 16, report=said.append, **options), said


def text_of(split: Split) -> bytes:
    return whole(split.train) + whole(split.validation)


def test_a_local_dataset_is_read_split_by_split(dataset: Path) -> None:
    assert text_of(load(f"hf:{dataset}")[0]) == "".join(TEXTS).encode()
    assert text_of(load(f"hf:{dataset}:test")[0]) == "".join(TEXTS[::-1]).encode()
    assert load(f"hf:{dataset}")[1] == []  # from the cache


def test_each_row_is_a_document(dataset: Path, own_cache: Path) -> None:
    split, _ = load(f"hf:{dataset}", separator=0)
    assert text_of(split) == "".join(text + "\0" for text in TEXTS).encode()
    assert split.train.num_bytes + split.validation.num_bytes == len("".join(TEXTS).encode())
    assert sorted(path.suffix for path in own_cache.iterdir() if path.suffix != ".lock") == [".bin", ".json"]


def test_a_local_dataset_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS))
    load(f"hf:{path}")
    path.write_bytes(json_lines(TEXTS * 2))
    assert text_of(load(f"hf:{path}")[0]) == "".join(TEXTS * 2).encode()


def test_a_dataset_on_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        def __init__(self, commit: str) -> None:
            self.hash = commit

        def as_streaming_dataset(self, split: str) -> list[dict[str, str]]:
            assert split == "validation"
            return [{"text": f"{self.hash} {text}"} for text in TEXTS]

    commit = "first"

    def load_dataset_builder(name: str, configuration: str | None) -> Builder:
        assert (name, configuration) == ("user/name", "plain")
        return Builder(commit)

    monkeypatch.setattr("datasets.load_dataset_builder", load_dataset_builder)
    name = "hf:user/name:plain:validation"
    first = load(name)[0]
    assert load(name)[1] == []
    commit = "second"
    second, said = load(name)
    assert said and text_of(second).startswith(b"second") and first.fingerprint != second.fingerprint


# mistakes


def refused(message: str, name: str, **options: Any) -> None:
    for more in ({}, {"separator": 0}):
        with pytest.raises(ValueError, match=message):
            load(name, **options, **more)


def test_a_dataset_that_is_not_there_is_refused() -> None:
    refused(r"data: hf:user/none can't be read, split 'train' \(.*\): check name, split and network", "hf:user/none")


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    refused(r"can't be read, split 'other' \(Bad split: other. Available splits: \['train'\]\)", f"hf:{tmp_path}:other")


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    refused(r"data: hf:.* can't be read, split 'train' \(.*doesn't contain any data files.*\)", f"hf:{tmp_path}")


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pickle").write_bytes(b"text")
    refused(r"can't be read, .* \(a file must end in one of .jsonl, ", f"hf:{tmp_path / 'a.pickle'}")


def test_a_damaged_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": bad\n')
    refused(r"data: hf:.* can't be read, split 'train' \(", f"hf:{tmp_path}")


def test_a_row_without_text_is_refused_by_its_number(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(r"data: row 2 of hf:.* holds no text in 'text', got None", f"hf:{tmp_path}")
    refused(r"data: row 1 of hf:.* has no field 'body', but text: name the text's", f"hf:{tmp_path}", text_field="body")


def test_datasets_without_their_package_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (f"hf:{tmp_path}", "hf:user/name"):
        refused(r'needs the package datasets.*: pip install "simple-hierarchical-transformer\[data\]"', name)
