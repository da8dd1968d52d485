"""The shape of a model, as its file's metadata gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def heads_by_kind(metadata: Metadata) -> tuple[Heads, ...]:
    """Heads whose size depends on whether their layer sees a window.

    The last layers read the planes of an earlier one: of the last that has some, or, if they see a
    window, of the one before.
    """
    windowed = metadata.flags("attention.sliding_window_pattern")
    n_heads = metadata.integers("attention.head_count")
    usual = max(1, metadata.integer("embedding_length") // n_heads[0])
    dims = [head_dim(metadata, "", usual), head_dim(metadata, "_swa")]
    n_own = len(windowed) - metadata.integer("attention.shared_kv_layers", 0, least=0)
    if n_own < 1:
        raise ModelFileError(f"{metadata.path}: no layer of {len(windowed)} has a cache of its own")
    found: list[Heads] = []
    for layer, (n, n_kv) in enumerate(zip(n_heads, key_heads(metadata, n_heads), strict=True)):
        dim = dims[windowed[layer]]
        source = layer if layer < n_own else n_own - 1 - windowed[layer]
        heads = Heads(n, n_kv, dim, dim, 2 * source, 2 * source + 1)
        if source < 0 or (layer >= n_own and replace(found[source], n=n) != heads):
            raise ModelFileError(
                f"{metadata.path}: layer {layer} shares the cache of layer {source}, which is of "
                "another shape or kind"
            )
        found.append(heads)
    return tuple(found)


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
