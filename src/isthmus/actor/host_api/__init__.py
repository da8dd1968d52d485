"""The host's side of the guest ABI: a file for each group of `abi/host.toml`.

Every method is a host function. It gets unsigned integers, checks each before it uses it, and
returns a value >= 0. One that waits is a coroutine, which awaits an `Ask`. What a guest does wrong
becomes a GuestFault or an error with an `errno`, and nothing has happened; any other error ends the
message.

This is the only place where a guest's memory and a model meet.
"""

from __future__ import annotations

from collections.abc import Callable

from isthmus import abi
from isthmus.actor.host_api.actor import ActorFunctions
from isthmus.actor.host_api.answer import AnswerFunctions
from isthmus.actor.host_api.context import Context, Granted
from isthmus.actor.host_api.grammar import GrammarFunctions
from isthmus.actor.host_api.media import MediaFunctions
from isthmus.actor.host_api.model import ModelFunctions
from isthmus.actor.host_api.tensor import TensorFunctions
from isthmus.actor.host_api.tool import ToolFunctions
from isthmus.actor.tensor_unit import TensorUnit
from isthmus.device.buffer import Binding
from isthmus.memory import Region
from isthmus.model import Session
from isthmus.wasm.hostcalls import GuestMemory, Handler

__all__ = ["Context", "Granted", "HostApi"]


class HostApi:
    """One actor's host functions, and everything that it has opened."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._tensor = TensorFunctions(context)
        self._actor = ActorFunctions(context)
        self._media = MediaFunctions(context)
        self._groups = {
            "model": ModelFunctions(context),
            "grammar": GrammarFunctions(context),
            "media": self._media,
            "tensor": self._tensor,
            "actor": self._actor,
            "tool": ToolFunctions(context),
            "answer": AnswerFunctions(context),
        }

    def attach(
        self,
        region: Region,
        memory: GuestMemory,
        binding: Binding,
        tensor_unit: TensorUnit,
        hold: Callable[[int], None],
    ) -> None:
        """Gives it the memory of the instance that it serves, once that exists; see `Context`."""
        context = self.context
        context.region, context.memory, context.binding = region, memory, binding
        context.hold = hold
        self._tensor.unit = tensor_unit

    def functions(self) -> dict[str, Handler]:
        """The host functions by their names in `abi/host.toml`."""
        return {it.name: getattr(self._groups[it.group], it.name) for it in abi.HOST_FUNCTIONS}

    def log_stream(self, stream: int, data: bytes) -> None:
        """Logs what the guest writes by WASI to standard output (1) or standard error (2)."""
        self._actor.log_stream(stream, data)

    def end_message(self) -> None:
        """Closes what lasts no longer than a message."""
        self._media.close_all()

    def close(self) -> None:
        """Closes every session, and what a message left open."""
        self.end_message()
        for session in self.context.handles.all(Session):
            session.close()
