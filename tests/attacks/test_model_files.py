"""Model files by strangers: whatever is in them, the process gets a typed error and goes on."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelError, ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import FileHashes
from isthmus.model import Model, open_model
from isthmus.model.files import opening
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.opening import open_gguf
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.model.tokens.vocabulary import MAX_SPECIAL
from isthmus.native.loader import Library
from tests.tiny_gguf import TinyLlama, TinyLora, TinyModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPM = ["<unk>", "<s>", "</s>", *BYTES, "\u2581", *"abcdefghijklmnopqrstuvwxyz"]


@dataclass
class Forged(TinyModel):
    """A tiny model with a vocabulary of the test's own."""

    kind: str = "llama"
    tokens: list[Any] = field(default_factory=lambda: list(SPM))
    scores: list[Any] | None = None
    types: list[Any] | None = None
    said: dict[str, Any] = field(default_factory=dict)
    """Further metadata; arrays are lists, or (element type, list)."""
    with_tokenizer: bool = True

    def _write_tokenizer(self, w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model(self.kind)
        w.add_token_list(self.tokens)
        if self.scores is not None:
            w.add_array("tokenizer.ggml.scores", self.scores)
        if self.types is not None:
            w.add_array("tokenizer.ggml.token_type", self.types)
        for key, value in self.said.items():
            if isinstance(value, tuple):
                kind, items = value
                w.add_key_value(key, items, gguf.GGUFValueType.ARRAY, sub_type=kind)
            elif isinstance(value, list):
                w.add_array(key, value)
            elif isinstance(value, bool):
                w.add_bool(key, value)
            elif isinstance(value, int):
                w.add_uint32(key, value)
            else:
                w.add_string(key, value)


def bpe(**fields: Any) -> Forged:
    from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

    tokens = ["<|endoftext|>", *bytes_to_unicode().values()]
    said = {"tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "gpt-2"}
    said |= {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    given = {"kind": "gpt2", "tokens": tokens} | fields
    return Forged(**(given | {"said": said | given.get("said", {})}))


def charsmap(*units: int, replacements: bytes = b"\0") -> tuple[Any, list[int]]:
    trie = struct.pack(f"<{len(units)}I", *units)
    data = struct.pack("<I", len(trie)) + trie + replacements
    return gguf.GGUFValueType.UINT8, list(data)


def unigram(**said: Any) -> Forged:
    names = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    return Forged(
        kind="t5",
        tokens=tokens,
        scores=[-float(it) for it in range(len(tokens))],
        types=[CONTROL, CONTROL, UNKNOWN, *[NORMAL] * (len(tokens) - 3)],
        said=names,
    )


def rwkv(*words: str, without: str = "") -> Forged:
    tokens = ["<s>", *(repr(bytes([it]))[2:-1] for it in range(256)), *words]
    return Forged(kind="rwkv", tokens=[it for it in tokens if it != without])


def gemma4(**said: Any) -> Forged:
    """Byte pairs over the text itself, in which a space is written as in SentencePiece."""
    given = {"tokenizer.ggml.merges": ["a b", "\u2581 ab"], "tokenizer.ggml.bos_token_id": 1}
    tokens = [*SPM, "ab", "\u2581ab", "\n", "\n\n"]
    types = [CONTROL] * 3 + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    return Forged(kind="gemma4", tokens=tokens, types=types, said=given | said)


GOOD = {
    "gemma4": gemma4,
    "rwkv": lambda: rwkv("ab", "abcd", r"\xc3\xa9"),
    "sentencepiece": lambda: Forged(scores=[0.0] * len(SPM), types=[NORMAL] * len(SPM)),
    "byte-level": bpe,
    "one token": lambda: bpe(tokens=["a"]),
    "wordpiece": lambda: TinyModel(architecture="bert", with_tokenizer=True),
    "unigram": unigram,
    "unigram with a map": lambda: unigram(precompiled_charsmap=charsmap(*[0] * 256)),
}
BAD: dict[str, Callable[[], TinyModel]] = {
    "a token has the name that an empty one gets": lambda: Forged(
        tokens=[*SPM, "", f"[EMPTY_{len(SPM)}]"]
    ),
    "no byte tokens": lambda: Forged(tokens=["<unk>", "<s>", "</s>", *"abc"]),
    "one byte token is missing": lambda: Forged(tokens=[it for it in SPM if it != "<0xC3>"]),
    "one token": lambda: Forged(tokens=["a"]),
    "rwkv": lambda: rwkv("aab", without="a"),
    "gemma4, no token to begin with": lambda: gemma4(**{"tokenizer.ggml.bos_token_id": 1 << 20}),
    "rwkv, no token for a byte": lambda: rwkv(without=r"\xff"),
    "rwkv, a token of many bytes": lambda: rwkv("a" * 5000),
    "rwkv, half an escape": lambda: rwkv(r"\x", "x1", without="x"),
    "plamo2": lambda: Forged(kind="plamo2"),
    "hybriddna": lambda: Forged(kind="hybriddna"),
    "a kind that is none": lambda: Forged(kind="\u00e9"),
    "scores that are bytes": lambda: Forged(
        said={"tokenizer.ggml.scores": (gguf.GGUFValueType.UINT8, [0] * len(SPM))}
    ),
    "scores that are texts": lambda: Forged(scores=["a"] * len(SPM)),
    "too few scores": lambda: Forged(scores=[0.0] * 3),
    "a score that is no number": lambda: Forged(scores=[float("nan")] * len(SPM)),
    "too few types": lambda: Forged(types=[NORMAL] * 3),
    "types that are bytes": lambda: Forged(
        said={"tokenizer.ggml.token_type": (gguf.GGUFValueType.UINT8, [1] * len(SPM))}
    ),
    "types that are texts": lambda: Forged(types=["a"] * len(SPM)),
    "a byte without digits": lambda: Forged(types=[BYTE] * len(SPM)),
    "a byte without digits, byte-level": lambda: bpe(types=[BYTE] * 257),
    "suppressed tokens of another type": lambda: Forged(
        said={"tokenizer.ggml.suppress_tokens": (gguf.GGUFValueType.UINT8, [1])}
    ),
    "suppressed tokens that are texts": lambda: Forged(
        said={"tokenizer.ggml.suppress_tokens": ["a"]}
    ),
    "suppressed tokens that are none": lambda: Forged(said={"tokenizer.ggml.suppress_tokens": 7}),
    "merges that are numbers": lambda: bpe(said={"tokenizer.ggml.merges": [1, 2]}),
    "no merges": lambda: Forged(kind="gpt2", said={"tokenizer.ggml.pre": "gpt-2"}),
    "tokens that are numbers": lambda: Forged(tokens=[1, 2, 3]),
    "bytes in a WordPiece": lambda: Forged(
        architecture="bert", kind="bert", types=[BYTE] * len(SPM), n_vocab=len(SPM)
    ),
    "begins with a token that it lacks": lambda: bpe(
        tokens=["a"],
        said={"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 5},
    ),
    "more special tokens than can be looked for": lambda: Forged(
        tokens=[*SPM, *(f"<special {it}>" for it in range(MAX_SPECIAL))],
        types=[USER_DEFINED] * (len(SPM) + MAX_SPECIAL),
    ),
    "a token of a megabyte": lambda: Forged(tokens=[*SPM, "a" * (1 << 20)]),
    "a map that is too short": lambda: unigram(precompiled_charsmap=[1, 2]),
    "a map of texts": lambda: unigram(precompiled_charsmap=["a"]),
    "a map whose root leads outside": lambda: unigram(
        precompiled_charsmap=charsmap(1 << 30, *[0] * 255)
    ),
    "a map with a child outside, for one byte": lambda: unigram(
        precompiled_charsmap=charsmap(0, *[0] * 96, 5000 << 10 | ord("a"), *[0] * 158)
    ),
    "a map with a replacement outside": lambda: unigram(
        precompiled_charsmap=charsmap(0, *[0] * 96, 1 << 8 | ord("a"), *[77] * 158)
    ),
    "a map whose replacements have no end": lambda: unigram(
        precompiled_charsmap=charsmap(*[0] * 256, replacements=b"x")
    ),
    "no token for what is unknown": lambda: unigram(unknown_token_id=1 << 20),
}
ENDS_THE_PROCESS = (
    "a token has the name that an empty one gets",
    "no byte tokens",
    "one byte token is missing",
    "rwkv",
)


@pytest.fixture(scope="module")
def model(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = TinyLlama().write(tmp_path_factory.mktemp("base") / "base.gguf")
    model = open_model(device, path, ModelSettings())
    yield model
    model.close()


def load(device: Device, path: Path) -> None:
    open_model(device, path, ModelSettings()).close()


@pytest.mark.parametrize("name", GOOD)
def test_good_vocabularies_are_taken(name: str, library: Library, tmp_path: Path) -> None:
    path = GOOD[name]().write(tmp_path / "x.gguf")
    assert open_gguf(library, path, FileHashes()).tensors


def test_texts_of_an_rwkv_vocabulary(library: Library, tmp_path: Path) -> None:
    path = GOOD["rwkv"]().write(tmp_path / "x.gguf")
    tokenizer = Tokenizer(library, GgufFile(library, path))
    assert tokenizer.encode("abcabcdé") == [257, 1 + ord("c"), 258, 259]
    for text in ("", "\\n\n\t'\"", "日本語 🎉\0", "ab" * 5000):
        assert tokenizer.decode(tokenizer.encode(text)).decode() == text


def test_texts_of_a_gemma4_vocabulary(library: Library, tmp_path: Path) -> None:
    path = gemma4(**{"tokenizer.ggml.pre": "qwen2"}).write(tmp_path / "x.gguf")
    tokenizer = Tokenizer(library, GgufFile(library, path))
    ids = tokenizer.encode("ab ab\n\nc", add_special=True)
    n = len(SPM)
    assert ids == [1, n, n + 1, n + 3, SPM.index("c")]
    for text in ("", "日本語 🎉", "ab  ba\n\n\n\t", "ab" * 5000, " " * 5000):
        assert tokenizer.decode(tokenizer.encode(text)).decode() == text


@pytest.mark.parametrize("name", BAD)
def test_bad_vocabularies_are_refused(name: str, device: Device, tmp_path: Path) -> None:
    path = BAD[name]().write(tmp_path / "x.gguf")
    with pytest.raises((ModelFileError, ModelUnsupported), match=r"x\.gguf"):
        load(device, path)


@pytest.fixture
def unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are tried without our own look at the vocabulary."""
    script = Path(opening.__file__).with_name("file_trial.py")
    source = script.read_text().replace("Path(__file__).parent", f"Path({str(script.parent)!r})")
    before = "    file = GgufFile("
    without = (
        "    import isthmus.model.tokens.tokenizer as it\n    it.require_sound_vocabulary = print\n"
    )
    assert source.count(before) == 1
    (tmp_path / "trial.py").write_text(source.replace(before, without + before))
    monkeypatch.setattr(opening, "_SCRIPT", tmp_path / "trial.py")
    monkeypatch.setattr(opening, "_LIMITS", replace(opening._LIMITS, cpu_s=3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", GOOD)
def test_the_trial_by_itself_takes_good_files(name: str, library: Library, tmp_path: Path) -> None:
    assert open_gguf(library, GOOD[name]().write(tmp_path / "x.gguf"), FileHashes()).tensors


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ENDS_THE_PROCESS)
def test_what_a_check_should_miss_happens_in_the_child(
    name: str, library: Library, tmp_path: Path
) -> None:
    path = BAD[name]().write(tmp_path / "x.gguf")
    with pytest.raises(ModelFileError, match=r"x\.gguf (keeps the library busy|is damaged)"):
        open_gguf(library, path, FileHashes())


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(element: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + items


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def raw(
    pairs: list[bytes], tensors: list[bytes], n_pairs: int | None = None, tail: bytes = bytes(4096)
) -> bytes:
    """A whole file, told number by number."""
    counts = struct.pack("<QQ", len(tensors), len(pairs) if n_pairs is None else n_pairs)
    return b"GGUF" + struct.pack("<I", 3) + counts + b"".join([*pairs, *tensors]) + tail


ARCHITECTURE = pair(b"general.architecture", 8, text(b"llama"))
ONE = tensor(b"a", (8,))
ENDLESS = struct.pack("<Q", 1 << 63)
STRUCTURES = {
    "a text of 2^63 bytes": raw([pair(b"k", 8, ENDLESS)], [ONE]),
    "a key of 2^63 bytes": raw([ENDLESS + b"k"], [ONE]),
    "a text of 8 GiB": raw([pair(b"k", 8, struct.pack("<Q", 8 << 30))], [ONE]),
    "2^40 bytes in an array": raw([pair(b"k", 9, array(0, 1 << 40))], [ONE]),
    "8 GiB in an array": raw([pair(b"k", 9, array(0, 8 << 30))], [ONE]),
    "2^62 numbers of 8 bytes": raw([pair(b"k", 9, array(10, (1 << 62) + 1))], [ONE]),
    "2^60 texts": raw([pair(b"k", 9, array(8, 1 << 60))], [ONE]),
    "2^31 empty texts that are not there": raw([pair(b"k", 9, array(8, 1 << 31))], [ONE]),
    "an array in an array": raw([pair(b"k", 9, array(9, 1, array(0, 1, b"\0")))], [ONE]),
    "arrays in arrays, a thousand deep": raw([pair(b"k", 9, array(9, 1) * 1000)], [ONE]),
    "an array of no type": raw([pair(b"k", 9, array(77, 1, b"\0"))], [ONE]),
    "a value of no type": raw([pair(b"k", 77, b"\0")], [ONE]),
    "an empty key": raw([pair(b"", 0, b"\0")], [ONE]),
    "the same key twice": raw([ARCHITECTURE, ARCHITECTURE], [ONE]),
    "the same tensor twice": raw([ARCHITECTURE], [ONE, tensor(b"a", (8,), 0, 32)]),
    "no pairs": raw([], [ONE]),
    "an architecture that is a number": raw([pair(b"general.architecture", 4, bytes(4))], [ONE]),
    "an architecture that is no text": raw(
        [pair(b"general.architecture", 8, text(b"\xff\xfe"))], [ONE]
    ),
    "alignment 0": raw([ARCHITECTURE, pair(b"general.alignment", 4, bytes(4))], [ONE]),
    "alignment 3": raw([ARCHITECTURE, pair(b"general.alignment", 4, b"\3\0\0\0")], [ONE]),
    "alignment 1": raw([ARCHITECTURE, pair(b"general.alignment", 4, b"\1\0\0\0")], [ONE]),
    "alignment 2^31": raw([ARCHITECTURE, pair(b"general.alignment", 4, b"\0\0\0\x80")], [ONE]),
    "alignment that is a text": raw(
        [ARCHITECTURE, pair(b"general.alignment", 8, text(b"32"))], [ONE]
    ),
    "alignment that is an array": raw(
        [ARCHITECTURE, pair(b"general.alignment", 9, array(4, 0))], [ONE]
    ),
    "five dimensions": raw([ARCHITECTURE], [tensor(b"a", (1, 1, 1, 1, 1))]),
    "2^32 - 1 dimensions": raw([ARCHITECTURE], [text(b"a") + b"\xff" * 4]),
    "no dimensions": raw([ARCHITECTURE], [tensor(b"a", ())]),
    "a dimension of 0": raw([ARCHITECTURE], [tensor(b"a", (0, 8))]),
    "a dimension of -1": raw([ARCHITECTURE], [tensor(b"a", ((1 << 64) - 1,))]),
    "a product that overflows": raw([ARCHITECTURE], [tensor(b"a", (1 << 32, 1 << 32))]),
    "a product that overflows to 0": raw([ARCHITECTURE], [tensor(b"a", (1 << 62, 4))]),
    "bytes that overflow": raw([ARCHITECTURE], [tensor(b"a", (1 << 61, 2))]),
    "a row of no whole blocks": raw([ARCHITECTURE], [tensor(b"a", (33,), 2)]),
    "a type that is none": raw([ARCHITECTURE], [tensor(b"a", (32,), 12345)]),
    "a type that was removed": raw([ARCHITECTURE], [tensor(b"a", (32,), 4)]),
    "a name of 64 bytes": raw([ARCHITECTURE], [tensor(b"a" * 64, (8,))]),
    "a name that is no text": raw([ARCHITECTURE], [tensor(b"\xff\xfe", (8,))]),
    "an offset of 2^63": raw([ARCHITECTURE], [tensor(b"a", (8,), 0, 1 << 63)]),
    "an offset of 2^64 - 32": raw([ARCHITECTURE], [tensor(b"a", (8,), 0, (1 << 64) - 32)]),
    "tensors that overlap": raw([ARCHITECTURE], [ONE, tensor(b"b", (8,))]),
    "a tensor outside the file": raw([ARCHITECTURE], [tensor(b"a", (1 << 20,))]),
    "no tensors": raw([ARCHITECTURE], []),
    "only pairs that are not there": raw([], [], 1 << 40, b""),
    "an alignment that moves the data past the file": raw(
        [ARCHITECTURE, pair(b"general.alignment", 4, struct.pack("<I", 1 << 30))], [ONE]
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_lie(name: str, device: Device, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(STRUCTURES[name])
    with pytest.raises(ModelError, match=r"x\.gguf"):
        load(device, path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 2.0, True, "1", 1e-40])
def test_epsilons_that_the_library_would_abort_on(
    value: Any, device: Device, tmp_path: Path
) -> None:
    for architecture, kind in (("bert", "layer_norm"), ("llama", "layer_norm_rms")):
        overrides = {f"attention.{kind}_epsilon": value}
        path = TinyModel(architecture=architecture, overrides=overrides).write(tmp_path / "x.gguf")
        with pytest.raises(ModelFileError, match=r"x\.gguf"):
            load(device, path)


@pytest.mark.parametrize("name", [*STRUCTURES][::6])
def test_adapters_that_lie(name: str, device: Device, model: Model, tmp_path: Path) -> None:
    """An adapter's file goes the same way."""
    path = tmp_path / "x.gguf"
    path.write_bytes(STRUCTURES[name])
    with pytest.raises(ModelError, match=r"x\.gguf"):
        model.load_adapter(path)


def test_an_adapter_with_a_vocabulary_that_ends_the_process(model: Model, tmp_path: Path) -> None:
    said = {"tokenizer.ggml.model": "plamo2", "tokenizer.ggml.tokens": ["a"]}
    path = TinyLora(TinyLlama(), metadata=said).write(tmp_path / "x.gguf")
    with pytest.raises(ModelUnsupported, match="tokenizer of kind 'plamo2'"):
        model.load_adapter(path)


def test_names_of_files_that_are_none(library: Library, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing", "a\0b", "x" * 300, "\udcff"):
        with pytest.raises(ModelNotFound):
            open_gguf(library, tmp_path / name, FileHashes())


def test_what_was_survived_is_remembered(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "x.gguf")
    os.utime(path, (1_000_000_000, 1_000_000_000))  # a file that was just written may still change
    hashes = FileHashes(tmp_path / "hashes")
    open_gguf(library, path, hashes)
    monkeypatch.setattr(opening, "try_out", None)
    open_gguf(library, path, hashes)
    os.utime(path, (1_000_000_001, 1_000_000_001))
    with pytest.raises(TypeError):  # it would be tried again
        open_gguf(library, path, hashes)


def test_a_file_that_changes_between_trial_and_use(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "x.gguf")
    bad = BAD["rwkv"]().write(tmp_path / "bad.gguf")
    try_out = opening.try_out

    def swapped(*args: Any) -> Any:
        outcome = try_out(*args)
        bad.replace(path)
        return outcome

    monkeypatch.setattr(opening, "try_out", swapped)
    with pytest.raises(ModelFileError, match="changed while it was opened"):
        open_gguf(library, path, FileHashes())
