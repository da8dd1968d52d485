"""Shards of one model: what each says of its place among the others, compared.

1. `split.count`: number of shards; missing or 0 in a file that is a whole model
2. `split.no`: the shard's place, from 0
3. `split.tensors.count`: tensors of all shards together

Only the first shard has the model's other metadata. A shard of another quantisation of the same
model says nothing that tells it from the right one; the hash of the whole model does.

Written by https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split.
"""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import ModelFileError
from isthmus.model.files.header import Header

_COUNT, _PLACE, _N_TENSORS = "split.count", "split.no", "split.tensors.count"
_SAME = ("general.architecture", "general.name", _N_TENSORS)
"""What a later shard may leave out, and may not say otherwise than the first."""


def require_one_model(headers: Sequence[Header]) -> None:
    """Raises ModelFileError, naming the file, unless these files in this order are one model."""
    for place, header in enumerate(headers):
        _require_place(header, place, len(headers))
        _require_same(header, headers[0])
    if len(headers) > 1:
        _require_tensors(headers)


def _require_place(header: Header, place: int, count: int) -> None:
    said, at = header.metadata.get(_COUNT, 0), header.metadata.get(_PLACE, 0)
    if count == 1 and said in (0, 1):
        return
    if count == 1:
        raise ModelFileError(
            f"{header.path} says that it is one of {said} shards, and its name does not: open it "
            "by a name such as NAME-00001-of-00004.gguf, the others beside it; in a hub's cache "
            "by the link below snapshots"
        )
    if said in (0, 1):
        raise ModelFileError(
            f"{header.path} is named as shard {place + 1} of {count}, and is a whole model by what "
            "it says: give it a name without -of-"
        )
    if said != count:
        raise ModelFileError(
            f"{header.path} is named as one of {count} shards, and says that there are {said}"
        )
    if at != place:
        number = at + 1 if isinstance(at, int) else repr(at)
        raise ModelFileError(
            f"{header.path} is named as shard {place + 1} of {count}, and says that it is shard "
            f"{number}: were files renamed?"
        )


def _require_same(header: Header, first: Header) -> None:
    for key in _SAME:
        said, expected = header.metadata.get(key), first.metadata.get(key)
        if said is not None and said != expected:
            raise ModelFileError(
                f"{header.path} is a shard of another model than {first.path.name}: its {key} is "
                f"{said!r}, and {expected!r} there"
            )


def _require_tensors(headers: Sequence[Header]) -> None:
    """Each tensor is in one shard, and all are there."""
    found: dict[str, Header] = {}
    for header in headers:
        for info in header.tensors:
            if info.name in found:
                raise ModelFileError(
                    f"{header.path} holds the tensor {info.name}, which "
                    f"{found[info.name].path.name} has too: is it of another model?"
                )
            found[info.name] = header
    expected = headers[0].metadata.get(_N_TENSORS)
    if expected != len(found):
        raise ModelFileError(
            f"{headers[0].path} says that its shards have {expected!r} tensors together, and they "
            f"have {len(found)}: is one of them of another model?"
        )
