"""What a model's file says of itself, read from its header: no weight is mapped or read."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from isthmus.file_hash import FileHashes, file_identity
from isthmus.model.architectures import hparams_of
from isthmus.model.gguf import GgufFile
from isthmus.model.hparams import Hparams
from isthmus.model.kv_cache import KV_TYPES
from isthmus.model.opening import open_gguf
from isthmus.model.template_set import TemplateSet
from isthmus.native.loader import Library
from isthmus.units import MIB

_BESIDE_NBYTES = 65 * MIB
"""Memory of a guest beside its session's KV cache and logits, and what alignment may add."""


@dataclass(frozen=True)
class Card:
    """See the module."""

    identity: str
    """Which file was read, as `file_hash` tells one from another."""
    hparams: Hparams
    nbytes: int
    """Bytes of all weights."""
    file_nbytes: int
    changed: float
    """When the file was written to last, in seconds since 1970."""
    n_vocab: int
    n_parameters: int
    quantisation: str
    """The type of most weights."""
    token_nbytes: int
    """Bytes that one token takes in a KV cache."""

    @classmethod
    def read(
        cls,
        library: Library,
        path: Path,
        hashes: FileHashes,
        kv_type: str,
        header: GgufFile | None = None,
    ) -> Card:
        """The card of a file, whose header may have been read. Raises ModelNotFound,
        ModelFileError, ModelUnsupported."""
        file, status = header or open_gguf(library, path, hashes), path.stat()
        hparams = hparams_of(file)
        counted: Counter[str] = Counter()
        for it in file.tensors.values():
            counted[it.dtype.name] += prod(it.shape)
        table = file.tensors.get("token_embd.weight")
        row_nbytes = int(library.ggml_row_size(KV_TYPES[kv_type], hparams.n_embd_kv))
        return cls(
            identity=file.identity,
            hparams=hparams,
            nbytes=sum(it.nbytes for it in file.tensors.values()),
            file_nbytes=status.st_size,
            changed=status.st_mtime,
            n_vocab=0 if table is None else table.shape[-1],
            n_parameters=counted.total(),
            quantisation=counted.most_common(1)[0][0].upper(),
            token_nbytes=2 * hparams.n_layer * row_nbytes,
        )

    def is_of(self, path: Path) -> bool:
        """Whether the file at the path is still the one that was read."""
        try:
            return file_identity(path.stat()) == self.identity
        except OSError:
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
        return 4 * self.n_vocab + self.token_nbytes * n_ctx + _BESIDE_NBYTES


def templates_of(library: Library, path: Path, hashes: FileHashes) -> TemplateSet | None:
    """A file's chat templates, from its header. Takes as long as compiling and trying them."""
    file: GgufFile = open_gguf(library, path, hashes)
    return TemplateSet.of_header(file)
