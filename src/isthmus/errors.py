"""Every exception that Isthmus raises.

::

    IsthmusError
    ├── SettingsError               a setting, option or argument has no such value
    ├── LibraryError
    │   ├── LibraryNotFound         no ggml library; the text lists where it was looked for
    │   └── LibraryUnsupported      one was found, of a version whose layouts are not known
    ├── RegionError                 the system gave no memory, or an address range is misused
    │   └── RegionBusy              closing a Region that a view or a device still holds
    ├── DeviceError
    │   ├── DeviceUnavailable       no such device here, or its library or driver is missing
    │   └── DeviceFailed            a submission failed
    ├── ModelError
    │   ├── ModelNotFound           no file there, a folder, or no model of that name
    │   ├── ModelFileError          not a GGUF file, truncated or malformed
    │   ├── ModelUnsupported        a good GGUF file of a kind that is not implemented
    │   ├── ModelClosed             it was closed
    │   ├── ModelBusy               closing a model while sessions of it are open
    │   ├── TokenError              a token id outside the vocabulary, or too many of them
    │   ├── TemplateError           no chat template, or it refused the conversation
    │   ├── GrammarError            no grammar, too complex a one, or a text that does not follow it
    │   └── ContextFull             no room for more tokens in the session's context
    ├── GuestError                  the guest's own failure
    │   ├── GuestInvalid            not WebAssembly, or it lacks what a guest must have
    │   ├── GuestTrapped            it trapped: unreachable, out of bounds, stack overflow, …
    │   ├── GuestExited             it called proc_exit, a command with another status than 0
    │   ├── InputExhausted          a command reads on and on at the end of its input
    │   ├── GuestFailed             on_message returned an errno
    │   └── LimitExceeded           it reached a limit; `limit` names it
    │       └── DeadlineExceeded    it did not finish in time
    ├── Cancelled                   the caller went away or pressed Ctrl-C
    ├── ToolError
    │   ├── ToolNotFound            the guest asks for a tool that it was not given
    │   └── ToolFailed              a tool raised, took too long or said too much
    ├── ActorError
    │   ├── Overloaded              all actors together have, or wait for, as much as they may
    │   ├── ActorBusy               it handles another message, or nobody may wait here
    │   ├── AnswerPaused            it was paused between two tokens, and may be resumed
    │   └── ActorClosed             it was closed, or died of an earlier error
    ├── SnapshotError               nothing was restored, and nothing is half written
    │   ├── SnapshotNotFound        no file or snapshot of that name
    │   ├── SnapshotInvalid         not a snapshot, truncated, damaged or malformed
    │   ├── SnapshotUnsupported     of a format version that is not known
    │   ├── SnapshotUntrusted       not signed with the runtime's key
    │   └── SnapshotMismatch        made for another guest, model or setting than is given
    ├── ProjectError                a guest's folder or its isthmus.toml is not as it must be
    │   ├── ToolchainMissing        a compiler is not here, or too old; the text says how to get it
    │   └── BuildFailed             a compiler refused the sources
    ├── StorageError                where a server keeps its agents cannot be used now
    ├── DownloadError               no network, a wrong checksum, a full disk
    └── VerificationFailed          a proof did not hold

An error that a guest may see carries an `errno`: a host function that raises it returns
`-errno` to the guest, and nothing else happens. An error without one ends the message.
`exit_code` is what the command line exits with: 1 where the guest failed, otherwise 2.
"""

from __future__ import annotations

from typing import Any, ClassVar

from isthmus.abi import ERRNO_TEXT, Errno


class IsthmusError(Exception):
    """Base of all errors of this package."""

    errno: ClassVar[Errno | None] = None
    exit_code: ClassVar[int] = 2

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, without its constructor, which may make its text of other arguments."""
        return _unpickled, (type(self), *self.args), self.__dict__


def _unpickled(kind: type[IsthmusError], *args: object) -> IsthmusError:
    return kind.__new__(kind, *args)


class SettingsError(IsthmusError, ValueError):
    """A setting, option or argument has no such value."""

    errno = Errno.EINVAL


class LibraryError(IsthmusError):
    """Something about the ggml library."""


class LibraryNotFound(LibraryError):
    """No ggml library was found."""


class LibraryUnsupported(LibraryError):
    """A ggml library was found whose layouts are not known."""


class RegionError(IsthmusError):
    """The system gave no memory, or an address range is misused."""

    errno = Errno.ENOMEM


class RegionBusy(RegionError):
    """A view or a device still holds the Region."""


class DeviceError(IsthmusError):
    """Something about a compute device."""

    errno = Errno.EIO


class DeviceUnavailable(DeviceError):
    """There is no such device here, or its library or driver is missing."""


class DeviceFailed(DeviceError):
    """A submission to the device failed."""


class ModelError(IsthmusError):
    """Something about a model."""


class ModelNotFound(ModelError):
    """There is no model file there, or no model of that name."""

    errno = Errno.ENOENT


class ModelFileError(ModelError):
    """The file is not a GGUF file, or is truncated or malformed."""


class ModelUnsupported(ModelError):
    """A good GGUF file of an architecture, type or variant that is not implemented."""

    errno = Errno.ENOTSUP


class ModelClosed(ModelError):
    """The model was closed: load it again."""

    errno = Errno.EBADF


class ModelBusy(ModelError):
    """Sessions of the model are open: close the actors that have them first."""


class TokenError(ModelError, ValueError):
    """A token id outside the vocabulary, or text that cannot be tokenized."""

    errno = Errno.ETOKEN


class TemplateError(ModelError):
    """The model has no chat template, or it refused the conversation."""

    errno = Errno.EINVAL


class GrammarError(ModelError, ValueError):
    """Not a grammar, one that is too complex, or a token that does not follow it."""

    errno = Errno.EINVAL


class ContextFull(ModelError):
    """The session's context has no room for more tokens."""

    errno = Errno.ECONTEXT


