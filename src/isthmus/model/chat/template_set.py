"""The chat templates of a file: one, or several of which tools decide.

1. `tokenizer.chat_template`: the usual template, also called `default`
2. `tokenizer.chat_template.NAME`: others by their names; `tool_use` is for conversations with tools
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.template_traits import Traits
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import TOKENS_KEY
from isthmus.model.tokens.tokenizer import Tokenizer

_KEY = "tokenizer.chat_template"
_TOKENS = {
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
"""Special tokens beside bos and eos that templates can name, and where files have their ids."""


@dataclass(frozen=True)
class TemplateSet:
    """Templates with what they do, by name: `default`, `tool_use`, or one of both.

    A template that does not compile is its error, which is raised when it is chosen.
    """

    templates: Mapping[str, Traits | TemplateError]
    others: tuple[str, ...] = ()
    """Names of templates that nothing chooses."""

    @classmethod
    def of(cls, file: GgufFile, tokenizer: Tokenizer) -> TemplateSet | None:
        """A file's templates; None if it has none."""
        text = _texts_of(tokenizer)
        return cls._made(file, text, text(tokenizer.bos), text(tokenizer.eos))

    @classmethod
    def of_header(cls, file: GgufFile) -> TemplateSet | None:
        """A file's templates without its tokenizer: special tokens have the texts that the header
        says."""
        tokens = file.metadata.get(TOKENS_KEY)
        texts = tokens if isinstance(tokens, list) else []

        def text(token: int) -> str:
            return texts[token] if 0 <= token < len(texts) else ""

        bos, eos = (file.metadata.get(f"tokenizer.ggml.{it}_token_id", -1) for it in ("bos", "eos"))
        known = (text(it) if isinstance(it, int) else "" for it in (bos, eos))
        return cls._made(file, text, *known)

    @classmethod
    def _made(
        cls, file: GgufFile, text: Callable[[int], str], bos: str, eos: str
    ) -> TemplateSet | None:
        sources = dict(_sources(file))
        if not sources:
            return None
        tokens = {"bos": bos, "eos": eos, **_special(file, text)}
        chosen = {name: sources.pop(name) for name in ("default", "tool_use") if name in sources}
        made: dict[str, Traits | TemplateError] = {
            name: _compiled(source, tokens) for name, source in chosen.items()
        }
        return cls(made, tuple(sources))

    def chosen(self, *, with_tools: bool) -> Traits:
        """The template for a conversation; TemplateError for none, or one that is not usable."""
        found = self.templates.get("default")
        if with_tools:
            found = self.templates.get("tool_use", found)
        if found is None:
            names = ", ".join(repr(it[:40]) for it in (*self.templates, *self.others)[:8])
            raise TemplateError(f"the model has chat templates {names}, and none called 'default'")
        if isinstance(found, TemplateError):
            raise found
        return found


def _sources(file: GgufFile) -> dict[str, str]:
    found = {}
    for key, value in file.metadata.items():
        if key.startswith(f"{_KEY}.") and isinstance(value, str) and value:
            found[key.removeprefix(f"{_KEY}.")] = value
    usual = file.metadata.get(_KEY)
    return found | ({"default": usual} if usual and isinstance(usual, str) else {})


def _compiled(source: str, tokens: Mapping[str, str]) -> Traits | TemplateError:
    special = {name: text for name, text in tokens.items() if name not in ("bos", "eos")}
    try:
        return Traits(ChatTemplate(source, bos=tokens["bos"], eos=tokens["eos"], special=special))
    except TemplateError as error:
        return error


def _special(file: GgufFile, text: Callable[[int], str]) -> dict[str, str]:
    """Texts of the special tokens beside bos and eos that the file has."""
    ids = {name: file.metadata.get(key) for name, key in _TOKENS.items()}
    found = {name: text(id_) for name, id_ in ids.items() if isinstance(id_, int)}
    return {name: it for name, it in found.items() if it}


def _texts_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    def text(token: int) -> str:
        if not 0 <= token < tokenizer.n_tokens:
            return ""
        return tokenizer.decode([token], render_special=True).decode(errors="replace")

    return text
