"""The shape of a model, as its file's metadata gives it."""

from __future__ import annotations

from collections.abc import Sequence

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
    require_rotary(metadata, family, widest, n_rot)
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
        expert_groups=metadata.expert_groups(n_expert, n_expert_used),
        encoder=family.encoder,
        pooling=metadata.pooling(family),
    )


def heads_alike(metadata: Metadata) -> tuple[Heads, ...]:
    """Heads that are the same in each layer, with keys and values of one size."""
    n_head = metadata.integer("attention.head_count")
    n_head_kv = metadata.integer("attention.head_count_kv", n_head)
    dim = head_dim(metadata, usual=max(1, metadata.integer("embedding_length") // n_head))
    require_shared(metadata, n_head, n_head_kv)
    planes = range(0, 2 * metadata.n_layer(), 2)
    return tuple(Heads(n_head, n_head_kv, dim, dim, plane, plane + 1) for plane in planes)


def head_dim(metadata: Metadata, kind: str = "", usual: int | None = None) -> int:
    """Elements of a key, and as many of a value, in layers of a `kind`, such as `_swa`."""
    dim = metadata.integer(f"attention.key_length{kind}", usual)
    value_dim = metadata.integer(f"attention.value_length{kind}", dim)
    if dim != value_dim:
        raise ModelUnsupported(
            f"{metadata.path}: key length {dim} and value length {value_dim} differ, "
            "which this architecture does not have"
        )
    return dim


def key_heads(metadata: Metadata, n_heads: Sequence[int]) -> tuple[int, ...]:
    """Keys of a token in each layer, where it has `n_heads` queries."""
    found = tuple(n_heads)
    if metadata.has("attention.head_count_kv"):
        found = metadata.integers("attention.head_count_kv")
    for n_head, n_head_kv in zip(n_heads, found, strict=True):
        require_shared(metadata, n_head, n_head_kv)
    return found


def require_shared(metadata: Metadata, n_head: int, n_head_kv: int) -> None:
    """ModelFileError unless as many queries share each key."""
    if n_head % n_head_kv:
        raise ModelFileError(
            f"{metadata.path}: {n_head} heads cannot share {n_head_kv} key and value heads"
        )


def require_rotary(metadata: Metadata, family: Family, dim: int, n_rot: int) -> None:
    """Raises unless so many elements of heads of `dim` can be rotated."""
    if n_rot > dim or (n_rot < dim and not family.partial_rotary):
        raise ModelUnsupported(
            f"{metadata.path}: {n_rot} rotary dimensions of heads of {dim}, which this "
            "architecture does not have"
        )
    if n_rot % 2:
        raise ModelFileError(f"{metadata.path}: {n_rot} rotary dimensions are odd")
