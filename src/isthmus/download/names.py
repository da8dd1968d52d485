"""What `isthmus pull` and servers take as a model's name.

::

    llama3.2:1b                     a well-known model: `known`
    hf:ORG/REPO                     of a repository, the quantisation that `quants` prefers
    hf:ORG/REPO:QUANT               that quantisation, such as Q8_0
    hf:ORG/REPO/FILE.gguf           that file, or all shards that it is one of
    hf.co/ORG/REPO:QUANT            the same as hf:, as Ollama's users write it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from isthmus.download.known import KNOWN, HubModel, KnownModel
from isthmus.errors import DownloadError
from isthmus.shards import SUFFIX
from isthmus.spelling import suggestion

_SHORT = "hf:"
_IN_REPO_NAMES = re.compile(r"gguf(?<!\.gguf)", re.I)
"""In the names of most repositories that have GGUF files, and in no folder's or file's path."""
_PREFIX = re.compile(r"hf:|(https://)?(hf\.co|huggingface\.co)/")
_PART = r"[A-Za-z0-9](?:[\w-]|\.(?!\.)){0,95}"
_HUB = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:/(?P<file>[^:]+)|:(?P<quant>[\w.-]{{1,64}}))?", re.A
)
_FORMS = (
    "smollm2, llama3.2:1b or another name that isthmus pull --help lists, hf:ORG/REPO[:QUANT], "
    f"hf:ORG/REPO/FILE{SUFFIX}"
)
"""The names above, for an error."""
_MAX_SHOWN = 80
"""Characters of a name in an error: a client of a server may have given it."""
_LATEST = "latest"
"""The tag that clients of Ollama add to names."""


@dataclass(frozen=True)
class HubName:
    """A model of a repository: by its file, by its quantisation, or the preferred one."""

    repo: str
    """ORG/REPO."""
    file: str | None = None
    quant: str | None = None
    """In capitals."""

    def __str__(self) -> str:
        more = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"hf:{self.repo}{more}"


def is_name(text: str) -> bool:
    """Whether a text names a model that can be fetched, and is no path."""
    return text in KNOWN or _PREFIX.match(text) is not None


def parse(text: str) -> KnownModel | HubName:
    """The well-known model, or the place on the hub, that a name names.

    DownloadError if it has none of the forms above.
    """
    if text in KNOWN:
        return KNOWN[text]
    prefix, shown = _PREFIX.match(text), text[:_MAX_SHOWN]
    if prefix is None:
        raise DownloadError(f"cannot pull {shown!r}{hint(text)}")
    found = _HUB.fullmatch(text, prefix.end())
    file = found["file"] if found else None
    if found is None or (file is not None and not is_plain(file)):
        raise DownloadError(f"{shown!r} is not of the form hf:ORG/REPO[:QUANT], nor …/FILE{SUFFIX}")
    quant = found["quant"]
    if quant is not None and quant.lower() == _LATEST:
        quant = None
    return HubName(found["repo"], file, quant.upper() if quant else None)


def hint(text: str) -> str:
    """The end of an error about a text that is neither a name nor a file: the names that were
    probably meant, or what can be given."""
    without = text[len(_SHORT) :] if text.lower().startswith(_SHORT) else text
    found = _HUB.fullmatch(without)
    if found and _IN_REPO_NAMES.search(found["repo"]):
        return f": did you mean {_SHORT}{without}?"
    begins = [it for it in KNOWN if it.startswith((f"{text}:", f"{text}."))]
    if begins:
        first = f"{', '.join(begins[:-1])} or " if len(begins) > 1 else ""
        return f": did you mean {first}{begins[-1]}?"
    if meant := suggestion(text, KNOWN):
        return f"{meant} Any other model of the hub is hf:ORG/REPO[:QUANT]"
    return f"; give the path of a GGUF file, {_FORMS}"


def hub_name(found: HubModel) -> HubName:
    """A well-known model's place on the hub."""
    return HubName(found.repo, found.file)


def is_plain(file: str) -> bool:
    """Whether a repository's path of a GGUF file can be a file's name here: it leads nowhere else,
    hides nothing, and has no character that a terminal or a shell would obey."""
    if not file.isprintable() or "\\" in file or not file.endswith(SUFFIX):
        return False
    parts = file.split("/")
    return all(it and not it.startswith(".") and len(it.encode()) <= 255 for it in parts)
