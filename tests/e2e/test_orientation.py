"""Pictures are turned as their cameras noted it, as another program turns them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from isthmus import Runtime
from tests.e2e.test_decoders import (
    MANY_MUTATIONS,
    N_MUTATIONS,
    Decode,
    actor,
    decode,
    picture,
    saved,
    survive,
)

__all__ = ["actor", "decode"]

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg, progressive": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 90}),
    "webp, lossless": ("WEBP", {"lossless": True}),
}


def note(orientation: int, order: str = ">", tag: int = 274, kind: int = 3, n: int = 1) -> bytes:
    """What a camera notes of a picture: a maker, and how the picture is to be turned."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 2)
    entries = struct.pack(order + "HHI4s", 271, 2, 4, b"abc\0")
    entries += struct.pack(order + "HHIHH", tag, kind, n, orientation, 0)
    return head + entries + bytes(4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_noted(
    decode: Decode, name: str, orientation: int
) -> None:
    kind, options = KINDS[name]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = saved(picture("RGB"), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file)))).astype(int)
    found = decode(file)[1].astype(int)
    assert found.shape == ((37, 29, 3) if orientation > 4 else (29, 37, 3))
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_notes_of_both_orders_of_bytes(decode: Decode, order: str) -> None:
    for prefix in (b"", b"Exif\0\0"):
        file = saved(picture("RGB"), "PNG", exif=prefix + note(6, order))
        assert (decode(file)[1] == np.rot90(np.asarray(picture("RGB")), -1)).all()


NO_NOTES = {
    "an orientation that is none": note(9),
    "zero": note(0),
    "another kind of number": note(6, kind=4),
    "two of them": note(6, n=2),
    "of something else": note(6, tag=275),
    "another order of bytes": b"XX" + note(6)[2:],
    "cut off in the number": note(6)[:-10],
    "cut off in the head": note(6)[:9],
    "entries that lie beyond it": note(6)[:4] + b"\xff\xff\xff\xff" + note(6)[8:],
    "entries that begin at its end": note(6)[:4] + struct.pack(">I", len(note(6))) + note(6)[8:],
    "nothing": b"",
}


@pytest.mark.parametrize("name", NO_NOTES)
def test_a_note_that_cannot_be_turns_nothing(decode: Decode, name: str) -> None:
    plain = saved(picture("RGB"), "JPEG", quality=95)
    segment = b"Exif\0\0" + NO_NOTES[name]
    file = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    assert (decode(file)[1] == decode(plain)[1]).all()


SEEDS = {
    "jpeg": saved(picture("RGB", 24, 17), "JPEG", quality=70, exif=note(6)),
    "png": saved(picture("RGB", 23, 17), "PNG", exif=note(7, "<")),
    "webp": saved(picture("RGB", 24, 17), "WEBP", lossless=True, exif=note(5)),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutations(null_runtime: Runtime, name: str) -> None:
    survive(null_runtime, name, N_MUTATIONS, SEEDS[name])


@pytest.mark.long
@pytest.mark.parametrize("name", SEEDS)
def test_many_mutations(null_runtime: Runtime, name: str) -> None:
    survive(null_runtime, name, MANY_MUTATIONS, SEEDS[name])
