"""Words of a message to the guest `complete`.

Generated from abi/complete.toml by tools/generate_abi.py; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Words:
    """What is said of one answer, each with its default."""

    max_tokens: int = 0
    """Most tokens of the answer."""
    temperature: float = 0.0
    """0 takes the most probable token; otherwise logits are divided by it."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach p."""
    min_p: float = 0.0
    """Drop tokens less probable than min_p times the most probable."""
    repeat_penalty: float = 1.0
    """Divide positive, multiply negative logits of recent tokens by it."""
    repeat_last_n: int = 64
    """How many of the last tokens count as recent."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer has already."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token as often as the answer has it already."""
    seed: int = 0
    """Of the random numbers of this answer."""
    logprobs: int = -1
    """Most probable tokens that are told beside each; -1 for no logprobs at all."""
    score_prompt: int = 0
    """1 tells the prompt's tokens before those of the answer, with their logprobs."""
    count_prompt: int = 0
    """1 tells how many tokens the prompt takes, and computes nothing."""
    ignore_eos: int = 0
    """1 takes a token that ends the text for one like all others."""
    bias: str = ""
    """Numbers that are added to the logits of tokens: ID:NUMBER, separated by commas."""
    grammar: int = 0
    """A grammar_kind of docs/abi.md that the answer follows; 0 for none."""
    grammar_nbytes: int = 0
    """Length of the grammar's source, behind the ids."""
    media_nbytes: int = 0
    """Length of the files behind the ids, with what is before and between them."""
    thinking: int = -1
    """Tokens of a thought, after which it is closed; -1 for no bound."""
    in_thought: int = 0
    """1 if the prompt has opened a thought."""
    opens: str = ""
    """Tokens that open a thought: ids, separated by commas."""
    closes: str = ""
    """Tokens that close a thought: ids, separated by commas."""
    close: str = ""
    """Tokens that close a thought which has used up its tokens: ids, separated by commas."""

    def line(self) -> bytes:
        """The words that differ from their defaults, as the message begins with them."""
        said = []
        for it in fields(self):
            if (value := getattr(self, it.name)) != it.default:
                said.append(f"{it.name}={_text(value)}")
        line = " ".join(said).encode()
        return line + b" " * (-(len(line) + 1) % 4) + b"\n"


def _text(value: int | float | str) -> str:
    """A value as the guest reads it: 9 digits give each 32-bit float."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
