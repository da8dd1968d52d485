"""What a model takes in place of tokens: embeddings, such as those of a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod

from isthmus.errors import ContextFull, ModelUnsupported, SettingsError
from isthmus.model.executor import Executor
from isthmus.model.session import Session
from isthmus.model.spans import Embeddings, are_positions


class EmbeddingsTaker(ABC):
    """The part of a `Model` that is about embeddings in place of tokens."""

    executor: Executor

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call the model."""

    @property
    @abstractmethod
    def row_width(self) -> int:
        """Numbers of one row of embeddings. ModelUnsupported if the model takes none, which may be
        tried out, in a process of its own, when this is first asked."""

    @property
    @abstractmethod
    def has_axes(self) -> bool:
        """Whether rows have positions in time, height and width (M-RoPE)."""

    def require_embeddings(self, session: Session, embeddings: Embeddings) -> None:
        """Raises unless a session of this model can be given these embeddings.

        SettingsError, ModelUnsupported, ContextFull.
        """
        if embeddings.n_rows < 1:
            raise SettingsError("there are no embeddings to append")
        if embeddings.width != self.row_width:
            raise SettingsError(
                f"a row has {embeddings.width} numbers; {self.name} takes {self.row_width}"
            )
        session.require_room(embeddings.n_rows)
        axes = embeddings.positions
        if axes is None:
            return
        if not self.has_axes:
            raise ModelUnsupported(
                f"{self.name} has no positions in height and width (M-RoPE): give none"
            )
        if axes.shape[1:] != (embeddings.n_rows,):
            raise SettingsError("there is not a position for each row")
        if int(axes.max()) >= session.n_ctx:
            raise ContextFull(
                f"positions go up to {axes.max()}, and the context has {session.n_ctx}"
            )
        if not are_positions(axes, session.next_position, session.n_ctx):
            raise SettingsError("positions lie before the session's next one, or time goes back")

    def prefill_embeddings(self, session: Session, embeddings: Embeddings) -> None:
        """Appends embeddings to a session. Raises as `require_embeddings`, and DeviceFailed."""
        self.require_embeddings(session, embeddings)
        self.executor.prefill_embeddings(session, embeddings)
