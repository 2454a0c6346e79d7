from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text.tokenizer import (
    BYTES,
    TextTokenizer,
    Tokenizer,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
)

from .conftest import TEXT, Letters

WORDS = ["▁the", "▁far", "ö", "▁", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x0A>", "a"]
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([TEXT, "<|endoftext|>", " the ", "\r\n\n"]))).map(
    "".join
)


def word_file(folder: Path) -> Path:
    """A `tokenizers` file whose ids are texts only with those beside them: words with spaces, and single bytes."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = [("<unk>", 0.0), *((word, -1.0) for word in WORDS)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.save(str(folder / "words.json"))
    return folder / "words.json"


def small_encoding(name: str) -> tiktoken.Encoding:
    """A tiktoken encoding that needs no network: bytes, two pairs and, behind a gap, a special token."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b" th": 257}
    return tiktoken.Encoding(name, pat_str=r"\s*\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 260})


@pytest.fixture
def tiktoken_name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tiktoken, "get_encoding", small_encoding)
    return "gpt2"


# bytes


@given(st.binary())
def test_bytes_are_their_own_ids(text: bytes) -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.is_bytes and tokenizer.vocab_size == 256
    assert tokenizer.encode(text) == list(text)
    assert tokenizer.decode([256, *text, -1, 1000]) == text


# files of `tokenizers`


@given(TEXTS)
def test_a_file_that_spells_bytes_gives_every_text_back(bpe_file: Path, text: str) -> None:
    tokenizer = load_tokenizer(bpe_file)
    ids = tokenizer.encode(text.encode())
    assert max(ids, default=0) < tokenizer.vocab_size and not tokenizer.is_bytes
    assert tokenizer.decode([tokenizer.vocab_size, *ids, 10**6]) == text.encode()
    assert b"".join(tokenizer.decode([index]) for index in ids) == text.encode()


def test_a_file_does_not_cut_off_pad_or_believe_special_tokens(bpe_file: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_file))
    assert len(tokenizer.encode(TEXT.encode())) > 8
    assert tokenizer.encode(b"") == []
    end = json.loads(bpe_file.read_text())["added_tokens"][0]
    assert end["content"] == "<|endoftext|>"
    assert end["id"] not in tokenizer.encode(b"<|endoftext|>")
    assert tokenizer.decode([end["id"]]) == b"<|endoftext|>"


def test_what_is_no_utf8_is_replaced(bpe_file: Path) -> None:
    tokenizer = load_tokenizer(bpe_file)
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb".encode()


def test_two_files_have_two_fingerprints(bpe_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(bpe_file.read_text().replace('"max_length": 8', '"max_length": 9'))
    copied = tmp_path / "copied.json"
    copied.write_bytes(bpe_file.read_bytes())
    fingerprints = [load_tokenizer(path).fingerprint for path in (bpe_file, copied, other, "bytes")]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3


# tiktoken


def test_a_tiktoken_encoding_gives_every_text_back(tiktoken_name: str) -> None:
    tokenizer = load_tokenizer(tiktoken_name)
    assert tokenizer.vocab_size == 261
    assert tokenizer.encode(b"at the <|endoftext|>")[:2] == [97, 116]
    assert 257 in tokenizer.encode(b"at the") and 260 not in tokenizer.encode(b"<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode(TEXT.encode())) == TEXT.encode()
    assert tokenizer.decode([260, 258, 259, 97]) == b"<|endoftext|>a"  # what isn't in the vocabulary gives nothing


def test_an_encoding_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.get_encoding", offline)
    with pytest.raises(
        OSError, match=r"'gpt2' can't be fetched \(ConnectionError\): connect once, or set TIKTOKEN_CAC"
    ):
        load_tokenizer("gpt2")


# objects


def test_an_object_of_ones_own_is_a_tokenizer() -> None:
    assert isinstance(Letters(), Tokenizer)
    tokenizer = load_tokenizer(Letters())
    assert isinstance(tokenizer, TextTokenizer) and load_tokenizer(tokenizer) is tokenizer
    assert tokenizer.encode("abö".encode()) == [0, 1, 26]
    assert tokenizer.decode([0, 27, 1, 26]) == b"ab?"


def test_an_object_is_known_by_what_it_does() -> None:
    class Others(Letters):
        def decode(self, ids: object) -> str:
            return "" if ids == [3] else super().decode(ids)  # type: ignore[arg-type]

    class Named(Letters):
        fingerprint = "version 2"

    prints = [load_tokenizer(tokenizer).fingerprint for tokenizer in (Letters(), Letters(), Others(), Named())]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert prints[3] == "object version 2"


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (1.5, TypeError), (None, TypeError)])
def test_an_object_with_a_strange_vocabulary_is_refused(size: object, error: type[Exception]) -> None:
    tokenizer = SimpleNamespace(vocab_size=size, encode=list, decode=str)
    with pytest.raises(error, match=r"tokenizer\.vocab_size must be"):
        load_tokenizer(tokenizer)


