"""The shape of a model, as its file's metadata gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Heads, Hparams, State
from isthmus.model.shape.metadata import Metadata

_MAX_STATES_NBYTES = 1 << 32


def read_hparams(file: GgufFile, architecture: str, family: Family) -> Hparams:
    """The shape that a file's metadata gives; ModelFileError where it makes no sense."""
    metadata = Metadata(file, architecture)
    n_layer = metadata.n_layer()
    n_embd = metadata.integer("embedding_length")
    states = _states(metadata, family)
    networks = family.networks(metadata) if family.networks else ()
    heads = _heads(metadata, family, {*networks, *(it.layer for it in states)})
    widest = max(it.dim for it in heads.values())
    n_rot = metadata.integer("rope.dimension_count", widest)
    n_ctx_train = metadata.integer("context_length")
    require_rotary(metadata, family, widest, n_rot)
    n_expert, n_expert_used = metadata.experts()
    pooling = metadata.pooling(encoder=family.encoder)
    return Hparams(
        architecture=architecture,
        n_layer=n_layer,
        n_embd=n_embd,
        heads=heads,
        n_ctx_train=n_ctx_train,
        norm_epsilon=metadata.norm_epsilon(),
        rope=metadata.rope(family.rope, n_rot, n_ctx_train),
        window=metadata.window(
            n_layer,
            period=family.window_period,
            default=family.window_default,
            everywhere=family.window_everywhere,
        ),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        expert_groups=metadata.expert_groups(n_expert, n_expert_used),
        encoder=family.encoder,
        pooling=pooling,
        n_scores=metadata.n_scores(pooling),
        states=states,
    )


def _states(metadata: Metadata, family: Family) -> tuple[State, ...]:
    states = family.states(metadata) if family.states else ()
    nbytes = sum(it.nbytes for it in states)
    if nbytes > _MAX_STATES_NBYTES:
        raise ModelFileError(
            f"{metadata.path}: the states of a session would take {nbytes} bytes; "
            f"expected {_MAX_STATES_NBYTES} at most"
        )
    if states and metadata.pooling(encoder=family.encoder):
        raise ModelUnsupported(
            f"{metadata.path} makes embeddings and keeps states, which is not implemented: leave "
            "it to libllama, by graph='adopted' or --graph adopted"
        )
    return states


def _heads(metadata: Metadata, family: Family, without: set[int]) -> dict[int, Heads]:
    """By layer; `without` are layers that do not attend."""
    if family.heads:
        return dict(enumerate(family.heads(metadata)))
    attending = [layer for layer in range(metadata.n_layer()) if layer not in without]
    if not attending:
        raise ModelUnsupported(f"{metadata.path}: no layer has attention, which one must have here")
    return dict(zip(attending, heads_alike(metadata, len(attending)), strict=True))


def heads_alike(metadata: Metadata, n: int) -> list[Heads]:
    """Heads of `n` layers that attend: all the same, with keys and values of one size."""
    mixed = n < metadata.n_layer()
    n_head = metadata.integer("attention.head_count", but_zeros=mixed)
    n_head_kv = metadata.integer("attention.head_count_kv", n_head, but_zeros=mixed)
    dim = head_dim(metadata, usual=max(1, metadata.integer("embedding_length") // n_head))
    require_shared(metadata, n_head, n_head_kv)
    return [Heads(n_head, n_head_kv, dim, dim, 2 * i, 2 * i + 1) for i in range(n)]


def heads_by_kind(metadata: Metadata) -> tuple[Heads, ...]:
    """Heads whose size depends on whether their layer sees a window.

    The last layers read the planes of an earlier one: of the last that has some, or, if they see a
    window, of the one before. Raises ModelFileError if there is none, or it is of another shape.
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
    """Elements of a key, and as many of a value, in layers of a `kind`, such as `_swa`. Raises
    ModelUnsupported if values have another number."""
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
    """Raises ModelUnsupported unless so many elements of heads of `dim` can be rotated by this
    family, and ModelFileError for an odd number."""
    if n_rot > dim or (n_rot < dim and not family.partial_rotary):
        raise ModelUnsupported(
            f"{metadata.path}: {n_rot} rotary dimensions of heads of {dim}, which this "
            "architecture does not have"
        )
    if n_rot % 2:
        raise ModelFileError(f"{metadata.path}: {n_rot} rotary dimensions are odd")
