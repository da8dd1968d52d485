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
from isthmus.model.architectures import architectures, hparams_of, name_of
from isthmus.model.gguf import GgufFile
from isthmus.model.hparams import Shape
from isthmus.model.model import Model
from isthmus.model.opening import open_tried
from isthmus.model.own_model import OwnModel


def open_model(
    device: Device, path: Path, settings: ModelSettings, hashes: FileHashes | None = None
) -> Model:
    """Opens a file as `settings.graph` says. `hashes` keeps those of files from process to process.

    Raises ModelNotFound, ModelFileError, ModelUnsupported, SettingsError.
    """
    hashes = hashes or FileHashes()
    file = open_tried(device.library, path, hashes, own=_own(settings)).file
    way = AdoptedModel if is_adopted(file, settings) else OwnModel
    return way(device, file, settings, hashes)


def _own(settings: ModelSettings) -> Sequence[str] | None:
    """Architectures whose files libllama's own graph does not compute; None for all."""
    return {"own": None, "adopted": (), "auto": architectures()}[settings.graph]


def is_adopted(file: GgufFile, settings: ModelSettings) -> bool:
    """Whether libllama is to run the file's graph. Raises ModelFileError."""
    if settings.graph == "auto":
        return name_of(file) not in architectures()
    return settings.graph == "adopted"


def shape_of(file: GgufFile, settings: ModelSettings) -> Shape:
    """The shape that the file's header gives. Raises ModelFileError, ModelUnsupported."""
    return shape_of_file(file) if is_adopted(file, settings) else hparams_of(file)
