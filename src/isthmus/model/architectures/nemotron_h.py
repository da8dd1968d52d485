"""The `nemotron_h` architecture: each layer is Mamba 2, attention, or a feed-forward network.

Attention has no positions: the layers of Mamba 2 know the order of tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from isthmus.model.architectures.granitehybrid import mamba, scanned
from isthmus.model.blocks import Decoder, Part, Single, squared_relu
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind, State
from isthmus.model.shape.metadata import Metadata


def states(metadata: Metadata) -> tuple[State, ...]:
    """Of each layer that has neither heads for keys nor a network."""
    heads = metadata.integers("attention.head_count_kv", least=0)
    widths = metadata.integers("feed_forward_length", least=0)
    both = enumerate(zip(heads, widths, strict=True))
    return scanned(metadata, (i for i, sizes in both if sizes == (0, 0)))


def networks(metadata: Metadata) -> tuple[int, ...]:
    """The layers that are a feed-forward network."""
    widths = metadata.integers("feed_forward_length", least=0)
    return tuple(layer for layer, width in enumerate(widths) if width)


FAMILY = Family(
    models="Nemotron-H, Nemotron Nano 2",
    features="layers of Mamba 2, of attention without positions, or of squared ReLU",
    rope=RopeKind.NEOX,
    partial_rotary=True,
    states=states,
    networks=networks,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(lambda b: block(b, lambda: b.plain(squared_relu)))


def block(b: BlockLoader, network: Callable[[], Part]) -> Part:
    """One block; `network` makes its feed-forward network, if it is one."""
    part: Part
    if b.states:
        part = mamba(b)
    elif b.attends:
        scale = b.metadata.number("attention.scale", 0.0) or b.heads.scale
        part = b.attention(scores=b.scores(scale=scale), rotary=None)
    else:
        part = network()
    return Single(b.layer, b.rms_norm("attn_norm"), part)
