"""Opens a model's file as Isthmus will, in a process of its own: see `opening`.

This file is what that process runs. It imports few of the package's modules, since each start of
a model that was not seen before waits for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isthmus.errors import ModelError, TemplateError
from isthmus.model.chat.template_set import TemplateSet
from isthmus.model.files.gguf import GgufFile
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.native.child import open_told
from isthmus.native.loader import Library

_TEXTS = (
    "",
    "The quick brown fox, 12345 times; it's 3.14!\r\n\n\t  def f(x):\n    return x\n",
    "é ß Ω й 中文字 한국어 ไทย ١٢٣ \u0301\u200d\ufeff\ufffd",
    "🙂👩‍👩‍👧\U0010ffff",
    "".join(map(chr, range(1, 256))),
    "\u2581<s></s><0x0A>[UNK]<|im_start|><|endoftext|>",
    "x" * 4096,
    " " * 4096,
    "\n" * 512,
)
_SPECIAL_NBYTES = 4096
_opened: list[Library] = []
"""The library, once `prepare` has opened it."""


def prepare(library: str) -> None:
    """Opens the library that `native.child` told of, before limits hold: drivers of graphics
    devices may take many addresses."""
    _opened.append(open_told(library))


def try_out(job: bytes) -> bytes:
    """Opens a file and uses all of it that will be used: {"path", "own"} as JSON. `own` are the
    architectures that libllama's own graph does not compute; null for all. With "embeddings",
    embeddings in place of tokens are computed by that graph, and nothing else is tried; with
    "projector", a file, embeddings of pictures and sounds are.

    Returns {"problem", "graph"} as JSON: [error's name, text] or null, and what libllama's own
    graph of the file is, or null if that will not compute it. What the library does not survive
    ends the process.
    """
    asked = json.loads(job)
    try:
        graph = None
        if asked.get("embeddings"):
            _feed(_opened[0], Path(asked["path"]))
        elif asked.get("projector"):
            _project(_opened[0], Path(asked["path"]), Path(asked["projector"]))
        else:
            graph = _open(_opened[0], Path(asked["path"]), asked["own"])
    except ModelError as error:
        return json.dumps({"problem": [type(error).__name__, str(error)], "graph": None}).encode()
    return json.dumps({"problem": None, "graph": graph}).encode()


def _open(library: Library, path: Path, own: list[str] | None) -> dict[str, Any] | None:
    file = GgufFile(library, path)
    tokenizer = Tokenizer.try_open(library, file)
    if tokenizer is not None:
        _tokenize(tokenizer)
        _render(file, tokenizer)
    if own is None or file.metadata.get("general.architecture") in own:
        return None
    from isthmus.model.adopted.vetting import vet  # noqa: PLC0415 - most files do without

    return vet(library, file).as_json()


def _feed(library: Library, path: Path) -> None:
    from isthmus.model.adopted.vetting import feed  # noqa: PLC0415 - as below

    feed(library, GgufFile(library, path))


def _project(library: Library, path: Path, projector: Path) -> None:
    from isthmus.model.media.vetting import project  # noqa: PLC0415 - as below

    project(library, GgufFile(library, path), projector)


def _tokenize(tokenizer: Tokenizer) -> None:
    """What libllama can trip over with some texts and not with others."""
    every = range(tokenizer.n_tokens)
    tokenizer.decode(every)  # loading has made the pieces of special tokens
    special = [token for token in every if tokenizer.flags(token)]
    marks = tokenizer.decode(special, render_special=True)[:_SPECIAL_NBYTES].decode(errors="ignore")
    for text in (*_TEXTS, marks):
        for parse_special in (False, True):
            tokenizer.encode(text, add_special=True, parse_special=parse_special)


def _render(file: GgufFile, tokenizer: Tokenizer) -> None:
    """A template may refuse the conversation, which shows when it is used."""
    templates = TemplateSet.of(file, tokenizer)
    if templates is None:
        return
    for with_tools in (False, True):
        try:
            traits = templates.chosen(with_tools=with_tools)
            conversation = [{"role": "user", "content": "Hi"}]
            traits.template.render(conversation, add_generation_prompt=True)
        except TemplateError:
            pass
