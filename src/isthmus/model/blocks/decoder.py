"""A whole model that makes text."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.blocks.part import Part
from isthmus.model.blocks.products import Linear, LowRank
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.hparams import Hparams


@dataclass(frozen=True)
class Decoder:
    """One file's weights, ready to be written into graphs by `build`."""

    hparams: Hparams
    n_vocab: int
    token_embd: int
    blocks: tuple[Part, ...]
    norm: Part
    output: Linear
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    logits_soft_cap: float = 0.0
    """Logits become cap * tanh(logits / cap); 0: they stay."""
    embedding_updates: tuple[LowRank, ...] = ()
    """What adapters add to the embeddings."""
    scales_given: bool = True
    """Whether embeddings that are given in place of tokens are scaled, as tokens' own are."""
    rank: Part | None = None
    """A reranker's classifier."""

    def hidden(self, g: Pass) -> int:
        """What comes before the logits: f32 [n_embd, n_outputs]."""
        x = g.embeddings or self._looked_up(g)
        if self.embedding_scale != 1.0 and (self.scales_given or not g.embeddings):
            x = g.scale(x, self.embedding_scale)
        g.expand(x)
        for block in self.blocks:
            x = block(g, x)
        return self.norm(g, x)

    def _looked_up(self, g: Pass) -> int:
        """The tokens' own embeddings."""
        x = g.get_rows(self.token_embd, g.tokens)
        for update in self.embedding_updates:
            x = update.added_rows(g, x)
        return x

    def build(self, g: Pass) -> int:
        """The forward pass: f32 [n_vocab, n_outputs]."""
        logits = self.output(g, self.hidden(g))
        if self.logits_scale != 1.0:
            logits = g.scale(logits, self.logits_scale)
        if cap := self.logits_soft_cap:
            logits = g.scale(g.tanh(g.scale(logits, 1.0 / cap)), cap)
        return logits
