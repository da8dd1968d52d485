"""Vocabularies of tiny models: each byte as a token, or letters and a few words."""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence

import gguf

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INFILL = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|repo_name|>", "<|file_sep|>")
"""Tokens that mark a gap in a text, by names that libllama knows."""
WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "an", "isthmus", "is", "land", "bridge", "sea", "cat", "sleep", "two")
WORD_ENDS = ("ing", "ed", "es", "ges")


def write_bytes(w: gguf.GGUFWriter, n_vocab: int, pre_tokenizer: str, more: Sequence[str]) -> None:
    """A byte-level BPE with one merge: each byte is a token, then the special ones, and `more`."""
    from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

    tokens = [*SPECIAL, *bytes_to_unicode().values(), *more]
    tokens += [f"[unused{n}]" for n in range(n_vocab - len(tokens))]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    special = {*SPECIAL, *more}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre_tokenizer)
    w.add_token_list(tokens)
    w.add_token_types([control if it in special else normal for it in tokens])
    w.add_token_merges([f"{tokens[3 + 64]} {tokens[3 + 65]}"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)


def write_wordpiece(w: gguf.GGUFWriter, n_vocab: int, without: Collection[str]) -> None:
    """Letters at the beginning of a word and inside, and a few words; special tokens but for those
    `without`."""
    letters = string.ascii_lowercase + string.digits
    tokens = [*WORDPIECE_SPECIAL, *(f"\u2581{it}" for it in (*WORDS, *letters, *".,!?'-"))]
    tokens += [*letters, *WORD_ENDS]
    tokens += [f"[unused{n}]" for n in range(n_vocab - len(tokens))]
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    special = len(WORDPIECE_SPECIAL)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    w.add_token_types([control] * special + [normal] * (n_vocab - special))
    w.add_token_type_count(2)
    for number, name in enumerate(("pad", "unk", "bos", "sep", "mask")):
        if name not in without:
            getattr(w, f"add_{name}_token_id")(number)
