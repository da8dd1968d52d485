"""A model that says what it is told to, so that guests are tested without weights.

It is a GGUF file like any other, of architecture llama, so that all of Isthmus computes with it as
with a real one: batches, grammars, snapshots, forks, every device. Its vocabulary is single bytes,
four control tokens, and the pieces of its answers. Its one layer is made by hand:

=========  ==================================================================================
dimension  of a token's embedding, or of what attention adds
=========  ==================================================================================
PROMPT     1 for every token that is no piece of an answer
TURN       1 for the token that begins the assistant's turn
BEGIN      1 for the token at the beginning
TURNS      attention adds turns / tokens: each token attends to all before it alike
ONE        attention adds 1 / tokens
PIECE      1 for every piece of an answer
PIECE + i  1 for piece i alone
=========  ==================================================================================

After a piece, the output matrix makes the next piece of its answer by far the most probable token,
and after the last piece the end of the turn. After a prompt it is the first piece of an answer:
answer n has the line `slope**n * (turns - n + 1/2)`, and of all lines the one of the turn's own
answer is the highest; after the last turn that has one, it is the last answer's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isthmus.errors import SettingsError
from isthmus.model.files.gguf_writer import Value, gguf_bytes

PREFIX = "fake:"
SEPARATOR = "||"
"""What stands between two answers in a name such as fake:yes||no."""
NAME = "fake"
"""What such a model calls itself."""
MAX_ANSWERS = 8
N_CTX = 8192
_MAX_PIECES = 512
_WORD = re.compile(r"\s*\S+\s*$|\s*\S+", re.DOTALL)

BEGIN_TOKEN, END_TOKEN, TURN_TOKEN, ASSISTANT_TOKEN = range(4)
_CONTROL = ("<|begin|>", "<|end|>", "<|turn|>", "<|assistant|>")
_FIRST_PIECE = len(_CONTROL) + 256
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}"
    "{% else %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_PROMPT, _TURN, _BEGIN, _TURNS, _ONE, _PIECE = range(6)
_SLOPE = 10.0
_LINES, _CERTAIN = 1e6, 1e17
"""Factors of logits: a line's, of which 1 / tokens is left, and one that exceeds all lines."""
_HEAD_DIM = 32

_Matrix = npt.NDArray[np.float32]


def is_scripted(name: str) -> bool:
    """Whether a model's name says what the model is to say."""
    return name.startswith(PREFIX)


