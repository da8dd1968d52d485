"""Opens a model's file as Isthmus will, in a process of its own: see `opening`.

This file is what that process runs. The package's own modules are imported when the job begins,
and those of `isthmus` and `isthmus.model` that import everything else are not run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isthmus.model.gguf import GgufFile
    from isthmus.model.tokenizer import Tokenizer
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


def try_out(job: bytes) -> bytes:
    """Opens a file, {"library", "path"} as JSON, and uses its vocabulary and template.

    Returns what is wrong with it as JSON, [error's name, text]; [] if nothing was found. What the
    library does not survive ends the process.
    """
    found = json.loads(job)
    _skip_imports()
    from isthmus.errors import ModelError  # noqa: PLC0415
    from isthmus.native.loader import open_known  # noqa: PLC0415

    library = open_known(found["library"]["source"], found["library"]["files"])
    try:
        _open(library, Path(found["path"]))
    except ModelError as error:
        return json.dumps([type(error).__name__, str(error)]).encode()
    return b"[]"


def _skip_imports() -> None:
    """Puts empty packages where `isthmus` and `isthmus.model` would import all there is."""
    folder = Path(__file__).parent
    for name, path in (("isthmus", folder.parent), ("isthmus.model", folder)):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package


def _open(library: Library, path: Path) -> None:
    from isthmus.model.gguf import GgufFile  # noqa: PLC0415
    from isthmus.model.tokenizer import Tokenizer  # noqa: PLC0415

    file = GgufFile(library, path)
    tokenizer = Tokenizer.try_open(library, file)
    if tokenizer is not None:
        _tokenize(tokenizer)
        _render(file, tokenizer)


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
    from isthmus.errors import TemplateError  # noqa: PLC0415
    from isthmus.model.chat_template import ChatTemplate  # noqa: PLC0415

    try:
        template = ChatTemplate.of(file, tokenizer)
        if template is not None:
            conversation = [{"role": "user", "content": "Hi"}]
            template.render(conversation, add_generation_prompt=True)
    except TemplateError:
        pass
