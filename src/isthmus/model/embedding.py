"""What a model makes of a text as a whole: its embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.device.buffer import Binding
from isthmus.errors import ModelUnsupported, SettingsError
from isthmus.model.embedder import Embedder, Project
from isthmus.model.files.gguf import GgufFile
from isthmus.model.media.medium import Part
from isthmus.model.rank import rank_ids
from isthmus.model.shape.hparams import Pooling, Shape
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.units import HostAddr


class EmbeddingModel(ABC):
    """The part of a `Model` that is about embeddings."""

    hparams: Shape
    file: GgufFile
    _embedder: Embedder
    """The model's, which closes it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call the model."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelUnsupported if the file has none."""

    @abstractmethod
    def _require_open(self) -> None:
        """Raises ModelClosed."""

    @property
    def embeds(self) -> bool:
        """Whether it makes embeddings."""
        return self.hparams.pooling is not None

    @property
    def ranks(self) -> bool:
        """Whether it is a reranker: what it makes of a query and a document are scores."""
        return self.hparams.pooling is Pooling.RANK

    def rank_ids(self, query: str, document: str) -> list[int]:
        """The token ids of a query and a document as a reranker reads them, for `embed`.

        TokenError; ModelUnsupported if it is none.
        """
        if not self.ranks:
            raise ModelUnsupported(
                f"{self.name} is no reranker: give a model whose file says pooling_type 4 (rank)"
            )
        return rank_ids(self.file, self.tokenizer, query, document)

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document goes with a query: higher is better. Raises as `embed`."""
        texts = [self.rank_ids(query, it) for it in documents]
        return [float(it[0]) for it in self.embed(texts, normalised=False)]

    def embedding_shape(self, n_tokens: int) -> tuple[int, int]:
        """(rows, n_embd) of the embedding of so many tokens: one row, or one for each of them.

        ModelUnsupported where the model makes none, SettingsError, ContextFull.
        """
        return self._embedder.shape(n_tokens)

    def require_embeddable(self, tokens: Sequence[int]) -> None:
        """Raises as `embedding_shape`, and TokenError."""
        self._embedder.checked(tokens)

    def embedding_of(self, data: bytes) -> npt.NDArray[np.float32]:
        """The f32 bytes of an embedding, as `embed` shapes it."""
        values = np.frombuffer(data, np.float32)
        return values if self.hparams.pooling else values.reshape(-1, self.hparams.n_embd)

    @property
    def is_embedding(self) -> bool:
        """Whether an embedding is under way, so that `embedding_jobs` has to wait."""
        return self._embedder.is_embedding

    def embedding_jobs(
        self,
        tokens: Sequence[int],
        binding: Binding,
        address: HostAddr,
        *,
        normalised: bool = True,
    ) -> Generator[None, None, None]:
        """Computes as `embed_into`, one job at each next(), as `Executor.append`.

        Only on the device's thread. Raises as `embed_into` before the first job, and RuntimeError
        at the first one if another embedding is under way.
        """
        self._require_open()
        self._embedder.checked(tokens)
        return self._embedder.jobs(tokens, binding, address, normalised)

    def require_embeddable_parts(self, parts: Sequence[Part]) -> None:
        """Raises as `embedding_shape`, TokenError, and ModelUnsupported if pictures and sounds give
        it no embeddings."""
        self._embedder.require_media()
        self.embedding_shape(sum(it.n_rows for it in parts))
        for it in parts:
            if it.ids is not None:
                self._embedder.checked(it.ids)

    def media_embedding_jobs(
        self,
        parts: Sequence[Part],
        project: Project,
        address: HostAddr,
        *,
        normalised: bool = True,
    ) -> Generator[None, None, None]:
        """As `embedding_jobs`, of what pictures, sounds and texts are cut into (`Medium.parts`).
        `project` is `MediaModel.media_jobs`."""
        self._require_open()
        self.require_embeddable_parts(parts)
        return self._embedder.media_jobs(parts, project, address, normalised)

    def embed_into(
        self,
        tokens: Sequence[int],
        binding: Binding,
        address: HostAddr,
        *,
        normalised: bool = True,
    ) -> None:
        """Has the device write an embedding, f32 of `embedding_shape`, to `address`, a multiple of
        32 in the memory that `binding` is of.

        On any thread; it waits for an embedding that is under way. Raises as `embedding_shape`,
        TokenError, and RuntimeError as `Executor.prefill`.
        """
        self._require_open()
        self._embedder.checked(tokens)
        self._embedder.into(tokens, binding, address, normalised)

    def embed(
        self, texts: Sequence[str | Sequence[int]], *, normalised: bool = True
    ) -> list[npt.NDArray[np.float32]]:
        """The embedding of each text, or of its token ids: f32 [n_embd], or [n_tokens, n_embd]
        where the file says that nothing is pooled.

        Each is computed by itself. Raises as `embed_into`, before anything is computed, and
        SettingsError for a text in place of a list.
        """
        self._require_open()
        if isinstance(texts, str):
            raise SettingsError("embed takes a list of texts: give [text]")
        listed = [
            self.tokenizer.encode(it, add_special=True) if isinstance(it, str) else it
            for it in texts
        ]
        return self._embedder.arrays(listed, normalised)
