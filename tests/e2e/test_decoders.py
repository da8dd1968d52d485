"""The decoders that guests have: pictures as others decode them; bad files give traps at most."""

from __future__ import annotations

import base64
import io
import random
import struct
import wave
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from isthmus import Limits, Runtime
from isthmus.actor import Actor
from isthmus.errors import GuestError, IsthmusError
from isthmus.units import MIB

N_MUTATIONS, MANY_MUTATIONS = 200, 10_000
Decode = Callable[[bytes], tuple[str, np.ndarray]]


def spawn(runtime: Runtime) -> Actor:
    return runtime.spawn("decode", limits=Limits(memory_nbytes=256 * MIB, output_nbytes=None))


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield spawn(runtime)


@pytest.fixture(scope="module")
def decode(actor: Actor) -> Decode:
    def run(file: bytes) -> tuple[str, np.ndarray]:
        head, _, rest = actor.send(file).data.partition(b"\n")
        kind, *sizes = head.decode().split()
        if kind == "rgb":
            width, height = map(int, sizes)
            return kind, np.frombuffer(rest, np.uint8).reshape(height, width, 3)
        return kind, np.frombuffer(rest, np.float32)

    return run


def picture(mode: str, width: int = 37, height: int = 29) -> Image.Image:
    """Smooth colours and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (5 + i) + y / 7 + i) for i in range(4)]
    noise = np.random.default_rng(0).integers(0, 20, (height, width))
    planes = np.stack([np.clip(it + noise, 0, 255) for it in waves], axis=-1).astype(np.uint8)
    return Image.fromarray(planes, "RGBA").convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def on_white(image: Image.Image) -> np.ndarray:
    """What a person sees."""
    rgba = np.asarray(image.convert("RGBA")).astype(int)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png(decode: Decode, mode: str, level: int) -> None:
    image = picture(mode)
    kind, found = decode(saved(image, "PNG", compress_level=level))
    assert kind == "rgb"
    assert (found == on_white(image)).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_with_few_colours(decode: Decode, bits: int) -> None:
    image = picture("RGB").quantize(1 << bits)
    found = decode(saved(image, "PNG", bits=bits))[1]
    assert (found == np.asarray(image.convert("RGB"))).all()


def test_png_with_a_colour_that_is_transparent(decode: Decode) -> None:
    image = Image.new("RGB", (3, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    found = decode(saved(image, "PNG", transparency=(1, 2, 3)))[1]
    assert found.tolist() == [[[9, 8, 7], [255, 255, 255], [9, 8, 7]]]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + bytes(4)


def png(
    width: int, height: int, depth: int, colours: int, rows: bytes, interlaced: int = 0
) -> bytes:
    import zlib

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_png_of_16_bits(decode: Decode) -> None:
    samples = np.random.default_rng(1).integers(0, 1 << 16, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    assert (decode(png(4, 5, 16, 2, rows))[1] == samples >> 8).all()


def test_png_in_seven_passes(decode: Decode) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (13, 11, 3)).astype(np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for x, y, dx, dy in [*passes, (0, 1, 1, 2)]
        for row in pixels[y::dy, x::dx]
    )
    assert (decode(png(11, 13, 8, 2, rows, interlaced=1))[1] == pixels).all()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(8, 8), (37, 29), (200, 130)])
def test_jpeg(decode: Decode, mode: str, size: tuple[int, int], progressive: bool) -> None:
    file = saved(picture(mode, *size), "JPEG", quality=90, subsampling=0, progressive=progressive)
    found = decode(file)[1].astype(int)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [1, 2])
def test_jpeg_with_fewer_samples_of_colour(
    decode: Decode, subsampling: int, progressive: bool
) -> None:
    file = saved(
        picture("RGB", 203, 131),
        "JPEG",
        quality=85,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=5,
    )
    found = decode(file)[1].astype(int)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    assert np.abs(found - expected).mean() < 1.5


def test_jpeg_without_its_end(decode: Decode) -> None:
    file = saved(picture("RGB", 200, 130), "JPEG", quality=90, subsampling=0)
    whole, part = decode(file)[1], decode(file[: len(file) * 3 // 4])[1]
    assert part.shape == whole.shape
    assert (part[:50] == whole[:50]).all()


LOSSY = {
    "best": {"quality": 99, "method": 6},
    "usual": {},
    "coarse": {"quality": 5, "method": 0},
}
LOSSLESS = {"usual": {}, "quick": {"method": 0}, "best": {"method": 6, "quality": 100}}


def shown(file: bytes) -> np.ndarray:
    """What another decoder makes of a file."""
    return on_white(Image.open(io.BytesIO(file))).astype(int)


@pytest.mark.parametrize("how", LOSSY)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (37, 29), (203, 131)])
def test_webp(decode: Decode, mode: str, how: str, size: tuple[int, int]) -> None:
    file = saved(picture(mode, *size), "WEBP", **LOSSY[how])
    kind, found = decode(file)
    assert kind == "rgb"
    assert np.abs(found - shown(file)).max() <= 2


SIMPLE = base64.b64decode(
    "UklGRoAAAABXRUJQVlA4IHQAAACyBQCdASoYABQAP32Mvkq/rKmisBgMB/oviewAnTLiJyQkMZxnOEOd/qh+K2Ii"
    "DOO6MMEp4jgA/ouw5wS5efYJn3N1UFzyjHCw0BhD6papjbe+0PQF5iwiEYNRF1uqjBP3f6oYeUKoAJPfyy9xqIqc"
    "lS8AAA=="
)
"""24 by 20 pixels, in segments, whose edges the simple filter smooths: cwebp -nostrong -f 90."""


def test_webp_whose_edges_are_smoothed_simply(decode: Decode) -> None:
    assert np.abs(decode(SIMPLE)[1] - shown(SIMPLE)).max() <= 2


@pytest.mark.parametrize("how", LOSSLESS)
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (37, 29), (203, 131)])
def test_webp_without_loss(decode: Decode, mode: str, how: str, size: tuple[int, int]) -> None:
    file = saved(picture(mode, *size), "WEBP", lossless=True, **LOSSLESS[how])
    assert (decode(file)[1] == shown(file)).all()


@pytest.mark.parametrize("n_colours", [2, 3, 9, 200])
def test_webp_with_few_colours(decode: Decode, n_colours: int) -> None:
    image = picture("RGB", 61, 40).quantize(n_colours).convert("RGB")
    found = decode(saved(image, "WEBP", lossless=True))[1]
    assert (found == np.asarray(image)).all()


def test_webp_that_moves(decode: Decode) -> None:
    first, second = picture("RGBA"), Image.new("RGBA", (37, 29), (1, 2, 3, 255))
    file = saved(first, "WEBP", save_all=True, append_images=[second], lossless=True, exact=True)
    assert b"ANMF" in file
    assert (decode(file)[1] == on_white(first)).all()


def test_webp_without_its_end(decode: Decode) -> None:
    file = saved(picture("RGB", 200, 130), "WEBP", quality=90)
    whole, part = decode(file)[1], decode(file[: len(file) * 3 // 4])[1]
    assert part.shape == whole.shape
    assert (part[:40] == whole[:40]).all()


def sound(rate: int, n: int, channels: int = 1, nbytes: int = 2) -> tuple[bytes, np.ndarray]:
    wave_ = 0.5 * np.sin(2 * np.pi * 300 * np.arange(n) / rate)
    most = 2 ** (8 * nbytes - 1) - 1
    numbers = np.round(wave_ * most).astype(np.int64)
    if nbytes == 1:
        numbers += 128
    raw = np.repeat(numbers, channels).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :nbytes]
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(nbytes)
        writer.setframerate(rate)
        writer.writeframes(raw.tobytes())
    return file.getvalue(), wave_


@pytest.mark.parametrize("nbytes", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav(decode: Decode, channels: int, nbytes: int) -> None:
    file, expected = sound(16_000, 4000, channels, nbytes)
    kind, found = decode(file)
    assert kind == "pcm"
    assert np.abs(found - expected).max() < 0.01


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_wav_at_another_rate(decode: Decode, rate: int) -> None:
    found = decode(sound(rate, rate // 2)[0])[1]
    assert len(found) == 8000
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(8000) / 16_000)
    assert np.abs(found - expected)[:-4].max() < 0.05


def test_wav_of_floats(decode: Decode) -> None:
    samples = np.array([0.0, 0.5, -0.25, np.nan, 3.0] * 40, dtype="<f4")
    head = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", 800)
    found = decode(b"RIFF" + bytes(4) + body + samples.tobytes())[1]
    assert found[:5].tolist() == [0.0, 0.5, -0.25, 0.0, 1.0]


def jpeg_of(width: int, height: int) -> bytes:
    file = bytearray(saved(picture("L", 8, 8), "JPEG"))
    at = file.index(b"\xff\xc0")
    file[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def riff(kind: bytes, data: bytes) -> bytes:
    parts = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def lossless_head(width: int, height: int) -> bytes:
    return b"\x2f" + struct.pack("<I", width - 1 | (height - 1) << 14)


def with_scans(n: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = saved(picture("L", 8, 8), "JPEG", progressive=True)
    begin = file.rindex(b"\xff\xda")
    return file[:begin] + file[begin:-2] * n + file[-2:]


BAD = {
    "nothing": (b"", "ENOTSUP"),
    "text": (b"a picture, honestly", "ENOTSUP"),
    "gif": (b"GIF89a" + bytes(64), "ENOTSUP"),
    "2^31 pixels each way": (png(1 << 31, 1 << 31, 8, 2, b""), "ELIMIT"),
    "too many pixels": (png(16_384, 16_384, 8, 2, b""), "ELIMIT"),
    "jpeg of too many pixels": (jpeg_of(65_535, 65_535), "ELIMIT"),
    "jpeg of too many scans": (with_scans(100), "ELIMIT"),
    "no pixels": (png(0, 5, 8, 2, b""), "EINVAL"),
    "no rows": (png(5, 5, 8, 2, b"\0"), "EINVAL"),
    "an unknown filter": (png(1, 1, 8, 2, b"\5abc"), "EINVAL"),
    "a colour that is none": (png(1, 1, 8, 3, b"\0\7"), "EINVAL"),
    "cut off": (saved(picture("RGB"), "PNG")[:100], "EINVAL"),
    "cmyk": (saved(picture("RGB").convert("CMYK"), "JPEG"), "ENOTSUP"),
    "webp of nothing": (riff(b"VP8X", bytes(10)), "EINVAL"),
    "webp of no pixels": (riff(b"VP8 ", b"\x10\0\0\x9d\1\x2a" + bytes(40)), "EINVAL"),
    "webp of too many pixels": (
        riff(b"VP8 ", b"\x10\0\0\x9d\1\x2a\xff\x3f\xff\x3f" + bytes(40)),
        "ELIMIT",
    ),
    "webp of a picture that follows another": (
        riff(b"VP8 ", b"\x11\0\0\x9d\1\x2a\1\0\1\0" + bytes(40)),
        "EINVAL",
    ),
    "lossless webp of too many pixels": (riff(b"VP8L", lossless_head(16_384, 16_384)), "ELIMIT"),
    "lossless webp, cut off": (saved(picture("RGB"), "WEBP", lossless=True)[:200], "EINVAL"),
    "lossless webp of a later version": (riff(b"VP8L", b"\x2f\0\0\0\x20" + bytes(9)), "EINVAL"),
    "wav without samples": (sound(16_000, 0)[0], "EINVAL"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(actor: Actor, name: str) -> None:
    file, reason = BAD[name]
    with pytest.raises(GuestError, match=reason):
        actor.send(file)
    assert actor.send(saved(picture("L", 2, 2), "PNG")).data.startswith(b"rgb 2 2\n")


SEEDS = {
    "png": saved(picture("RGBA", 23, 17), "PNG"),
    "png, palette": saved(picture("RGB", 23, 17).quantize(9), "PNG"),
    "jpeg": saved(picture("RGB", 40, 33), "JPEG", quality=70, restart_marker_blocks=2),
    "jpeg, progressive": saved(picture("RGB", 40, 33), "JPEG", quality=70, progressive=True),
    "webp": saved(picture("RGBA", 40, 33), "WEBP", quality=60),
    "webp, lossless": saved(picture("RGBA", 23, 17), "WEBP", lossless=True),
    "webp, palette": saved(
        picture("RGB", 23, 17).quantize(9).convert("RGB"), "WEBP", lossless=True
    ),
    "wav": sound(22_050, 300, 2)[0],
}


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """Some bytes changed, parts cut out, doubled or moved."""
    file = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(file))
        n = rng.choice((1, 1, 2, 4, 16))
        how = rng.randrange(4)
        if how == 0:
            file[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            file[at : at + n] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * n
        elif how == 2:
            del file[at : at + n]
        else:
            file[at:at] = file[rng.randrange(len(file)) :][:n]
        file = file or bytearray(seed)
    return bytes(file)


def survive(runtime: Runtime, name: str, n: int, seed: bytes = b"") -> None:
    """Every answer is a picture, a refusal or a trap, and the next file is decoded."""
    rng, actor = random.Random(name), spawn(runtime)
    seed = seed or SEEDS[name]
    refused = 0
    for _ in range(n):
        try:
            actor.send(mutated(rng, seed))
        except IsthmusError:
            refused += 1
            if actor.state == "closed":
                actor = spawn(runtime)
    actor.send(seed)
    assert 0 < refused < n


@pytest.mark.parametrize("name", SEEDS)
def test_mutations(null_runtime: Runtime, name: str) -> None:
    survive(null_runtime, name, N_MUTATIONS)


@pytest.mark.long
@pytest.mark.parametrize("name", SEEDS)
def test_many_mutations(null_runtime: Runtime, name: str) -> None:
    survive(null_runtime, name, MANY_MUTATIONS)
