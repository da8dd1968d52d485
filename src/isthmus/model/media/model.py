"""What a model makes of pictures and sounds, if it was given a projector file."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path

from isthmus.abi import MediaKind
from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.errors import ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import FileHashes, file_identity
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import file_status
from isthmus.model.files.opening import require_projector
from isthmus.model.media.medium import Bitmap, Medium, Part
from isthmus.model.media.projector import Projector
from isthmus.units import HostAddr


class MediaModel(ABC):
    """The part of a `Model` that is about pictures and sounds."""

    device: Device
    file: GgufFile
    settings: ModelSettings
    _hashes: FileHashes
    _projector: Projector | None = None
    """The model's, which closes it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call the model."""

    @property
    @abstractmethod
    def row_width(self) -> int:
        """See `EmbeddingsTaker`."""

    @property
    @abstractmethod
    def has_axes(self) -> bool:
        """See `EmbeddingsTaker`."""

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """What it takes beside text."""
        return frozenset() if self._projector is None else self._projector.kinds

    @property
    def projector_nbytes(self) -> int:
        """Bytes of memory that the projector takes, about: its file's, which is read and not
        mapped."""
        return 0 if self._projector is None else self._projector.nbytes

    @property
    def sound_rate(self) -> int:
        """Samples of a second of sound. ModelUnsupported if it takes none."""
        return self._taking(MediaKind.PCM).rate

    def require_media(self, kind: MediaKind) -> None:
        """ModelUnsupported unless it takes that kind."""
        self._taking(kind)

    def open_medium(self, bitmap: Bitmap) -> Medium:
        """A picture or a sound as the model takes it; close it. Raises as `Projector.open`."""
        return self._taking(bitmap.kind).open(bitmap)

    @property
    def is_projecting(self) -> bool:
        """Whether embeddings of a medium are under way, so that `media_jobs` has to wait."""
        return self._projector is not None and self._projector.is_projecting

    def media_jobs(self, part: Part, address: HostAddr) -> Generator[None, None, None]:
        """Jobs that leave the embeddings of a medium's part at `address`: `Projector.jobs`."""
        assert self._projector is not None, "a medium is of a projector"
        return self._projector.jobs(part, address)

    def _taking(self, kind: MediaKind) -> Projector:
        if self._projector is None:
            raise ModelUnsupported(
                f"the model {self.name} was loaded without a projector, so it takes text alone: "
                "give its projector file by mmproj= (--mmproj FILE)"
            )
        self._projector.require(kind)
        return self._projector

    def _open_projector(self, stack: contextlib.ExitStack) -> None:
        """Opens the settings' projector file, if there is one; `stack` closes it."""
        if self.settings.mmproj is None:
            return
        path = Path(self.settings.mmproj)
        library, before = self.device.library, _identity(path)
        require_projector(library, self.file.path, path, self._hashes)
        loaded = self._loaded(stack)
        if loaded.has_axes and not self.has_axes:
            raise ModelUnsupported(
                f"{self.name} gives pictures places in height and width (M-RoPE), as libllama's "
                "graph does: load it with graph='adopted' (--graph adopted)"
            )
        _ = self.row_width  # raises if it takes no embeddings
        self._projector = Projector(self.device, path, loaded)
        stack.callback(self._projector.close)
        if _identity(path) != before:
            raise ModelFileError(f"{path} changed while it was opened: try again")

    @abstractmethod
    def _loaded(self, stack: contextlib.ExitStack) -> LibraryModel:
        """The model as libllama has it, which `stack` closes unless something else does."""


def _identity(path: Path) -> str:
    try:
        return file_identity(file_status(path))
    except ModelNotFound:
        raise ModelNotFound(f"there is no projector file {path} (--mmproj)") from None
