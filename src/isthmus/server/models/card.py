"""What a model's file says of itself, read from its header: no weight is mapped or read."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from isthmus.config import ModelSettings
from isthmus.errors import IsthmusError
from isthmus.file_hash import FileHashes, files_identity
from isthmus.model.chat.template_set import TemplateSet
from isthmus.model.choosing import memory_of, open_file, opened_by_header, shape_of
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.opening import open_gguf
from isthmus.model.shape.hparams import Shape
from isthmus.native.loader import Library
from isthmus.shards import model_files
from isthmus.units import MIB

_BESIDE_NBYTES = 65 * MIB
"""Memory of a guest beside its session's KV cache and logits, and what alignment may add."""


@dataclass(frozen=True)
class Card:
    """See the module."""

    identity: str
    """Which files were read, as `file_hash` tells one from another."""
    hparams: Shape
    nbytes: int
    """Bytes of all weights."""
    projector_nbytes: int
    """Bytes of the projector's file, which is read whole; 0 without one."""
    media: tuple[str, ...]
    """What the projector makes embeddings of: `image`, `audio`."""
    file_nbytes: int
    changed: float
    """When a file of the model was written to last, in seconds since 1970."""
    n_vocab: int
    n_parameters: int
    quantisation: str
    """The type of most weights."""
    token_nbytes: int
    """Bytes that one token takes in a KV cache."""
    state_nbytes: int
    """Bytes of a session that a longer context has no more of."""

    @classmethod
    def read(
        cls,
        library: Library,
        path: Path,
        hashes: FileHashes,
        settings: ModelSettings,
        header: GgufFile | None = None,
    ) -> Card:
        """The card of a file that is computed with `settings`, and whose header may have been read.

        Raises ModelNotFound, ModelFileError, ModelUnsupported.
        """
        opened = header and opened_by_header(header, settings)
        opened = opened or open_file(library, path, settings, hashes)
        file, hparams = opened.file, shape_of(opened)
        found = [it.stat() for it in file.files]
        counted: Counter[str] = Counter()
        for it in file.tensors.values():
            counted[it.dtype.name] += prod(it.shape)
        table = file.tensors.get("token_embd.weight")
        token_nbytes, state_nbytes = memory_of(library, opened, settings)
        return cls(
            identity=file.identity,
            hparams=hparams,
            nbytes=sum(it.nbytes for it in file.tensors.values()),
            projector_nbytes=_size_of(settings.mmproj),
            media=_media_of(library, settings.mmproj, hashes),
            file_nbytes=sum(it.st_size for it in found),
            changed=max(it.st_mtime for it in found),
            n_vocab=0 if table is None else table.shape[-1],
            n_parameters=counted.total(),
            quantisation=counted.most_common(1)[0][0].upper(),
            token_nbytes=token_nbytes,
            state_nbytes=state_nbytes,
        )

    def is_of(self, path: Path) -> bool:
        """Whether the files of the model at the path are still those that were read."""
        try:
            return files_identity(model_files(path)) == self.identity
        except (OSError, IsthmusError):
            return False

    @property
    def generates(self) -> bool:
        """Whether the model makes text."""
        return not self.hparams.encoder

    @property
    def embeds(self) -> bool:
        """Whether the model makes embeddings."""
        return self.hparams.pooling is not None

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that change whenever the file does."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    def agent_nbytes(self, n_ctx: int) -> int:
        """Linear memory of a guest with one session of `n_ctx` tokens, or slightly more."""
        kept_nbytes = self.state_nbytes + self.token_nbytes * n_ctx
        return 4 * self.n_vocab + kept_nbytes + _BESIDE_NBYTES


def _size_of(projector: str | Path | None) -> int:
    """Bytes of a file; 0 for one that is not there, which loading the model tells."""
    try:
        return 0 if projector is None else Path(projector).stat().st_size
    except OSError:
        return 0


def _media_of(
    library: Library, projector: str | Path | None, hashes: FileHashes
) -> tuple[str, ...]:
    """What a projector's header says that it takes; nothing if it cannot be read, which loading the
    model tells."""
    try:
        said = {} if projector is None else open_gguf(library, Path(projector), hashes).metadata
    except IsthmusError:
        said = {}
    keys = {"image": "clip.has_vision_encoder", "audio": "clip.has_audio_encoder"}
    return tuple(kind for kind, key in keys.items() if said.get(key) is True)


def templates_of(library: Library, path: Path, hashes: FileHashes) -> TemplateSet | None:
    """A file's chat templates, from its header. Takes as long as compiling and trying them."""
    file: GgufFile = open_gguf(library, path, hashes)
    return TemplateSet.of_header(file)
