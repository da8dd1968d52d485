"""libmtmd, which makes embeddings of pictures and sounds; its structs are tried out first."""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import LibraryUnsupported
from isthmus.native._mtmd import FUNCTIONS, IMAGE, TEXT, ContextParams, InputText, Position
from isthmus.native.loader import INSTALL, Library

_NAME = "libmtmd"
_TOKENS = [1, 2, 3, 4, 5]
_N_ROWS = 256
"""The chunks that the library makes for tests: five tokens, and a picture whose rows follow each
other."""


class Mtmd:
    """See the module. Every function of `_mtmd` is an attribute."""

    def __init__(self, library: Library) -> None:
        """Raises LibraryUnsupported if the library has no libmtmd, or another one."""
        self.library = library
        self._functions = library.companion(_NAME, FUNCTIONS)
        library.take_log(self.mtmd_log_set)
        facts = {
            "mtmd_context_params": self._parameters_are_known(),
            "mtmd_input_chunk": self._chunks_are_known(),
        }
        wrong = [name for name, good in facts.items() if not good]
        if wrong:
            raise LibraryUnsupported(
                f"{library.path} ({library.source}) lays out {', '.join(wrong)} in an unknown way, "
                f"so it takes no pictures and sounds. {INSTALL}"
            )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._functions[name]  # type: ignore[no-any-return]

    def parameters(self, n_threads: int) -> ContextParams:
        """Those of a projector on the processor."""
        found: ContextParams = self.mtmd_context_params_default()
        found.use_gpu = found.print_timings = False
        found.n_threads = n_threads
        return found

    def marker(self) -> InputText:
        """A text that stands for one medium and for nothing else."""
        text: bytes = self.mtmd_default_marker()
        return InputText(text, len(text), False, True)

    def ids(self, chunk: int) -> tuple[int, ...]:
        """The tokens of a chunk of text."""
        n = c.c_size_t()
        address = self.mtmd_input_chunk_get_tokens_text(chunk, c.addressof(n))
        return tuple((c.c_int32 * n.value).from_address(address)) if n.value else ()

    def positions(self, chunk: int) -> npt.NDArray[np.int32]:
        """i32 [3, n]: time, height and width of each row of a picture, from 0 on."""
        image = self.mtmd_input_chunk_get_tokens_image(chunk)
        n = self.mtmd_input_chunk_get_n_tokens(chunk)
        found = (Position * n)()
        self.mtmd_helper_image_get_decoder_pos(image, 0, c.addressof(found))
        columns = np.frombuffer(found, np.int32).reshape(n, 4)[:, [0, 2, 1]]
        return np.ascontiguousarray(columns.T)

    def _parameters_are_known(self) -> bool:
        found = self.mtmd_context_params_default()
        return bool(
            found.use_gpu
            and not found.device
            and found.n_threads == 4
            and not found.image_marker
            and found.media_marker == self.mtmd_default_marker()
            and found.warmup
            and found.image_min_tokens == found.image_max_tokens == -1
            and not found.cb_eval
            and found.batch_max_tokens == 1024
            and not found.progress_callback
        )

    def _chunks_are_known(self) -> bool:
        chunks = self.mtmd_test_create_input_chunks()
        each = [self.mtmd_input_chunks_get(chunks, i) for i in range(2)]
        good = (
            self.mtmd_input_chunks_size(chunks) == 2
            and [self.mtmd_input_chunk_get_type(it) for it in each] == [TEXT, IMAGE]
            and list(self.ids(each[0])) == _TOKENS
            and self.mtmd_input_chunk_get_n_tokens(each[1]) == _N_ROWS
            and bool((self.positions(each[1]) == np.arange(_N_ROWS)).all())
        )
        self.mtmd_input_chunks_free(chunks)
        return good


_found: dict[Library, Mtmd] = {}
_finding = threading.Lock()


def mtmd_of(library: Library) -> Mtmd:
    """The library's, made when it is first asked for. Raises LibraryUnsupported."""
    with _finding:
        if library not in _found:
            _found[library] = Mtmd(library)
        return _found[library]
