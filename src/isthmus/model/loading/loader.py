"""Puts a whole file's weights together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isthmus.errors import ModelUnsupported
from isthmus.model.blocks import (
    Decoder,
    Encoder,
    Part,
)
from isthmus.model.blocks.products import Linear
from isthmus.model.blocks.rank_head import RankHead
from isthmus.model.files.weights import TOKEN_EMBD
from isthmus.model.loading.block_loader import BlockLoader
from isthmus.model.loading.weight_loader import WeightLoader

_RANKERS = ("bert", "qwen3")
"""Architectures of which there are rerankers, as libllama has them."""
_SOFTMAX = ("qwen3",)
"""Those whose scores add up to 1."""


class Loader(WeightLoader):
    """The parts of a whole file; of one block, a `BlockLoader`."""

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
            rank=self._rank_head(),
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
            rank=self._rank_head(),
        )

    def _rank_head(self) -> RankHead | None:
        """A reranker's classifier; None for other models."""
        h, weights = self.hparams, self.weights
        if not h.n_scores:
            return None
        if h.architecture not in _RANKERS:
            raise ModelUnsupported(
                f"{self.metadata.path} says pooling_type 4 (rank), and no rerankers of the "
                f"architecture {h.architecture!r} are known: only {' and '.join(_RANKERS)}"
            )
        dense = weights.optional("cls.weight", h.n_embd, h.n_embd)
        out = weights.optional("cls.output.weight", h.n_embd, h.n_scores)
        if not out:
            raise ModelUnsupported(
                f"{self.metadata.path} is a reranker without cls.output.weight, whose scores are "
                "not computed here: try graph='adopted' (--graph adopted)"
            )
        return RankHead(
            Linear(dense, weights.optional("cls.bias", h.n_embd)) if dense else None,
            Linear(out, weights.optional("cls.output.bias", h.n_scores)),
            softmax=h.architecture in _SOFTMAX,
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
