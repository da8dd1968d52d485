"""Has libllama put a context's buffers where we say, by pointers in ggml's structs.

libllama allocates the buffers of a context itself while the context opens. It does so by function
pointers that lie in writable structs of ggml:

============================  ======  ========================================================
struct                        offset  what is there
============================  ======  ========================================================
`ggml_backend_buffer_type`         8  alloc_buffer(type, nbytes) -> buffer
`ggml_backend_buffer`             72  clear(buffer, value)
`ggml_backend_buffer`             88  the buffer's type
`ggml_backend_device`             40  init_backend(device, parameters) -> backend
`ggml_backend`                   104  graph_compute(backend, graph) -> status
============================  ======  ========================================================

The first and the fourth belong to the whole process. They are ours for the milliseconds in which
one thread opens one context; a lock lets one in at a time, and other threads' calls pass through.
The offsets are tried out before they are relied on: a library with other ones is refused.
"""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from isthmus.errors import LibraryUnsupported
from isthmus.native._ggml import DeviceType, GraphHead
from isthmus.native.loader import INSTALL, Library

_P = c.c_void_p
_ALLOC = c.CFUNCTYPE(_P, _P, c.c_size_t)
_CLEAR = c.CFUNCTYPE(None, _P, c.c_uint8)
_INIT = c.CFUNCTYPE(_P, _P, c.c_char_p)
_COMPUTE = c.CFUNCTYPE(c.c_int, _P, _P)

_ALLOC_AT, _CLEAR_AT, _TYPE_AT, _INIT_AT, _COMPUTE_AT = 8, 72, 88, 40, 104
_TRIAL_NBYTES = 4096

Place = Callable[[int, int], int | None]
"""(number of the allocation, from 0 on; nbytes) -> its address; 0 for memory of the library that
nobody clears, None for memory as if nobody had asked."""
Compute = Callable[[int, int], int]
"""(backend, graph) -> status, 0 for success."""


class Placed:
    """What was seen while a context opened."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.thread = threading.get_ident()
        self.sizes: list[int] = []
        """Bytes of each allocation, in order."""
        self.cleared: set[int] = set()
        """Numbers of the allocations that libllama wanted cleared: outputs and memories. It was not
        done: whoever gives the memory does so."""
        self.backends: list[int] = []
        """The processor's backends of the context."""
        self.errors: list[BaseException] = []
        self.buffers: dict[int, int] = {}


