"""The models of a runtime that are open, and what their weights take."""

from __future__ import annotations

import threading
from collections.abc import Callable

from isthmus.counters import Counters
from isthmus.errors import ActorClosed
from isthmus.model import Model


class OpenModels:
    """See the module. Safe to use from several threads. `forget` is called with a model before it
    is closed."""

    def __init__(self, forget: Callable[[Model], None]) -> None:
        self._forget = forget
        self._lock = threading.Lock()
        self._models: list[Model] = []
        """A model with adapters is newer than its base, and comes after it."""
        self._weights: list[tuple[Model, int]] = []
        """Models that have weights of their own, and bytes of the host's memory for them."""
        self._past = Counters()
        """Counts of models that are closed."""
        self._closed = False

    def __len__(self) -> int:
        return len(self._models)

    def add(self, model: Model, host_nbytes: int | None = None) -> Model:
        """Keeps a model until it is closed; `host_nbytes` of its own weights, if it has some.

        Raises ActorClosed after `close`, and closes the model then.
        """
        with self._lock:
            if not self._closed:
                self._models.append(model)
                if host_nbytes is not None:
                    self._weights.append((model, host_nbytes))
                return model
        model.close()
        raise ActorClosed("the runtime is closed")

    def over(self, model: Model) -> list[Model]:
        """The open models with adapters over a model, then the model; none if it is not open."""
        with self._lock:
            found = [it for it in self._models if it.base is model]
            return found + ([model] if model in self._models else [])

    def close_each(self, models: list[Model]) -> None:
        """Closes some models in this order. Raises as `Model.close`; those before are closed."""
        for model in models:
            self._close(model)
        with self._lock:
            self._past = Counters.total([self._past, *(it.counters for it in models)])
            self._models = [it for it in self._models if it not in models]
            self._weights = [(it, n) for it, n in self._weights if it not in models]

    def close(self) -> None:
        """Closes all models, the newest first, and takes no more."""
        with self._lock:
            self._closed = True
        for model in reversed(self._models):
            self._close(model)

    def _close(self, model: Model) -> None:
        self._forget(model)
        model.close()

    def counters(self) -> list[Counters]:
        """Counts of all models, those that are closed among them."""
        with self._lock:
            return [self._past, *(model.counters for model in self._models)]

    def host_nbytes(self) -> int:
        """Bytes of the host's memory that weights take."""
        return sum(nbytes for model, nbytes in tuple(self._weights) if not model.closed)

    def nbytes(self) -> int:
        """Bytes of weights, wherever they are."""
        return sum(it.weights.nbytes for it, _ in tuple(self._weights) if not it.closed)