def scripted_file(name: str, folder: Path) -> Path:
    """The file of the model that a name such as fake:yes||no describes, made if it is not there.

    SettingsError for answers that cannot be.
    """
    answers = name.removeprefix(PREFIX).split(SEPARATOR)
    path = folder / f"{hashlib.sha256(repr(answers).encode()).hexdigest()[:16]}.gguf"
    data = scripted_gguf(answers)
    if not path.exists() or path.read_bytes() != data:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{id(data):x}.partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def scripted_gguf(answers: Sequence[str]) -> bytes:
    """The bytes of a file whose model gives these answers, one for each turn. SettingsError."""
    if not 1 <= len(answers) <= MAX_ANSWERS or not all(answers):
        raise SettingsError(
            f"a scripted model has 1 to {MAX_ANSWERS} answers, none of them empty: give "
            f"{PREFIX}TEXT, or {PREFIX}TEXT{SEPARATOR}TEXT"
        )
    pieces = split_answers(answers)
    n_pieces = sum(map(len, pieces))
    n_embd = -(-(_PIECE + 1 + n_pieces) // 32) * 32
    return gguf_bytes(_metadata(pieces, n_embd), _tensors(pieces, n_embd))


def split_answers(answers: Sequence[str]) -> list[list[str]]:
    """The pieces of each answer: words, and more than a word where that was a piece already.

    A vocabulary has each text once, and single bytes are in it.
    """
    seen = {chr(byte) for byte in range(128)}
    most = _MAX_PIECES // len(answers)
    return [_split(answer, seen, most) for answer in answers]


def _split(answer: str, seen: set[str], most: int) -> list[str]:
    words = _WORD.findall(answer) or [answer]
    step = -(-len(words) // most)
    pieces: list[str] = []
    rest = ""
    for at in range(0, len(words), step):
        rest += "".join(words[at : at + step])
        if rest not in seen:
            pieces.append(rest)
            seen.add(rest)
            rest = ""
    while rest and pieces:  # what is left was seen before: it goes to the piece before it
        last = pieces.pop()
        seen.discard(last)
        rest = last + rest
        if rest not in seen:
            break
    if rest in seen:
        raise SettingsError(
            f"a scripted model cannot say {answer!r}: its answers have to differ, and to be more "
            "than one character long"
        )
    if rest:
        pieces.append(rest)
        seen.add(rest)
    return pieces


def _metadata(pieces: Sequence[Sequence[str]], n_embd: int) -> dict[str, Value]:
    tokens = [*_CONTROL, *map(_byte_text, range(256))]
    tokens += ["".join(map(_byte_text, text.encode())) for answer in pieces for text in answer]
    shape = {
        "block_count": 1,
        "context_length": N_CTX,
        "embedding_length": n_embd,
        "feed_forward_length": 32,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "attention.key_length": _HEAD_DIM,
        "attention.value_length": _HEAD_DIM,
        "rope.dimension_count": _HEAD_DIM,
        "rope.freq_base": 10_000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": len(tokens),
    }
    return {
        "general.architecture": "llama",
        "general.name": NAME,
        **{f"llama.{key}": value for key, value in shape.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(_CONTROL) + [1] * (len(tokens) - len(_CONTROL)),
        "tokenizer.ggml.merges": [f"{_byte_text(0)} {_byte_text(0)}"],
        "tokenizer.ggml.bos_token_id": BEGIN_TOKEN,
        "tokenizer.ggml.eos_token_id": END_TOKEN,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": _TEMPLATE,
    }


def _byte_text(byte: int) -> str:
    """A byte as byte-pair vocabularies write it: printable ones as they are, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(0x100 + sum(it not in printable for it in range(byte)))


def _tensors(pieces: Sequence[Sequence[str]], n_embd: int) -> dict[str, _Matrix]:
    """All weights by name; numpy has the contiguous dimension last."""

    def zeros(*shape: int) -> _Matrix:
        return np.zeros(shape, np.float32)

    def ones(n: int) -> _Matrix:
        return np.ones(n, np.float32)

    value, attention = zeros(_HEAD_DIM, n_embd), zeros(n_embd, _HEAD_DIM)
    scale = (2 / n_embd) ** 0.5  # attn_norm has a token of two dimensions be this long
    value[0, _TURN] = value[1, _BEGIN] = scale
    attention[_TURNS, 0] = attention[_ONE, 1] = 0.1
    return {
        "token_embd.weight": _embeddings(pieces, n_embd),
        "output_norm.weight": ones(n_embd),
        "output.weight": _output(pieces, n_embd),
        "blk.0.attn_norm.weight": ones(n_embd),
        "blk.0.attn_q.weight": zeros(_HEAD_DIM, n_embd),
        "blk.0.attn_k.weight": zeros(_HEAD_DIM, n_embd),
        "blk.0.attn_v.weight": value,
        "blk.0.attn_output.weight": attention,
        "blk.0.ffn_norm.weight": ones(n_embd),
        "blk.0.ffn_gate.weight": zeros(32, n_embd),
        "blk.0.ffn_up.weight": zeros(32, n_embd),
        "blk.0.ffn_down.weight": zeros(n_embd, 32),
    }


def _embeddings(pieces: Sequence[Sequence[str]], n_embd: int) -> _Matrix:
    n_pieces = sum(map(len, pieces))
    table = np.zeros((_FIRST_PIECE + n_pieces, n_embd), np.float32)
    table[:_FIRST_PIECE, _PROMPT] = 1
    table[ASSISTANT_TOKEN, _TURN] = table[BEGIN_TOKEN, _BEGIN] = 1
    table[_FIRST_PIECE:, _PIECE] = 1
    table[_FIRST_PIECE:, _PIECE + 1 : _PIECE + 1 + n_pieces] = np.eye(n_pieces)
    return table


def _output(pieces: Sequence[Sequence[str]], n_embd: int) -> _Matrix:
    table = np.zeros((_FIRST_PIECE + sum(map(len, pieces)), n_embd), np.float32)
    table[:, _PROMPT] = -_CERTAIN
    first = 0
    for n, answer in enumerate(pieces):
        begin = table[_FIRST_PIECE + first]
        begin[_PROMPT], begin[_PIECE] = 0, -_CERTAIN
        line = _LINES * _SLOPE**n
        begin[_TURNS], begin[_ONE] = (line, -line * (n + 0.5)) if n else (0, line)
        for at in range(first, first + len(answer)):
            last = at == first + len(answer) - 1
            table[END_TOKEN if last else _FIRST_PIECE + at + 1, _PIECE + 1 + at] = _CERTAIN
        first += len(answer)
    return table
