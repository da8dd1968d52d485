"""Takes a file's weights, part by part, and checks that their shapes fit the metadata.

Names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py. A bias is added
wherever the file has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from isthmus.device.graph import Graph
from isthmus.errors import ModelUnsupported
from isthmus.model.blocks import (
    Attention,
    Decoder,
    Encoder,
    Experts,
    FusedGated,
    FusedQkv,
    Gated,
    Gating,
    LayerNorm,
    Part,
    Plain,
    Projection,
    RmsNorm,
    Rotary,
    SeparateQkv,
)
from isthmus.model.hparams import Hparams, RopeKind, RopeScaling
from isthmus.model.metadata import Metadata
from isthmus.model.own.adapter import Adaptation
from isthmus.model.passes.forward import Scores
from isthmus.model.passes.mrope import text_factors
from isthmus.model.products import Halves, Linear, Pair, Router, Stack
from isthmus.model.weights import TOKEN_EMBD, Weights


class Loader:
    """The parts of a whole file; of one block, a `BlockLoader`."""

    def __init__(
        self,
        hparams: Hparams,
        metadata: Metadata,
        weights: Weights,
        adaptation: Adaptation | None = None,
    ) -> None:
        """`adaptation`: what is added to products with the weights."""
        self.hparams, self.metadata, self.weights = hparams, metadata, weights
        self.adaptation = adaptation or Adaptation()
        self._prefix = ""

    def decoder(
        self,
        block: Callable[[BlockLoader], Part],
        norm: Callable[[Loader, str], Part] | None = None,
        norm_name: str = "output_norm",
        **differences: Any,
    ) -> Decoder:
        """A whole model: each block made by `block`, the last norm by `norm`, an RMS norm usually.

        `differences` are fields of `Decoder`. Raises ModelFileError or ModelUnsupported where the
        file's weights do not fit.
        """
        h, weights = self.hparams, self.weights
        token_embd, n_vocab = self._token_embd()
        own_output = weights.info("output.weight") is not None
        if own_output:
            weights.adaptable.add(TOKEN_EMBD)
        return Decoder(
            hparams=h,
            n_vocab=n_vocab,
            token_embd=token_embd,
            blocks=tuple(block(BlockLoader(self, layer)) for layer in range(h.n_layer)),
            norm=(norm or Loader.rms_norm)(self, norm_name),
            output=self._output(n_vocab, tied=not own_output),
            embedding_updates=self.adaptation.updates(TOKEN_EMBD),
            **differences,
        )

    def encoder(
        self, block: Callable[[BlockLoader], Part], *, with_positions: bool = False
    ) -> Encoder:
        """A whole model that makes embeddings; `with_positions` where a table has those."""
        h, weights = self.hparams, self.weights
        token_embd, n_vocab = self._token_embd()
        positions = 0
        if with_positions:
            positions = weights.table("position_embd.weight", h.n_embd, h.n_ctx_train)
        return Encoder(
            hparams=h,
            n_vocab=n_vocab,
            token_embd=token_embd,
            norm=self.layer_norm("token_embd_norm"),
            blocks=tuple(block(BlockLoader(self, layer)) for layer in range(h.n_layer)),
            token_type=self._token_type(),
            position_embd=positions,
        )

    def _output(self, n_vocab: int, *, tied: bool) -> Linear:
        """The matrix of the logits: its own, or the table of embeddings."""
        n_embd = self.hparams.n_embd
        if not tied:
            return self.linear("output", n_embd, n_vocab)
        bias = self.weights.optional("token_embd.bias", n_vocab)
        return Linear(self.weights.require(TOKEN_EMBD, n_embd, n_vocab), bias)

    def _token_embd(self) -> tuple[int, int]:
        """The table of embeddings, and how many tokens it has."""
        embedding = self.weights.info("token_embd.weight")
        n_vocab = embedding.shape[1] if embedding and len(embedding.shape) == 2 else 1
        return self.weights.table("token_embd.weight", self.hparams.n_embd, n_vocab), n_vocab

    def _token_type(self) -> int:
        """The first row of the token types, if there are any."""
        name = "token_types.weight"
        info = self.weights.info(name)
        if info is None:
            return 0
        n_types = info.shape[1] if len(info.shape) == 2 else 1
        self.weights.table(name, self.hparams.n_embd, n_types)
        return self.weights.first_row(name)

    def linear(self, name: str, n_in: int, n_out: int) -> Linear:
        """A matrix, its bias if there is one, and what adapters add."""
        full = f"{self._prefix}{name}.weight"
        self.weights.adaptable.add(full)
        return Linear(
            self.weights.require(full, n_in, n_out),
            self.weights.optional(f"{self._prefix}{name}.bias", n_out),
            self.adaptation.updates(full),
        )

    def small(self, name: str, n_in: int, n_out: int) -> Linear:
        """As `linear`, of a matrix that is small, and in some files not quantised."""
        linear = self.linear(name, n_in, n_out)
        full = f"{self._prefix}{name}.weight"
        if self.weights.is_quantised(full):
            return linear
        self.weights.routers.add(full)
        return replace(linear, routed=True)

    def rms_norm(self, name: str, width: int | None = None) -> RmsNorm:
        """A norm over `width` elements, by default n_embd."""
        return RmsNorm(self.vector(f"{name}.weight", width))

    def layer_norm(self, name: str) -> LayerNorm:
        """A norm over n_embd elements, with its bias."""
        return LayerNorm(self.vector(f"{name}.weight"), self.vector(f"{name}.bias"))

    def vector(self, name: str, width: int | None = None) -> int:
        """A vector of `width` elements, by default n_embd."""
        return self.weights.require(f"{self._prefix}{name}", width or self.hparams.n_embd)


class BlockLoader(Loader):
    """The parts of one block."""

    def __init__(self, file: Loader, layer: int) -> None:
        super().__init__(file.hparams, file.metadata, file.weights, file.adaptation)
        self.layer = layer
        self._prefix = f"blk.{layer}."

    @property
    def n_ff(self) -> int:
        """Width of the feed-forward network."""
        return self.metadata.integer("feed_forward_length")

    @property
    def n_ff_expert(self) -> int:
        """Width of each expert."""
        name = "expert_feed_forward_length"
        if self.metadata.has(name):
            return self.metadata.integer(name)
        return max(1, self.n_ff // max(1, self.hparams.n_expert_used))

    @property
    def windowed(self) -> bool:
        """Whether this block sees a window only."""
        window = self.hparams.window
        return window is not None and window.layers[self.layer]

    def has(self, name: str) -> bool:
        """Whether the file has such a weight for this block."""
        return self.weights.info(f"{self._prefix}{name}.weight") is not None

    def attention(self, **differences: Any) -> Attention:
        """Attention over the cache; `differences` are fields of `Attention`."""
        h = self.hparams
        usual: dict[str, Any] = {
            "layer": self.layer,
            "qkv": self.qkv(),
            "out": self.linear("attn_output", h.n_embd_q, h.n_embd),
            "scores": Scores(h.kq_scale),
            "rotary": Rotary(h.rope),
        }
        return Attention(**(usual | differences))

    def qkv(self) -> Projection:
        """Queries, keys and values, of one matrix or of three."""
        h = self.hparams
        if self.has("attn_qkv"):
            return FusedQkv(self.linear("attn_qkv", h.n_embd, h.n_embd_q + 2 * h.n_embd_kv))
        return SeparateQkv(
            self.linear("attn_q", h.n_embd, h.n_embd_q),
            self.linear("attn_k", h.n_embd, h.n_embd_kv),
            self.linear("attn_v", h.n_embd, h.n_embd_kv),
        )

    @property
    def states(self) -> list[int]:
        """The numbers of this block's states, in order."""
        return [i for i, it in enumerate(self.hparams.states) if it.layer == self.layer]

    def kernel(self, name: str, *shape: int) -> int:
        """F32 [shape]: what is no matrix of a product, such as the weights of a convolution."""
        return self.weights.kernel(f"{self._prefix}{name}", *shape)

    def head_norms(self) -> dict[str, RmsNorm]:
        """Norms over each head of queries and keys, as fields of `Attention`."""
        width = self.hparams.head_dim
        return {
            "q_norm": self.rms_norm("attn_q_norm", width),
            "k_norm": self.rms_norm("attn_k_norm", width),
        }

    def sinks(self) -> int:
        """F32 [n_head]: see `Scores`."""
        return self.vector("attn_sinks.weight", self.hparams.n_head)

    def rotary(self) -> Rotary:
        """The rotary embedding with the file's factors, for short and for long contexts."""
        half = self.hparams.rope.n_dims // 2
        optional = self.weights.optional
        if self.metadata.text("rope.scaling.type", "linear") == RopeScaling.LONGROPE.value:
            short = optional("rope_factors_short.weight", half)
            return Rotary(self.hparams.rope, short, optional("rope_factors_long.weight", half))
        factors = optional("rope_freqs.weight", half)
        return Rotary(self.hparams.rope, factors, factors)

    def text_rotary(self, *, interleaved: bool = False) -> Rotary | None:
        """M-RoPE for text; None if the file has none. `interleaved`: see `text_factors`."""
        axes = self.metadata.axes()
        if not axes:
            return None
        rope = replace(self.hparams.rope, kind=RopeKind.NEOX)
        factors = text_factors(axes, rope.n_dims // 2, interleaved=interleaved)
        tensor = self.weights.constant("text_factors", factors)
        return Rotary(rope, tensor, tensor)

    def plain(self) -> Plain:
        """A feed-forward network without a gate."""
        n_embd, n_ff = self.hparams.n_embd, self.n_ff
        return Plain(self.linear("ffn_up", n_embd, n_ff), self.linear("ffn_down", n_ff, n_embd))

    def gated(
        self,
        activate: Callable[[Graph, int, int], int] = Graph.swiglu,
        suffix: str = "",
        n_ff: int | None = None,
    ) -> Gated:
        """A gated feed-forward network; `suffix` tells it from others in the block."""
        n_embd, n_ff = self.hparams.n_embd, n_ff or self.n_ff
        return Gated(
            self.linear(f"ffn_gate{suffix}", n_embd, n_ff),
            self.linear(f"ffn_up{suffix}", n_embd, n_ff),
            self.linear(f"ffn_down{suffix}", n_ff, n_embd),
            activate,
        )

    def fused_gated(self) -> FusedGated:
        """A gated feed-forward network whose gate is the upper half of `ffn_up`."""
        n_embd, n_ff = self.hparams.n_embd, self.n_ff
        gate_up = self.linear("ffn_up", n_embd, 2 * n_ff)
        return FusedGated(gate_up, self.linear("ffn_down", n_ff, n_embd))

    def router(self, name: str, n_in: int, n_out: int) -> Router:
        """A matrix that chooses, with one row or more, and its bias if there is one."""
        return Router(
            self.weights.router(f"{self._prefix}{name}.weight", n_in, n_out),
            self.weights.optional(f"{self._prefix}{name}.bias", n_out),
        )

    def experts(
        self,
        n_ff: int,
        gating: Gating = Gating.NORMALISED,
        activate: Callable[[Graph, int, int], int] = Graph.swiglu,
        *,
        preferred: bool = False,
    ) -> Experts:
        """Several gated feed-forward networks of width `n_ff`, and their router.

        `preferred`: the file has numbers that are added where experts are chosen.
        """
        n_embd, n_expert = self.hparams.n_embd, self.hparams.n_expert
        if not n_expert:
            raise ModelUnsupported(
                f"{self.metadata.path} is not a mixture of experts, as its architecture should be"
            )

        def matrices(name: str, n_in: int, n_out: int) -> Stack:
            full = f"{self._prefix}{name}.weight"
            self.weights.adaptable.add(full)
            return Stack(
                self.weights.require(full, n_in, n_out, n_expert),
                self.weights.biases(f"{self._prefix}{name}.bias", n_out, n_expert),
                self.adaptation.updates(full),
            )

        inner: Pair | Halves
        if self.has("ffn_gate_up_exps"):
            inner = Halves(matrices("ffn_gate_up_exps", n_embd, 2 * n_ff))
        else:
            gate = matrices("ffn_gate_exps", n_embd, n_ff)
            inner = Pair(gate, matrices("ffn_up_exps", n_embd, n_ff))
        return Experts(
            router=self.router("ffn_gate_inp", n_embd, n_expert),
            inner=inner,
            preference=self.vector("exp_probs_b.bias", n_expert) if preferred else 0,
            down=matrices("ffn_down_exps", n_ff, n_embd),
            gating=gating,
            activate=activate,
        )