def test_an_object_that_lacks_something_is_refused() -> None:
    with pytest.raises(
        TypeError, match="tokenizer must be a name, or an object with encode, decode and vocab_size, got"
    ):
        load_tokenizer(SimpleNamespace(encode=list, decode=str))


# streams


@pytest.mark.parametrize("kind", ["bytes", "bpe", "words", "letters", "tiktoken"])
@given(data=st.data())
def test_a_stream_gives_the_text_of_all_ids_however_they_come(
    kind: str, data: st.DataObject, bpe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = data.draw(TEXTS).replace("\ufffd", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", small_encoding)
        path = word_file(tmp_path_factory.mktemp("words")) if kind == "words" else bpe_file
        tokenizer = load_tokenizer({"bytes": "bytes", "letters": Letters(), "tiktoken": "gpt2"}.get(kind, path))
    ids = tokenizer.encode(text.encode())
    if kind == "words":  # of the bytes of characters that it doesn't know, it knows only some
        ids = [index for index in tokenizer.encode("the far€😀\n the a".encode()) if index]
    stream, shown, start = tokenizer.stream(), b"", 0
    while start < len(ids):
        stop = start + data.draw(st.integers(1, 3))
        shown += stream.feed(ids[start:stop])
        start = stop
    assert shown + stream.finish() == tokenizer.decode(ids)


def test_a_character_of_several_ids_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    stream = load_tokenizer(word_file(tmp_path)).stream()
    ids = [1 + WORDS.index(word) for word in ["▁the", "<0xE2>", "<0x82>", "<0xAC>", "▁far", "<0xE2>", "▁the"]]
    shown = [stream.feed([index]).decode() for index in ids]
    assert shown[:5] == ["the", "", "", "€", " far"]
    assert shown[5:] == ["", "\ufffd the"]


def test_what_never_becomes_a_character_is_shown_all_the_same(tmp_path: Path) -> None:
    stream = load_tokenizer(word_file(tmp_path)).stream()
    torn = 1 + WORDS.index("<0x80>")
    shown = [stream.feed([torn]).decode() for _ in range(6)]
    assert len("".join(shown)) == 4 and shown[3]
    assert stream.finish().decode() == "\ufffd\ufffd"


# in the folder of a model


def test_a_folder_without_a_note_means_bytes(tmp_path: Path) -> None:
    save_tokenizer(BYTES, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert find_tokenizer(tmp_path) is BYTES


def test_a_tokenizer_is_found_again_beside_its_model(bpe_file: Path, tiktoken_name: str, tmp_path: Path) -> None:
    for name, files in ((bpe_file, ["tokenizer.json"]), (tiktoken_name, ["tokenizer_name.json"]), ("bytes", [])):
        tokenizer = load_tokenizer(name)
        save_tokenizer(tokenizer, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == files
        assert find_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert (bpe_file).exists()


def test_a_model_of_an_object_says_that_it_needs_it(tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(Letters()), tmp_path)
    with pytest.raises(ValueError, match=r"was trained with an object of one's own, .*Letters, which no file holds"):
        find_tokenizer(tmp_path)


def test_two_notes_that_disagree_are_refused(bpe_file: Path, tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(bpe_file), tmp_path)
    (tmp_path / "tokenizer_name.json").write_text('{"kind": "tiktoken", "name": "gpt2"}')
    with pytest.raises(ValueError, match=r"holds both tokenizer\.json and tokenizer_name\.json: take away the one"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", '{"kind": "other", "name": "gpt2"}', '{"kind": "tiktoken", "name": 1}']
)
def test_a_damaged_note_is_refused(tmp_path: Path, note: str) -> None:
    (tmp_path / "tokenizer_name.json").write_text(note)
    with pytest.raises(ValueError, match=r"tokenizer: .*tokenizer_name\.json is damaged: fetch it again"):
        find_tokenizer(tmp_path)


# mistakes


def test_an_unknown_tokenizer_is_refused_with_the_nearest_one() -> None:
    message = r"tokenizer is 'bytes', a `tokenizers` JSON file, or a tiktoken encoding \(.*gpt2.*\), got 'cl100k', .*"
    with pytest.raises(ValueError, match=message + "did you mean 'cl100k_base'"):
        load_tokenizer("cl100k")


def test_a_tokenizer_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer: .*none\.json doesn't exist: check the path"):
        load_tokenizer(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 1}', b"[1]"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer: .*a\.json is no JSON file of `tokenizers` .*: name another"):
        load_tokenizer(tmp_path / "a.json")


@pytest.mark.parametrize(("package", "name"), [("tokenizers", "file"), ("tiktoken", "gpt2")])
def test_a_missing_package_is_named(package: str, name: str, bpe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'needs the package {package}, .*: pip install "simple-hierarchical-transformer\[data\]"'
    with pytest.raises(ValueError, match=message):
        load_tokenizer(bpe_file if name == "file" else name)
