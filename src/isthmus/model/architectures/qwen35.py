"""The `qwen35` architecture: gated delta nets in most layers, gated attention in the others."""

from __future__ import annotations

from isthmus.errors import ModelFileError
from isthmus.model.blocks import Decoder, Mixer, Part, Sequential
from isthmus.model.blocks.hybrid import Convolution, DeltaNet, DoubleQkv, GatedAttention
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind, State
from isthmus.model.shape.metadata import Metadata

_USUAL_INTERVAL = 4
_HEAD, _N_HEAD_K, _N_HEAD_V = "ssm.state_size", "ssm.group_count", "ssm.time_step_rank"
_WIDTH = "ssm.conv_kernel"


def states(metadata: Metadata) -> tuple[State, ...]:
    """Of each layer without attention: what its convolution saw last, and its delta net's state."""
    head, n_head_v = metadata.integer(_HEAD), metadata.integer(_N_HEAD_V)
    seen = metadata.integer(_WIDTH, least=2) - 1, _n_channels(metadata)
    shapes = (seen, (head, head, n_head_v))
    return tuple(State(it, shape) for it in _recurrent(metadata) for shape in shapes)


def _recurrent(metadata: Metadata) -> list[int]:
    """The layers that have no attention."""
    if metadata.has("attention.recurrent_layers"):
        recurrent = metadata.flags("attention.recurrent_layers")
        return [layer for layer, it in enumerate(recurrent) if it]
    interval = metadata.integer("full_attention_interval", _USUAL_INTERVAL)
    return [layer for layer in range(metadata.n_layer()) if (layer + 1) % interval]


def _n_channels(metadata: Metadata) -> int:
    """Queries, keys and values of a delta net. ModelFileError unless they fit each other."""
    head, inner = metadata.integer(_HEAD), metadata.integer("ssm.inner_size")
    n_head_k, n_head_v = metadata.integer(_N_HEAD_K), metadata.integer(_N_HEAD_V)
    if head * n_head_v != inner or n_head_v % n_head_k:
        raise ModelFileError(
            f"{metadata.path}: {n_head_v} heads of {head} for values and {n_head_k} for keys do "
            f"not make a delta net of {inner}"
        )
    return inner + 2 * n_head_k * head


FAMILY = Family(
    models="Qwen 3.5 to 3.8, dense, without images",
    features="gated delta nets in most layers, gated attention, interleaved M-RoPE",
    rope=RopeKind.NEOX,
    partial_rotary=True,
    states=states,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(lambda b: block(b, b.gated()))


def block(b: BlockLoader, feed_forward: Part) -> Part:
    """One block, whatever its feed-forward network is."""
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=_delta_net(b) if b.states else _attention(b),
        ffn_norm=b.rms_norm("post_attention_norm"),
        feed_forward=feed_forward,
    )


def _delta_net(b: BlockLoader) -> Mixer:
    m, n_embd, (seen, state) = b.metadata, b.hparams.n_embd, b.states
    head, n_head_v, inner = m.integer(_HEAD), m.integer(_N_HEAD_V), m.integer("ssm.inner_size")
    n_channels = _n_channels(m)
    kernel = b.kernel("ssm_conv1d.weight", m.integer(_WIDTH), n_channels)
    return DeltaNet(
        layer=b.layer,
        qkv=b.linear("attn_qkv", n_embd, n_channels),
        convolution=Convolution(kernel, seen),
        z=b.linear("attn_gate", n_embd, inner),
        alpha=b.small("ssm_alpha", n_embd, n_head_v),
        beta=b.small("ssm_beta", n_embd, n_head_v),
        dt=b.vector("ssm_dt.bias", n_head_v),
        a=b.vector("ssm_a", n_head_v),
        norm=b.rms_norm("ssm_norm", head),
        out=b.linear("ssm_out", inner, n_embd),
        state=state,
        n_head_k=m.integer(_N_HEAD_K),
    )


def _attention(b: BlockLoader) -> Mixer:
    n_embd, heads = b.hparams.n_embd, b.heads
    rotary = b.text_rotary(interleaved=True)
    if rotary is None:
        raise ModelFileError(
            f"{b.metadata.path} has no rope.dimension_sections for time and height"
        )
    return GatedAttention(
        layer=b.layer,
        qkv=DoubleQkv(
            heads,
            b.linear("attn_q", n_embd, 2 * heads.n_embd_q),
            b.linear("attn_k", n_embd, heads.n_embd_k),
            b.linear("attn_v", n_embd, heads.n_embd_v),
        ),
        out=b.linear("attn_output", heads.n_embd_seen, n_embd),
        scores=b.scores(),
        rotary=rotary,
        q_norm=b.rms_norm("attn_q_norm", heads.dim),
        k_norm=b.rms_norm("attn_k_norm", heads.dim),
    )
