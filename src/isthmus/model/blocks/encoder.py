"""A whole model that makes embeddings and no text."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.errors import ModelUnsupported
from isthmus.model.blocks.part import Part
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.hparams import Hparams


@dataclass(frozen=True)
class Encoder:
    """One file's weights, of a model that makes embeddings and no text."""

    hparams: Hparams
    n_vocab: int
    token_embd: int
    norm: Part
    blocks: tuple[Part, ...]
    token_type: int
    """A vector that is added to each token's: that of a first sentence. 0 for none."""
    position_embd: int
    """[n_embd, n_ctx_train], whose rows are added; 0 where positions are rotated in."""
    rank: Part | None = None
    """A reranker's classifier."""

    def hidden(self, g: Pass) -> int:
        """What the last block makes of each token: f32 [n_embd, n]."""
        x = g.get_rows(self.token_embd, g.tokens)
        if self.token_type:
            x = g.add(x, self.token_type)
        if self.position_embd:
            x = g.add(g.get_rows(self.position_embd, g.positions), x)
        x = self.norm(g, x)
        for block in self.blocks:
            x = block(g, x)
        return x

    def build(self, _g: Pass) -> int:
        """There are no logits. ModelUnsupported; nobody comes here who asked `Model.layout`."""
        raise ModelUnsupported(f"{self.hparams.architecture} models make no text")