class Placing:
    """See the module. One for each library, made by `placing_of`. Safe to use from any thread."""

    def __init__(self, library: Library) -> None:
        """Raises LibraryUnsupported if the structs are laid out in another way."""
        self._library = library
        self._device = library.ggml_backend_dev_by_type(DeviceType.CPU)
        self._type = library.ggml_backend_dev_buffer_type(self._device)
        self._lock = threading.Lock()
        self._placed: Placed | None = None
        """What is seen now; None while no context opens."""
        self._alloc, self._clear = _ALLOC(self._on_alloc), _CLEAR(self._on_clear)
        self._init = _INIT(self._on_init)
        self._library_alloc = _ALLOC(_word(self._type, _ALLOC_AT).value or 0)
        self._library_init = _INIT(_word(self._device, _INIT_AT).value or 0)
        self._require_layouts()

    @contextmanager
    def open(self, place: Place) -> Iterator[Placed]:
        """While open, buffers that this thread has libllama allocate on the processor lie where
        `place` says; each is as large as was asked for."""
        with (
            self._lock,
            _replaced(self._type, _ALLOC_AT, self._alloc),
            _replaced(self._device, _INIT_AT, self._init),
        ):
            placed = self._placed = Placed(place)
            try:
                yield placed
            finally:
                self._placed = None
        if placed.errors:
            raise placed.errors[0]

    @contextmanager
    def taking_over(self, backends: Sequence[int], compute: Compute) -> Iterator[Compute]:
        """While open, `compute` is called in place of the backends' own function, which is given.

        The backends are of one context; `compute` must not raise.
        """
        words = [_word(it, _COMPUTE_AT) for it in backends]
        before = [word.value for word in words]
        callback = _COMPUTE(compute)
        for word in words:
            word.value = _address(callback)
        try:
            yield _COMPUTE(before[0] or 0)
        finally:
            for word, value in zip(words, before, strict=True):
                word.value = value

    def computing_nothing(self, backends: Sequence[int]) -> AbstractContextManager[Compute]:
        """While open, these backends compute no graph, and say that they have."""
        return self.taking_over(backends, lambda _backend, _graph: 0)

    # ------------------------------------------------------------------ what the library calls

    def _on_alloc(self, kind: int, nbytes: int) -> int | None:
        placed = self._placed
        if placed is None or placed.thread != threading.get_ident():
            return self._library_alloc(kind, nbytes)  # type: ignore[no-any-return]
        try:
            return self._allocate(placed, kind, nbytes)
        except BaseException as error:  # it cannot pass through the library: `open` raises it
            placed.errors.append(error)
            return None

    def _allocate(self, placed: Placed, kind: int, nbytes: int) -> int | None:
        number = len(placed.sizes)
        placed.sizes.append(nbytes)
        address = placed.place(number, nbytes)
        if address is None:
            return self._library_alloc(kind, nbytes)  # type: ignore[no-any-return]
        if address:
            buffer = self._over(address, nbytes)
            _word(buffer, _TYPE_AT).value = kind
        else:
            buffer = self._library_alloc(kind, nbytes)
        if buffer:
            _word(buffer, _CLEAR_AT).value = _address(self._clear)
            placed.buffers[buffer] = number
        return buffer

    def _over(self, address: int, nbytes: int) -> int:
        """A buffer over memory that is not the library's."""
        return self._library.ggml_backend_dev_buffer_from_host_ptr(  # type: ignore[no-any-return]
            self._device, address, nbytes, nbytes
        )

    def _on_clear(self, buffer: int, _value: int) -> None:
        placed = self._placed
        if placed is not None and placed.thread == threading.get_ident():
            placed.cleared.add(placed.buffers.get(buffer, -1))

    def _on_init(self, device: int, parameters: bytes | None) -> int | None:
        backend = self._library_init(device, parameters)
        placed = self._placed
        if placed is not None and placed.thread == threading.get_ident() and backend:
            placed.backends.append(backend)
        return backend  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ trying the offsets out

    def _require_layouts(self) -> None:
        """Has the library call each pointer that was exchanged."""
        facts = {
            "ggml_backend_buffer_type and ggml_backend_buffer": self._buffers_are_known(),
            "ggml_backend_device and ggml_backend": self._backends_are_known(),
        }
        wrong = [name for name, good in facts.items() if not good]
        if wrong:
            library = self._library
            raise LibraryUnsupported(
                f"{library.path} ({library.source}) lays out {', '.join(wrong)} in an unknown way, "
                f"so it builds no graphs over agents' memory. {INSTALL}"
            )

    def _buffers_are_known(self) -> bool:
        library = self._library
        room = (c.c_uint8 * (2 * _TRIAL_NBYTES))()
        begin = -(-c.addressof(room) // _TRIAL_NBYTES) * _TRIAL_NBYTES
        own = self._over(begin, _TRIAL_NBYTES)
        good = _word(own, _TYPE_AT).value == library.ggml_backend_buffer_get_type(own)
        library.ggml_backend_buffer_free(own)
        if not good:
            return False
        with self.open(lambda _number, _nbytes: begin) as placed:
            buffer = library.ggml_backend_buft_alloc_buffer(self._type, _TRIAL_NBYTES)
            if placed.sizes != [_TRIAL_NBYTES] or not buffer:
                return False
            library.ggml_backend_buffer_clear(buffer, 1)
        good = (
            placed.cleared == {0}
            and not any(room)
            and library.ggml_backend_buffer_get_type(buffer) == self._type
            and library.ggml_backend_buffer_get_base(buffer) == begin
            and library.ggml_backend_buffer_get_size(buffer) == _TRIAL_NBYTES
        )
        library.ggml_backend_buffer_free(buffer)
        return bool(good)

    def _backends_are_known(self) -> bool:
        """The backend is left to the process if its struct is not known."""
        library = self._library
        calls: list[tuple[int, int]] = []

        def note(backend: int, graph: int) -> int:
            calls.append((backend, graph))
            return 0

        with self.open(lambda _number, _nbytes: 0) as placed:
            backend = library.ggml_backend_dev_init(self._device, None)
        if placed.backends != [backend]:
            return False
        empty = GraphHead()
        with _replaced(backend, _COMPUTE_AT, _COMPUTE(note)):
            library.ggml_backend_graph_compute(backend, c.addressof(empty))
        if calls != [(backend, c.addressof(empty))]:
            return False
        library.ggml_backend_free(backend)
        return True


_found: dict[int, Placing] = {}
"""By the address of the struct that each changes: a library opened by two names has one."""
_finding = threading.Lock()


def placing_of(library: Library) -> Placing:
    """The library's, made when it is first asked for. Raises LibraryUnsupported."""
    device = library.ggml_backend_dev_by_type(DeviceType.CPU)
    struct = library.ggml_backend_dev_buffer_type(device)
    with _finding:
        if struct not in _found:
            _found[struct] = Placing(library)
        return _found[struct]


def _word(struct: int, offset: int) -> c.c_void_p:
    """A pointer inside a struct, in place."""
    return _P.from_address(struct + offset)


def _address(function: object) -> int:
    return c.cast(function, _P).value or 0  # type: ignore[arg-type]


@contextmanager
def _replaced(struct: int, offset: int, function: object) -> Iterator[None]:
    word = _word(struct, offset)
    before = word.value
    word.value = _address(function)
    try:
        yield
    finally:
        word.value = before
