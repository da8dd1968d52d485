"""One guest over many inputs on a Ray cluster: see `isthmus.mapping`.

Workers are Ray actors with a runtime and models of their own. Inputs go to them in chunks, each of
which is computed again by another worker if one is lost: an input gives the same output wherever it
is computed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from isthmus.errors import IsthmusError, SettingsError
from isthmus.mapping import Job, Mapped, Mapper
from isthmus.ray.extra import require_ray
from isthmus.runtime import Runtime

OpenMapper = Callable[[], AbstractContextManager[Mapper]]
"""Opens a runtime and what a job needs, in a worker."""


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each has."""

    n: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    parallel: int = 8
    """Inputs that each computes at a time."""
    retries: int = 2
    """Further tries of an input, and of a chunk whose worker was lost."""


class _Worker:
    """What runs in a Ray actor."""

    def __init__(self, open_mapper: OpenMapper) -> None:
        self._opened = open_mapper()
        self._mapper = self._opened.__enter__()

    def key(self) -> str:
        return self._mapper.key

    def run(self, first: int, texts: list[str], parallel: int, retries: int) -> list[Mapped]:
        return list(self._mapper.map(texts, parallel=parallel, retries=retries, first=first))


class RayMapper:
    """A Mapper whose inputs are computed by workers. Ray is connected, and stays so."""

    def __init__(self, open_mapper: OpenMapper, workers: Workers) -> None:
        """SettingsError, and what the job raises when it is opened."""
        require_ray()
        import ray  # noqa: PLC0415

        self._ray, self._workers = ray, workers
        kind = ray.remote(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=workers.retries,
        )(_Worker)
        self._actors = [kind.remote(open_mapper) for _ in range(workers.n)]
        keys = {self._get(it.key.remote()) for it in self._actors}
        if len(keys) > 1:
            raise SettingsError("the nodes of the cluster have different models of the same names")
        self.key: str = keys.pop()
        """As `Mapper.key`."""

    def map(
        self,
        inputs: Iterable[str],
        *,
        parallel: int | None = None,
        retries: int | None = None,
        first: int = 0,
    ) -> Iterator[Mapped]:
        """As `Mapper.map`; `parallel` is of each worker."""
        parallel = parallel or self._workers.parallel
        retries = self._workers.retries if retries is None else retries
        texts, index = iter(inputs), first
        free, waiting = itertools.cycle(self._actors), deque[Any]()
        try:
            while True:
                while len(waiting) < 2 * len(self._actors):
                    chunk = list(itertools.islice(texts, 2 * parallel))
                    if not chunk:
                        break
                    waiting.append(next(free).run.remote(index, chunk, parallel, retries))
                    index += len(chunk)
                if not waiting:
                    return
                yield from self._get(waiting.popleft())
        finally:
            for it in waiting:
                self._ray.cancel(it)

    def close(self) -> None:
        """Ends the workers."""
        for it in self._actors:
            self._ray.kill(it)

    def _get(self, reference: Any) -> Any:
        """What a worker gives. Its own errors, as they are; SettingsError if none is left."""
        from ray.exceptions import RayError, RayTaskError  # noqa: PLC0415

        try:
            return self._ray.get(reference)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, IsthmusError):
                raise cause from None
            raise
        except RayError as error:
            said = " ".join(str(error).split())[:300]
            raise SettingsError(
                f"a worker was lost again and again, or never began: {said}"
            ) from None


@contextmanager
def ray_mapper(open_mapper: OpenMapper, workers: Workers) -> Iterator[RayMapper]:
    """A RayMapper whose workers end with the block."""
    mapper = RayMapper(open_mapper, workers)
    try:
        yield mapper
    finally:
        mapper.close()


def map_inputs(
    job: Job, inputs: Iterable[str], *, workers: Workers | None = None, device: str = "auto"
) -> Iterator[Mapped]:
    """What comes of each input, in order, as `isthmus.map` has it, computed by the workers of the
    cluster that Ray is connected to (`ray.init`).

    Models of the job are paths or names, which each node must have. SettingsError.
    """
    if not all(isinstance(it, str) for it in job.models.values()):
        raise SettingsError("a job for Ray names its models: give paths or names, not loaded ones")
    with ray_mapper(partial(_opened, job, device), workers or Workers()) as mapper:
        yield from mapper.map(inputs)


@contextmanager
def _opened(job: Job, device: str) -> Iterator[Mapper]:
    with Runtime(device=device) as runtime:
        yield Mapper(runtime, job)
