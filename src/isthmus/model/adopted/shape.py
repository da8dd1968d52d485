"""The shape of a model whose graph libllama writes down, from its file's header."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import name_of
from isthmus.model.gguf import GgufFile
from isthmus.model.hparams import Metadata, Pooling

_ENCODERS = (
    *("bert", "eurobert", "gemma-embedding", "gemma-embedding2", "jina-bert-v2", "jina-bert-v3"),
    *("modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe"),
)
"""Architectures for which libllama keeps nothing of a token: each token sees all others."""


@dataclass(frozen=True)
class AdoptedShape:
    """See `Shape`."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ctx_train: int
    encoder: bool
    pooling: Pooling | None
    n_embd_kv: int
    """Width of all keys of a token in a layer, about: layers may differ, and libllama knows."""


def shape_of_file(file: GgufFile) -> AdoptedShape:
    """The shape that a file's metadata gives. Raises ModelFileError, ModelUnsupported."""
    name = name_of(file)
    metadata = Metadata(file, name)
    n_embd = metadata.integer("embedding_length")
    n_head = metadata.most("attention.head_count", 1)
    head_dim = metadata.most("attention.key_length", max(1, n_embd // n_head))
    encoder = name in _ENCODERS
    return AdoptedShape(
        architecture=name,
        n_layer=metadata.integer("block_count"),
        n_embd=n_embd,
        n_ctx_train=metadata.integer("context_length"),
        encoder=encoder,
        pooling=_pooling(metadata, encoder=encoder),
        n_embd_kv=metadata.most("attention.head_count_kv", n_head) * head_dim,
    )


def _pooling(metadata: Metadata, *, encoder: bool) -> Pooling | None:
    value = metadata.integer("pooling_type", int(Pooling.NONE), least=0)
    if value not in set(Pooling):
        raise ModelUnsupported(
            f"{metadata.path}: pooling_type {value} is not implemented; known are "
            f"{', '.join(f'{it.value} ({it.name.lower()})' for it in Pooling)}"
        )
    return Pooling(value) if value or encoder else None
