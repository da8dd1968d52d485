"""Puts one block's weights together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from isthmus.device.graph import Graph
from isthmus.errors import ModelUnsupported
from isthmus.model.blocks import (
    Attention,
    FusedGated,
    FusedQkv,
    Gated,
    NormedQkv,
    Part,
    Plain,
    Projection,
    RmsNorm,
    Rotary,
    SeparateQkv,
    squared_relu,
)
from isthmus.model.blocks.experts import (
    Experts,
    Groups,
    MergedGates,
    OnlyUps,
    Routing,
    SeparateGates,
    SharedExpert,
)
from isthmus.model.blocks.products import Router, Stack
from isthmus.model.loading.weight_loader import WeightLoader
from isthmus.model.passes.forward import Scores
from isthmus.model.passes.mrope import text_factors
from isthmus.model.shape.hparams import Gating, Heads, RopeKind, RopeScaling
from isthmus.model.shape.yarn import temperatures


class BlockLoader(WeightLoader):
    """The parts of one block."""

    def __init__(self, file: WeightLoader, layer: int) -> None:
        super().__init__(file.hparams, file.metadata, file.weights, file.adaptation)
        self.layer = layer
        self._prefix = f"blk.{layer}."

    @property
    def heads(self) -> Heads:
        """The heads of its attention."""
        return self.hparams.heads[self.layer]

    @property
    def attends(self) -> bool:
        """Whether it has attention."""
        return self.layer in self.hparams.heads

    @property
    def n_ff(self) -> int:
        """Width of the feed-forward network."""
        return self.metadata.integer_at("feed_forward_length", self.layer)

    @property
    def n_ff_expert(self) -> int:
        """Width of each expert."""
        name = "expert_feed_forward_length"
        if self.metadata.has(name):
            return self.metadata.integer(name)
        return max(1, self.n_ff // max(1, self.hparams.n_expert_used))

    @property
    def leads(self) -> bool:
        """Whether this block is one of the first, which have no experts."""
        return self.layer < self.metadata.integer("leading_dense_block_count", 0, least=0)

    @property
    def windowed(self) -> bool:
        """Whether this block sees a window only."""
        window = self.hparams.window
        return window is not None and window.layers[self.layer]

    def pass_over(self, *names: str) -> None:
        """See `Weights.pass_over`."""
        self.weights.pass_over(*(f"{self._prefix}{name}" for name in names))

    def has(self, name: str) -> bool:
        """Whether the file has such a weight for this block."""
        return self.weights.info(f"{self._prefix}{name}.weight") is not None

    def attention(self, **differences: Any) -> Attention:
        """Attention over the cache; `differences` are fields of `Attention`."""
        h, parts = self.hparams, dict(differences)
        if "qkv" not in parts:
            parts["qkv"] = self.qkv()
        if "out" not in parts:
            parts["out"] = self.linear("attn_output", self.heads.n_embd_seen, h.n_embd)
        parts.setdefault("scores", self.scores())
        parts.setdefault("rotary", Rotary(h.rope))
        return Attention(layer=self.layer, **parts)

    def scores(self, **differences: Any) -> Scores:
        """How its attention weighs; `differences` are fields of `Scores`."""
        usual: dict[str, Any] = {"heads": self.heads, "scale": self.heads.scale}
        return Scores(**(usual | differences))

    def qkv(self) -> Projection:
        """Queries, keys and values, of one matrix or of three."""
        n_embd, heads = self.hparams.n_embd, self.heads
        if self.has("attn_qkv"):
            width = heads.n_embd_q + heads.n_embd_k + heads.n_embd_v
            return FusedQkv(heads, self.linear("attn_qkv", n_embd, width))
        return SeparateQkv(
            heads,
            self.linear("attn_q", n_embd, heads.n_embd_q),
            self.linear("attn_k", n_embd, heads.n_embd_k),
            self.linear("attn_v", n_embd, heads.n_embd_v),
        )

    @property
    def states(self) -> list[int]:
        """The numbers of this block's states, in order."""
        return [i for i, it in enumerate(self.hparams.states) if it.layer == self.layer]

    def kernel(self, name: str, *shape: int) -> int:
        """F32 [shape]: what is no matrix of a product, such as the weights of a convolution."""
        return self.weights.kernel(f"{self._prefix}{name}", *shape)

    def normed_qkv(self) -> NormedQkv:
        """Queries, keys and values, with norms over all queries and over all keys."""
        n_embd, heads = self.hparams.n_embd, self.heads
        return NormedQkv(
            heads=heads,
            q=self.linear("attn_q", n_embd, heads.n_embd_q),
            k=self.linear("attn_k", n_embd, heads.n_embd_k),
            v=self.linear("attn_v", n_embd, heads.n_embd_v),
            q_norm=self.rms_norm("attn_q_norm", heads.n_embd_q),
            k_norm=self.rms_norm("attn_k_norm", heads.n_embd_k),
        )

    def head_norms(self) -> dict[str, RmsNorm]:
        """Norms over each head of queries and keys, as fields of `Attention`."""
        width = self.heads.dim
        return {
            "q_norm": self.rms_norm("attn_q_norm", width),
            "k_norm": self.rms_norm("attn_k_norm", width),
        }

    def sinks(self) -> int:
        """F32 [n_head]: see `Scores`."""
        return self.vector("attn_sinks.weight", self.heads.n)

    def rotary(self) -> Rotary:
        """The rotary embedding with the file's factors, for short and for long contexts."""
        half = self.hparams.rope.n_dims // 2
        optional = self.weights.optional
        if self.metadata.text("rope.scaling.type", "linear") == RopeScaling.LONGROPE.value:
            short = optional("rope_factors_short.weight", half)
            return Rotary(self.hparams.rope, short, optional("rope_factors_long.weight", half))
        factors = optional("rope_freqs.weight", half)
        return Rotary(self.hparams.rope, factors, factors)

    def temperature(self, scale: float, every: int) -> int:
        """F32 [n_ctx_train]: factors of queries that grow with each `every` tokens."""
        factors = temperatures(self.hparams.n_ctx_train, every, scale)
        return self.weights.constant("temperature", factors)

    def text_rotary(self, *, interleaved: bool = False) -> Rotary | None:
        """M-RoPE for text; None if the file has none. `interleaved`: see `text_factors`."""
        axes = self.metadata.axes()
        if not axes:
            return None
        rope = replace(self.hparams.rope, kind=RopeKind.NEOX)
        factors = text_factors(axes, rope.n_dims // 2, interleaved=interleaved)
        tensor = self.weights.constant("text_factors", factors)
        return Rotary(rope, tensor, tensor)

    def plain(
        self,
        activate: Callable[[Graph, int], int] = Graph.gelu,
        suffix: str = "",
        n_ff: int | None = None,
    ) -> Plain:
        """A feed-forward network without a gate; `suffix` tells it from others in the block."""
        n_embd, n_ff = self.hparams.n_embd, n_ff or self.n_ff
        up = self.linear(f"ffn_up{suffix}", n_embd, n_ff)
        return Plain(up, self.linear(f"ffn_down{suffix}", n_ff, n_embd), activate)

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

    def per_head(self, name: str, n_in: int, n_out: int) -> int:
        """A matrix for each head, [n_in, n_out, n_head]: see `Weights.per_head`."""
        full = f"{self._prefix}{name}.weight"
        self.weights.per_head.add(full)
        return self.weights.require(full, n_in, n_out, self.heads.n)

    def router(self, name: str, n_in: int, n_out: int) -> Router:
        """A matrix that chooses, with one row or more, and its bias if there is one."""
        return Router(
            self.weights.router(f"{self._prefix}{name}.weight", n_in, n_out),
            self.weights.optional(f"{self._prefix}{name}.bias", n_out),
        )

    def experts(
        self,
        n_ff: int,
        routing: Routing | None = None,
        activate: Callable[[Graph, int, int], int] = Graph.swiglu,
        *,
        scaled: bool = False,
    ) -> Experts:
        """Several gated feed-forward networks of width `n_ff`, chosen by `routing`: by default a
        softmax whose weights add up to 1. `scaled`: the file may have a factor for each."""
        n_embd = self.hparams.n_embd
        routing = routing or self.routing()
        down = self._stack("ffn_down_exps", n_ff, n_embd, scaled=scaled)
        if self.has("ffn_gate_up_exps"):
            merged = MergedGates(self._stack("ffn_gate_up_exps", n_embd, 2 * n_ff))
            return Experts(routing, merged, down, activate)
        gates = SeparateGates(
            self._stack("ffn_gate_exps", n_embd, n_ff), self._stack("ffn_up_exps", n_embd, n_ff)
        )
        return Experts(routing, gates, down, activate)

    def ungated_experts(self, n_in: int, n_ff: int, routing: Routing) -> Experts:
        """Several feed-forward networks without gates, of width `n_ff` and over `n_in` elements:
        squares of what is positive."""
        ups = OnlyUps(self._stack("ffn_up_exps", n_in, n_ff))
        down = self._stack("ffn_down_exps", n_ff, n_in)
        return Experts(routing, ups, down, lambda g, up, _: squared_relu(g, up))

    def routing(
        self, gating: Gating = Gating.SOFTMAX, *, normalised: bool = True, scale: float = 1.0
    ) -> Routing:
        """How a token's experts are chosen, with a bias and groups if the file has them. Raises
        ModelUnsupported if the file has no experts."""
        h = self.hparams
        if not h.n_expert:
            raise ModelUnsupported(
                f"{self.metadata.path} is not a mixture of experts, as its architecture should be"
            )
        return Routing(
            router=self.router("ffn_gate_inp", h.n_embd, h.n_expert),
            gating=gating,
            normalised=normalised,
            scale=scale,
            bias=self.weights.optional(f"{self._prefix}exp_probs_b.bias", h.n_expert),
            groups=Groups(*h.expert_groups) if h.expert_groups[0] > 1 else None,
        )

    def mixture(self, routing: Routing) -> Part:
        """Experts, and one network that every token takes if the file says of how many experts'
        width that is."""
        n_shared = self.metadata.integer("expert_shared_count", 0, least=0)
        return self.with_shared(
            self.experts(self.n_ff_expert, routing), n_shared * self.n_ff_expert
        )

    def with_shared(self, experts: Experts, n_ff: int) -> Part:
        """Experts, and a network of that width that every token takes; 0: there is none."""
        if not n_ff:
            return experts
        return SharedExpert(experts, self.gated(suffix="_shexp", n_ff=n_ff))

    def routing_said(self, gating: Gating) -> Routing:
        """The same, with weights as the file says them."""
        normalised = self.metadata.flag("expert_weights_norm", False)
        scale = self.metadata.number("expert_weights_scale", 0.0) or 1.0
        return self.routing(gating, normalised=normalised, scale=scale)

    def _stack(self, name: str, n_in: int, n_out: int, *, scaled: bool = False) -> Stack:
        """A matrix for each expert, with their biases if there are any."""
        n_expert, full = self.hparams.n_expert, f"{self._prefix}{name}"
        self.weights.adaptable.add(f"{full}.weight")
        return Stack(
            self.weights.require(f"{full}.weight", n_in, n_out, n_expert),
            self.weights.biases(f"{full}.bias", n_out, n_expert),
            self.adaptation.updates(f"{full}.weight"),
            self.weights.optional(f"{full}.scale", n_expert) if scaled else 0,
        )
