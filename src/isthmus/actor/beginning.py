"""How an actor begins: new, or as another one was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from isthmus.actor.snapshot import Restoration, state_of
from isthmus.actor.state import ActorState
from isthmus.device.buffer import Binding
from isthmus.memory import Image, LiveImage
from isthmus.snapshot import Chunks, Snapshot
from isthmus.units import HostAddr


@dataclass(frozen=True)
class Spawned:
    """How a new actor begins."""

    args: Sequence[str] = ()
    """Options for the guest, `key=value`: its WASI arguments after the guest's name. A command's
    variables."""
    seed: int = 0
    """Seed of its random numbers."""
    clock_ns: int = 0
    """Where its clock begins, nanoseconds since 1970-01-01 00:00 UTC."""
    copy_tensors: bool = False
    """Stage the tensors of `compute` in device memory. Only to measure what that costs."""
    argv: tuple[str, ...] | None = None
    """A command's arguments after the guest's name; None for any other guest."""
    n_random_blocks: int = 0
    """Random blocks that were drawn before; see `SeededRandom`."""
    log_position: int = 0
    """Records that were logged before."""

    @property
    def state(self) -> ActorState:
        """The state of an actor that has done nothing yet."""
        return ActorState(
            args=tuple(self.args),
            globals=(),
            opened=(),
            last_handle=0,
            seed=self.seed,
            n_random_blocks=self.n_random_blocks,
            clock_ns=self.clock_ns,
            log_position=self.log_position,
            n_messages=0,
            argv=self.argv,
        )


@dataclass(frozen=True)
class Frozen:
    """An actor between two messages or tokens, whole: how another one begins."""

    state: ActorState
    image: Image | LiveImage
    """Its linear memory."""
    chunks: Chunks | None = None
    """The hashes of the image, if they are known."""
    snapshot_id: str | None = None
    """The snapshot that it was last saved as, or restored from."""
    restoration: Restoration | None = None
    verify: Callable[[HostAddr], None] | None = None
    """Compares the image, once it is placed, with its hashes; raises SnapshotInvalid."""
    copy_tensors: bool = False
    has_other_options: bool = False
    """Whether its options are not those that its guest has read."""
    caches: Binding | None = None
    """The binding of the actor whose memory a LiveImage is: it may have the KV caches elsewhere."""

    @staticmethod
    def of(
        snapshot: Snapshot, restoration: Restoration | None = None, *, verified: bool = False
    ) -> Frozen:
        """What a snapshot holds, its memory mapped; `verified` compares that with its hashes."""
        return Frozen(
            state_of(snapshot),
            snapshot.image(),
            snapshot.chunks,
            snapshot.id,
            restoration,
            snapshot.verify_memory if verified else None,
        )

    def caches_apart(self) -> list[tuple[int, int]]:
        """(offset, nbytes) of KV caches that a device takes from the image itself.

        There are none if the image is to be verified, which it is where it was placed.
        """
        if self.verify is not None:
            return []
        replayed = self.restoration.replayed if self.restoration else frozenset()
        return [
            (it.ptr + it.layout.kv_offset, it.layout.kv_nbytes)
            for it in self.state.sessions
            if it.model not in replayed
        ]

    def source(self) -> Image | Binding | None:
        """Where the rows of KV caches are that are not in its memory; None if they are there."""
        if isinstance(self.image, LiveImage):
            return self.caches
        return self.image if self.verify is None else None

    def with_args(self, args: tuple[str, ...]) -> Frozen:
        """The same, with other options."""
        differ = self.has_other_options or args != self.state.args
        return replace(self, state=replace(self.state, args=args), has_other_options=differ)

    def plain(self) -> Frozen:
        """The same, for forks: how it was restored says nothing about them."""
        return replace(self, restoration=None, verify=None)
