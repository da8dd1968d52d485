"""Which way a file's model is run: by graphs of ours, or by libllama's own.

Ours are faster with many agents and run on every device; libllama knows every architecture. So a
file goes the first way if its architecture has a file in `architectures`, and the second otherwise;
`ModelSettings.graph` asks for one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.file_hash import FileHashes
from isthmus.model.adopted.model import AdoptedModel
from isthmus.model.adopted.shape import shape_of_file
from isthmus.model.architectures import architectures, hparams_of
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.opening import Opened, open_tried
from isthmus.model.model import Model
from isthmus.model.own.kv_cache import KV_TYPES, N_CTX_MULTIPLE
from isthmus.model.own.model import OwnModel
from isthmus.model.shape.hparams import Shape
from isthmus.native.loader import Library

_WITH_AXES = ("qwen3vl",)
"""Architectures whose pictures need what libllama's graph has and ours lacks: places in height and
width, and parts for several layers."""


def open_model(
    device: Device, path: Path, settings: ModelSettings, hashes: FileHashes | None = None
) -> Model:
    """Opens a file as `settings.graph` says. `hashes` keeps those of files from process to process.

    Raises ModelNotFound, ModelFileError, ModelUnsupported, SettingsError, DeviceUnavailable.
    """
    hashes = hashes or FileHashes()
    opened = open_file(device.library, path, settings, hashes)
    way = OwnModel if opened.graph is None else AdoptedModel
    return way(device, opened.file, settings, hashes)


def open_file(library: Library, path: Path, settings: ModelSettings, hashes: FileHashes) -> Opened:
    """A file that was tried, and what libllama's graph of it is if that is to compute it.

    Raises as `open_tried`.
    """
    return open_tried(library, path, hashes, own=_own_architectures(settings))


def opened_by_header(header: GgufFile, settings: ModelSettings) -> Opened | None:
    """What `open_file` gives for a file whose header was read; None if that alone does not tell."""
    own = _own_architectures(settings)
    is_own = own is None or header.metadata.get("general.architecture") in own
    return Opened(header, None) if is_own else None


def _own_architectures(settings: ModelSettings) -> Sequence[str] | None:
    """Those that graphs of ours compute; None if those are to compute every file."""
    own = architectures()
    if settings.mmproj is not None:
        own = [it for it in own if it not in _WITH_AXES]
    return {"auto": own, "adopted": (), "own": None}[settings.graph]


def shape_of(opened: Opened) -> Shape:
    """The shape that the file's header gives. Raises ModelFileError, ModelUnsupported."""
    if opened.graph is None:
        return hparams_of(opened.file)
    return shape_of_file(opened.file, generates=opened.graph.generates)


def memory_of(library: Library, opened: Opened, settings: ModelSettings) -> tuple[int, int]:
    """Bytes of a session for each token of its context, and bytes for any context; about.

    (0, 0) for a model without sessions. Raises as `shape_of`.
    """
    facts = opened.graph
    if facts is not None:
        few, more = facts.session_nbytes(N_CTX_MULTIPLE), facts.session_nbytes(2 * N_CTX_MULTIPLE)
        return (more - few) // N_CTX_MULTIPLE, 2 * few - more - 4 * facts.n_vocab
    kv_type, hparams = KV_TYPES[settings.kv_type], hparams_of(opened.file)
    token_nbytes = sum(int(library.ggml_row_size(kv_type, width)) for width in hparams.planes)
    return token_nbytes, (1 + settings.checkpoints) * hparams.states_nbytes
