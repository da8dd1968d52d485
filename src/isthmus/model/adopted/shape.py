"""The shape of a model whose graph libllama writes down, from its file's header."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import name_of
from isthmus.model.files.gguf import GgufFile
from isthmus.model.shape.hparams import Pooling
from isthmus.model.shape.metadata import Metadata

MAX_N_CTX = 1 << 20
"""Tokens of a context, whatever a file says. libllama takes some 100 bytes of the process's own
memory for each, which no budget counts, already when it is asked how large the context would be."""


@dataclass(frozen=True)
class AdoptedShape:
    """See `Shape`."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ctx_train: int
    encoder: bool
    pooling: Pooling | None
    n_scores: int = 0

    @property
    def n_pooled(self) -> int:
        """Numbers of an embedding, or of a reranker's scores."""
        return self.n_scores or self.n_embd


def shape_of_file(file: GgufFile, *, generates: bool) -> AdoptedShape:
    """The shape that a file's metadata gives, of a model that has sessions if it `generates`.

    Raises ModelFileError; ModelUnsupported for what makes neither text nor embeddings.
    """
    name = name_of(file)
    metadata = Metadata(file, name)
    pooling = _pooling(metadata)
    if not generates and pooling is None:
        raise ModelUnsupported(
            f"{file.path} is of architecture {name!r}, which makes no token after the other, and "
            f"its file says no {name}.pooling_type, so it makes no embeddings either"
        )
    return AdoptedShape(
        architecture=name,
        n_layer=metadata.integer("block_count"),
        n_embd=metadata.integer("embedding_length"),
        n_ctx_train=min(metadata.integer("context_length"), MAX_N_CTX),
        encoder=not generates,
        pooling=pooling,
        n_scores=metadata.n_scores(pooling),
    )


def _pooling(metadata: Metadata) -> Pooling | None:
    """How embeddings are made; None if the file does not say."""
    if not metadata.has("pooling_type"):
        return None
    value = metadata.integer("pooling_type", least=0)
    if value not in set(Pooling):
        known = ", ".join(f"{it.value} ({it.name.lower()})" for it in Pooling)
        raise ModelUnsupported(
            f"{metadata.path}: pooling_type {value} is not implemented; known are {known}"
        )
    return Pooling(value)
