"""The shape of a model, as its file's metadata gives it."""

from __future__ import annotations

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.model.hparams import Family, Heads, Hparams
from isthmus.model.metadata import Metadata


def read_hparams(file: GgufFile, architecture: str, family: Family) -> Hparams:
    """The shape that a file's metadata gives; ModelFileError where it makes no sense."""
    metadata = Metadata(file, architecture)
    n_layer = metadata.n_layer()
    n_embd = metadata.integer("embedding_length")
    heads = (family.heads or heads_alike)(metadata)
    widest = max(it.dim for it in heads)
    n_rot = metadata.integer("rope.dimension_count", widest)
    n_ctx_train = metadata.integer("context_length")
    _require_rotary(metadata, family, widest, n_rot)
    n_expert, n_expert_used = metadata.experts()
    return Hparams(
        architecture=architecture,
        n_layer=n_layer,
        n_embd=n_embd,
        heads=heads,
        n_ctx_train=n_ctx_train,
        norm_epsilon=metadata.norm_epsilon(),
        rope=metadata.rope(family.rope, n_rot, n_ctx_train),
        window=metadata.window(family, n_layer),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        encoder=family.encoder,
        pooling=metadata.pooling(family),
    )


def heads_alike(metadata: Metadata) -> tuple[Heads, ...]:
    """Heads that are the same in each layer, with keys and values of one size."""
    n_head = metadata.integer("attention.head_count")
    n_head_kv = metadata.integer("attention.head_count_kv", n_head)
    usual = max(1, metadata.integer("embedding_length") // n_head)
    dim = metadata.integer("attention.key_length", usual)
    require_shared(metadata, n_head, n_head_kv)
    value_dim = metadata.integer("attention.value_length", dim)
    if dim != value_dim:
        raise ModelUnsupported(
            f"{metadata.path}: key length {dim} and value length {value_dim} differ, "
            "which this architecture does not have"
        )
    planes = range(0, 2 * metadata.n_layer(), 2)
    return tuple(Heads(n_head, n_head_kv, dim, dim, plane, plane + 1) for plane in planes)


def require_shared(metadata: Metadata, n_head: int, n_head_kv: int) -> None:
    """ModelFileError unless as many queries share each key."""
    if n_head % n_head_kv:
        raise ModelFileError(
            f"{metadata.path}: {n_head} heads cannot share {n_head_kv} key and value heads"
        )


def _require_rotary(metadata: Metadata, family: Family, head_dim: int, n_rot: int) -> None:
    if n_rot > head_dim or (n_rot < head_dim and not family.partial_rotary):
        raise ModelUnsupported(
            f"{metadata.path}: {n_rot} rotary dimensions of heads of {head_dim}, which this "
            "architecture does not have"
        )
    if n_rot % 2:
        raise ModelFileError(f"{metadata.path}: {n_rot} rotary dimensions are odd")
