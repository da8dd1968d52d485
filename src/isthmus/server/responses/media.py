"""Parts of messages that are pictures and sounds.

=================  ===============================================================================
part               its file
=================  ===============================================================================
`input_image`      `image_url`: a data URI, or a URL if the server allows its host
`input_audio`      `input_audio.data`, base64 of a WAV
`input_file`       `file_data`: a data URI of a picture or a sound; or `file_url`
=================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from isthmus.server.generation.media import MediaFiles
from isthmus.server.http.errors import HttpError
from isthmus.server.responses.requests import converted

_KEPT = "no files are kept here: send the file itself, as a data URI"
_PICTURES = ("data:image/", "data:audio/")


class _Image(Struct, kw_only=True):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class _Sound(Struct, kw_only=True):
    data: str
    format: Literal["wav"]


class _Audio(Struct, kw_only=True):
    input_audio: _Sound


class _File(Struct, kw_only=True):
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: str | None = None


def media_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A part that is a file, as it is told. HttpError 400."""
    kind = part["type"]
    if kind == "input_audio":
        audio = converted(part, _Audio, where, "invalid_item").input_audio
        return {"type": kind, "input_audio": {"data": audio.data, "format": audio.format}}
    if kind == "input_image":
        image = converted(part, _Image, where, "invalid_item")
        _require(image.image_url, image.file_id, f"{where}.image_url")
        return {"type": kind, "detail": image.detail or "auto", "image_url": image.image_url}
    file = converted(part, _File, where, "invalid_item")
    name = "file_data" if file.file_data is not None else "file_url"
    given = file.file_data if file.file_data is not None else file.file_url
    _require(given, file.file_id, f"{where}.{name}")
    if name == "file_data" and not str(given).startswith(_PICTURES):
        said = "models read pictures and sounds of files: send a document's text as input_text"
        raise HttpError(400, said, code="unsupported_content", param=f"{where}.file_data")
    return {"type": kind, name: given} | ({"filename": file.filename} if file.filename else {})


def add_media(files: MediaFiles, part: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for a part in a conversation; its file joins `files`. HttpError 400."""
    if part["type"] == "input_audio":
        return files.add_base64(part["input_audio"]["data"], "input_audio.data")
    name = next(it for it in ("image_url", "file_data", "file_url") if it in part)
    return files.add_uri(part[name], name)


def _require(given: str | None, file_id: str | None, where: str) -> None:
    if given is not None:
        return
    raise HttpError(400, _KEPT if file_id is not None else "there is no file", param=where)
