"""The `granitehybrid` architecture: `granite` with Mamba 2 in most layers, some with experts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from isthmus.errors import ModelFileError
from isthmus.model.architectures.granite import attention, block, feed_forward, scales
from isthmus.model.blocks import Decoder, Mixer, RmsNorm
from isthmus.model.blocks.hybrid import Convolution, Mamba2, Scan
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind, State
from isthmus.model.shape.metadata import Metadata


class _Sizes:
    """Of a layer's scan; ModelFileError unless they fit each other."""

    def __init__(self, metadata: Metadata) -> None:
        self.inner = metadata.integer("ssm.inner_size")
        self.n_head = metadata.integer("ssm.time_step_rank")
        self.n_group = metadata.integer("ssm.group_count")
        self.n_state = metadata.integer("ssm.state_size")
        self.width = metadata.integer("ssm.conv_kernel", least=2)
        if self.inner % self.n_head or self.n_head % self.n_group:
            raise ModelFileError(
                f"{metadata.path}: {self.inner} elements are not {self.n_head} heads in "
                f"{self.n_group} groups"
            )
        self.head = self.inner // self.n_head
        self.n_channels = self.inner + 2 * self.n_group * self.n_state


def states(metadata: Metadata) -> tuple[State, ...]:
    """Of each layer without attention: what its convolution saw last, and its scan's state."""
    heads = metadata.integers("attention.head_count_kv", least=0)
    return scanned(metadata, (i for i, n in enumerate(heads) if n == 0))


def scanned(metadata: Metadata, layers: Iterable[int]) -> tuple[State, ...]:
    """The states of layers of Mamba 2, two for each."""
    it = _Sizes(metadata)
    shapes = ((it.width - 1, it.n_channels), (it.n_state, it.head, it.n_head))
    return tuple(State(layer, shape) for layer in layers for shape in shapes)


FAMILY = Family(
    models="Granite 4",
    features="as `granite`, with Mamba 2 in most layers; some with experts and a shared expert",
    rope=RopeKind.NORMAL,
    states=states,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(
        lambda b: block(b, mamba(b) if b.states else attention(b), feed_forward(b)),
        **scales(file.metadata),
    )


def mamba(b: BlockLoader) -> Mixer:
    """Mamba 2, of a block that has it."""
    it, n_embd, (seen, state) = _Sizes(b.metadata), b.hparams.n_embd, b.states
    return Mamba2(
        layer=b.layer,
        inner=b.linear("ssm_in", n_embd, it.inner + it.n_channels + it.n_head),
        convolution=Convolution(b.kernel("ssm_conv1d.weight", it.width, it.n_channels), seen),
        bias=b.vector("ssm_conv1d.bias", it.n_channels),
        scan=Scan(
            dt=b.vector("ssm_dt.bias", it.n_head),
            a=b.kernel("ssm_a", 1, it.n_head),
            d=b.kernel("ssm_d", 1, it.n_head),
            state=state,
            n_group=it.n_group,
            which=b.weights.constant("first_state", np.zeros(1, np.int32)),
        ),
        norm=RmsNorm(b.kernel("ssm_norm.weight", it.inner // it.n_group, it.n_group)),
        out=b.linear("ssm_out", it.inner, n_embd),
    )