class GuestError(IsthmusError):
    """The guest's own failure."""

    exit_code = 1


class GuestInvalid(GuestError):
    """The file is not WebAssembly, or lacks what a guest must have."""

    exit_code = 2


class GuestTrapped(GuestError):
    """The guest trapped. `backtrace` names its functions, innermost first."""

    def __init__(self, message: str, backtrace: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.backtrace = backtrace


class GuestExited(GuestError):
    """The guest called proc_exit; a command with another `status` than 0."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the guest exited with status {status}")
        self.status = status
        self.reply: Any = None
        """What a command answered before it exited, a `Reply`; None for any other guest."""


class InputExhausted(GuestError):
    """A command reads on and on at the end of its input."""


class GuestFailed(GuestError):
    """on_message returned an errno."""

    def __init__(self, code: int, said: str = "") -> None:
        """`said`: the last warning that the guest logged meanwhile."""
        known = code in {errno.value for errno in Errno}
        text = f"{Errno(code).name}: {ERRNO_TEXT[Errno(code)]}" if known else f"code {code}"
        super().__init__(f"the guest gave up with {text}" + (f"; it said: {said}" if said else ""))
        self.code = code


class LimitExceeded(GuestError):
    """The guest reached one of its limits. `limit` is its name in `Limits`."""

    errno: ClassVar[Errno | None] = Errno.ELIMIT

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class DeadlineExceeded(LimitExceeded):
    """The guest did not finish in time. A guest never sees this: its message is ended."""

    errno = None

    def __init__(self, message: str) -> None:
        super().__init__(message, "deadline_s")


class Cancelled(IsthmusError):
    """The caller went away or pressed Ctrl-C; the guest's message was ended."""

    exit_code = 130


class ToolError(IsthmusError):
    """Something about a tool."""

    exit_code = 1


class ToolNotFound(ToolError):
    """The guest asks for a tool that it was not given."""

    errno = Errno.ENOENT


class ToolFailed(ToolError):
    """A tool raised, took too long or said too much; the tool's own exception is its cause."""

    errno = Errno.EIO


class ActorError(IsthmusError):
    """Something about an actor."""


class Overloaded(ActorError):
    """All actors together have, or wait for, as much as they may. Later there may be room."""

    errno = Errno.ENOMEM


class ActorBusy(ActorError):
    """The actor is handling another message, or the calling thread must not wait for it."""


class AnswerPaused(ActorError):
    """The answer was paused between two tokens; `Actor.resume` goes on with it."""


class ActorClosed(ActorError):
    """The actor was closed, or died of an earlier error."""


class SnapshotError(IsthmusError):
    """Something about a snapshot."""


class SnapshotNotFound(SnapshotError):
    """There is no such file, or no snapshot of that name."""


class SnapshotInvalid(SnapshotError):
    """The file is not a snapshot, or is truncated, damaged or malformed."""


class SnapshotUnsupported(SnapshotError):
    """The snapshot has a format version that is not known."""


class SnapshotUntrusted(SnapshotError):
    """The snapshot is not signed with the runtime's key."""


class SnapshotMismatch(SnapshotError):
    """The snapshot was made for another guest, model or setting. `reasons` tells each."""

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__("; ".join([message, *reasons]) if reasons else message)
        self.reasons = reasons


class ProjectError(IsthmusError):
    """A guest's folder, or its isthmus.toml, is not as it must be."""


class ToolchainMissing(ProjectError):
    """A compiler is not here, or too old."""


class BuildFailed(ProjectError):
    """A compiler refused a guest's sources."""


class StorageError(IsthmusError):
    """The place where a server keeps its agents cannot be used now; nothing has happened."""


class DownloadError(IsthmusError):
    """No network, a wrong checksum, or a full disk."""


class VerificationFailed(IsthmusError):
    """A proof did not hold."""

    exit_code = 1


class GuestFault(IsthmusError):
    """A guest passed something that a host function does not take.

    Never leaves the host function: the guest receives `-code`.
    """

    def __init__(self, code: Errno) -> None:
        super().__init__(ERRNO_TEXT[code])
        self.code = code
