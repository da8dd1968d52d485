"""From prompts as texts, ids or both in a row to token ids; all of it in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from isthmus.errors import ContextFull, SettingsError
from isthmus.model import Tokenizer
from isthmus.server.http.errors import HttpError
from isthmus.server.http.texts import Check
from isthmus.server.llamacpp.requests import Mixed, PromptObject, Prompts

MAX_PROMPTS = 32


@dataclass
class Reader:
    """Reads what a request has for prompts. TokenError, ContextFull."""

    tokenizer: Tokenizer
    check: Check
    most: int
    """Tokens of the longest prompt."""
    parse_special: bool = False
    """Whether control tokens in texts are read as such."""
    unread: set[str] = field(default_factory=set)
    """Texts of control tokens that were found in texts, and are text."""

    def text(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text."""
        if not self.parse_special:
            self.unread.update(self._controls_in(text))
        return self.tokenizer.encode(
            text,
            add_special=add_special,
            parse_special=self.parse_special,
            most=self.most,
            check=self.check,
        )

    def mixed(self, given: Mixed, param: str, *, add_special: bool = False) -> list[int]:
        """Token ids of texts and ids in a row; BOS comes only before a text."""
        if isinstance(given, str):
            return self.text(given, add_special=add_special)
        found: list[int] = []
        for number, it in enumerate(given):
            self.check()
            if isinstance(it, str):
                found += self.text(it, add_special=add_special and number == 0)
            else:
                require_token(self.tokenizer, it, f"{param}[{number}]")
                found.append(it)
            if len(found) > self.most:
                raise ContextFull(f"{param} has more than {self.most} tokens, the most that fit")
        return found

    def prompts(self, given: Prompts) -> list[list[int]]:
        """Token ids of each of the prompts. SettingsError if there is none, or too many."""
        listed = list(_listed(given))
        if not 1 <= len(listed) <= MAX_PROMPTS:
            raise SettingsError(f"prompt: give 1 to {MAX_PROMPTS}, not {len(listed)}")
        return [self.mixed(it, where, add_special=True) for where, it in listed]

    def warnings(self) -> tuple[str, ...]:
        """Sentences about control tokens that are text."""
        if not self.unread:
            return ()
        shown = ", ".join(sorted(self.unread)[:4])
        return (
            f"{shown} in a prompt is text, and no control token: give its id, or parse_special: "
            "true",
        )

    def _controls_in(self, text: str) -> Iterator[str]:
        data = text.encode(errors="replace")
        for it in self.tokenizer.controls.cut(data, self.check):
            if isinstance(it, int):
                yield self.tokenizer.decode([it], render_special=True).decode(errors="replace")


def _listed(given: Prompts) -> Iterator[tuple[str, Mixed]]:
    """Each prompt, with its place in the request."""
    if isinstance(given, str):
        yield "prompt", given
    elif isinstance(given, PromptObject):
        yield "prompt", given.prompt_string
    elif any(isinstance(it, int) for it in given):
        yield "prompt", _one(given)
    else:
        for number, it in enumerate(given):
            where = f"prompt[{number}]"
            if isinstance(it, PromptObject):
                yield where, it.prompt_string
            elif not isinstance(it, int):
                yield where, it


def _one(given: Sequence[object]) -> list[str | int]:
    """One prompt of texts and ids. HttpError 400 for a list or an object in it."""
    found: list[str | int] = []
    for number, it in enumerate(given):
        if not isinstance(it, str | int):
            said = "a prompt with ids in it has texts and ids, and nothing else"
            raise HttpError(400, said, param=f"prompt[{number}]")
        found.append(it)
    return found


def require_token(tokenizer: Tokenizer, token: int, param: str) -> None:
    """HttpError 400, code `token`, for an id that is not in the vocabulary."""
    if not 0 <= token < tokenizer.n_tokens:
        said = f"token {token} is not in the vocabulary of {tokenizer.n_tokens}"
        raise HttpError(400, said, code="token", param=param)
