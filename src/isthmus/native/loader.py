"""Finds and opens one ggml library, and refuses one whose layouts are not known.

Where it looks, in this order; the first place that has a library decides:

1. an explicit path, or `ISTHMUS_GGML`: a library file, or the folder of one
2. `llama-cpp-python`, if installed: built for the machine at hand
3. `xllamacpp`, which `pip install isthmus` brings along
4. the system's `libllama` and `libggml`

An explicit path that does not work is an error; a place that has nothing is passed over.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import LibraryNotFound, LibraryUnsupported
from isthmus.file_hash import FileHashes
from isthmus.native import _ggml, _llama
from isthmus.paths import expanded

KNOWN = {("0.25", "0.5"): _llama.ContextParams05, ("0.26", "0.6"): _llama.ContextParams06}
"""Minor releases of ggml and llama.cpp whose layouts `_ggml` and `_llama` hold."""

INSTALL = (
    "Install one that is known: pip install 'xllamacpp==2026.10.11549', "
    "or for a build for this machine: pip install 'llama-cpp-python==0.3.36'"
)
PACKAGES = {
    "libgomp": {"Debian, Ubuntu": "apt-get install libgomp1", "Fedora": "dnf install libgomp"},
    "libstdc++": {
        "Debian, Ubuntu": "apt-get install libstdc++6",
        "Fedora": "dnf install libstdc++",
    },
    "libvulkan": {
        "Debian, Ubuntu": "apt-get install libvulkan1",
        "Fedora": "dnf install vulkan-loader",
    },
}
"""Libraries that slim images lack, and the commands that install them."""
_ARCHITECTURE_NAME = "_Z13llm_arch_name8llm_arch"
"""`const char * llm_arch_name(llm_arch)`, a C++ function, which no public header promises."""
_NO_ARCHITECTURE = ("unknown", "(unknown)")
_PAUSE_HARD = 2
"""OpenMP 5.0, omp_pause_resource_t."""
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


@dataclass(frozen=True)
class Candidate:
    """One place that has a library: `files` are opened in order, symbols looked up in each."""

    source: str
    files: tuple[Path, ...]


class Library:
    """An opened ggml library: every function of `_ggml` and `_llama` is an attribute.

    Never closed: ggml keeps threads and static state that do not survive an unload.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.source = candidate.source
        self.path = candidate.files[0]
        self.files = candidate.files
        self._handles = [_open(file) for file in candidate.files]
        self._bind(_ggml.FUNCTIONS)
        self.version = self.ggml_version().decode()
        self.llama_version = self._llama_version()
        self._bind(_llama.functions(_context_params(self)))
        _check_layouts(self)
        self._pause = None
        self.hold_team: Callable[[int], None] | None = None
        """Keeps that many OpenMP workers for the calling thread, which do nothing until
        `end_workers`. None unless the runtime is GNU's."""
        if self._find("__kmpc_fork_call") is None:  # LLVM's runtime shares its workers
            self._pause = self._find("omp_pause_resource")
            self.hold_team = _team_holder(self._find("GOMP_parallel"))
        self._log = LogCapture(self.llama_log_set)
        self._load_backends()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"{name} is not on the list of native functions")

    def __repr__(self) -> str:
        return f"<Library ggml {self.version} from {self.source}: {self.path}>"

    def build_sha256(self, hashes: FileHashes) -> str:
        """What tells this build from another: of its files, loadable backends included."""
        backends = set(self.path.parent.glob("libggml-*")) if len(self.files) > 1 else set()
        files = sorted({*self.files, *backends}, key=lambda path: path.name)
        each = [f"{path.name} {hashes.sha256(path)}\n" for path in files]
        return hashlib.sha256("".join(each).encode()).hexdigest()

    def end_workers(self) -> None:
        """Ends the OpenMP workers that are kept for the calling thread, which computes elsewhere.

        Only GNU's runtime keeps a team for each thread; it begins anew with the next graph.
        """
        if self._pause is not None:
            self._pause(_PAUSE_HARD, self._find("omp_get_initial_device")())

    @contextmanager
    def errors(self) -> Iterator[list[str]]:
        """Collects the errors that the library logs on this thread meanwhile."""
        with self._log.collect() as lines:
            yield lines

    def architectures(self) -> list[str]:
        """The names of all architectures that the library has, in its own order.

        Raises LibraryUnsupported if it does not tell them.
        """
        name_of = self._find(_ARCHITECTURE_NAME)
        if name_of is None:
            raise LibraryUnsupported(
                f"{self.path} ({self.source}) does not tell which architectures it has. {INSTALL}"
            )
        name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_int]
        names = (name_of(number).decode() for number in itertools.count())
        return list(itertools.takewhile(lambda it: it not in _NO_ARCHITECTURE, names))

    def devices(self, registry: str) -> list[int]:
        """The devices of one backend, by its ggml name such as `CUDA`, in ggml's order."""
        every = (self.ggml_backend_dev_get(i) for i in range(self.ggml_backend_dev_count()))
        return [
            device
            for device in every
            if self.ggml_backend_reg_name(self.ggml_backend_dev_backend_reg(device)).decode()
            == registry
        ]

    def has_backend(self, registry: str) -> bool:
        """Whether the library was built with a backend, whether or not it could be started."""
        loaded = (self.ggml_backend_reg_get(i) for i in range(self.ggml_backend_reg_count()))
        if any(self.ggml_backend_reg_name(each).decode() == registry for each in loaded):
            return True
        return any(self.path.parent.glob(f"libggml-{registry.lower()}*"))

    def procedures(self, device: int, table: dict[str, tuple[Any, list[Any]]]) -> dict[str, Any]:
        """The functions of `table` that the backend of `device` hands out by name."""
        registry = self.ggml_backend_dev_backend_reg(device)
        found = {}
        for name, (result, parameters) in table.items():
            pointer = self.ggml_backend_reg_get_proc_address(registry, name.encode())
            if pointer:
                found[name] = ctypes.CFUNCTYPE(result, *parameters)(pointer)
        return found

    def companion(self, name: str, table: dict[str, tuple[Any, list[Any]]]) -> dict[str, Any]:
        """The functions of `table`, out of this library or of one beside it, such as `libmtmd`.

        Raises LibraryUnsupported if one is missing.
        """
        beside = self.path.with_name(name + self.path.name.removeprefix("libllama"))
        handles = [*self._handles, *([_open(beside)] if beside.is_file() else [])]
        found = {}
        for function, (result, parameters) in table.items():
            holder = next((it for it in handles if hasattr(it, function)), None)
            if holder is None:
                raise LibraryUnsupported(
                    f"{self.path} ({self.source}) has no {function} of {name}. {INSTALL}"
                )
            found[function] = getattr(holder, function)
            found[function].restype, found[function].argtypes = result, parameters
        return found

    def take_log(self, set_callback: Callable[..., Any]) -> None:
        """Has a companion write into the library's log, which `errors` collects."""
        set_callback(self._log.callback, None)

    def _bind(self, table: dict[str, tuple[Any, list[Any]]]) -> None:
        missing = []
        for name, (result, parameters) in table.items():
            function = self._find(name)
            if function is None:
                missing.append(name)
                continue
            function.restype, function.argtypes = result, parameters
            setattr(self, name, function)
        if missing:
            raise LibraryUnsupported(
                f"{self.path} ({self.source}) lacks {', '.join(missing[:4])}"
                f"{' and others' if len(missing) > 4 else ''}. {INSTALL}"
            )

    def _find(self, name: str) -> Any:
        for handle in self._handles:
            if hasattr(handle, name):
                return getattr(handle, name)
        return None

    def _llama_version(self) -> str:
        function = self._find("llama_version")
        if function is None:
            return "unknown"
        function.restype = ctypes.c_char_p
        return str(function().decode())

    def _load_backends(self) -> None:
        """Loadable builds have their backends in files of their own, beside the library."""
        if not self.ggml_backend_dev_by_type(_ggml.DeviceType.CPU):
            self.ggml_backend_load_all_from_path(str(self.path.parent).encode())
        if not self.ggml_backend_dev_by_type(_ggml.DeviceType.CPU):
            raise LibraryUnsupported(f"{self.path} ({self.source}) has no CPU backend. {INSTALL}")


class LogCapture:
    """Takes the library's log: keeps errors for whoever collects them, drops the rest."""

    _ERROR = 4
    _CONTINUED = 5

    def __init__(self, set_callback: Callable[..., Any]) -> None:
        self._local = threading.local()
        self.callback = _llama.LOG_CALLBACK(self._receive)
        set_callback(self.callback, None)

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        lines: list[str] = []
        before = getattr(self._local, "lines", None)
        self._local.lines = lines
        try:
            yield lines
        finally:
            self._local.lines = before

    def _receive(self, level: int, text: bytes | None, _user_data: int | None) -> None:
        lines = getattr(self._local, "lines", None)
        if lines is not None and level == self._ERROR and text:
            lines.append(text.decode(errors="replace").strip())


def candidates(explicit: str | None = None) -> Iterator[Candidate]:
    """Every place that has a library, in the order in which they are tried."""
    if explicit is not None:
        yield _explicit(expanded(explicit).absolute())
        return
    if folder := _package_folder("llama_cpp"):
        yield from _folder("llama-cpp-python", folder / "lib")
    if folder := _package_folder("xllamacpp"):
        for file in sorted(folder.glob("xllamacpp*.so")):
            yield Candidate("xllamacpp", (file,))
    if name := find_library("llama"):
        others = [find_library(other) for other in ("ggml", "ggml-base", "ggml-cpu")]
        files = (Path(name), *(Path(other) for other in others if other))
        yield Candidate("the system", files)


_opened: dict[tuple[Path, ...], Library] = {}
_opening = threading.Lock()


def open_library(explicit: str | None = None) -> Library:
    """Opens the first library found, once per process.

    Raises LibraryNotFound, or LibraryUnsupported with what was found and what to install.
    """
    for candidate in candidates(explicit):
        with _opening:
            if candidate.files not in _opened:
                _opened[candidate.files] = Library(candidate)
            return _opened[candidate.files]
    raise LibraryNotFound(
        "no ggml library: looked for llama-cpp-python and xllamacpp in this Python "
        f"({sys.prefix}) and for libllama in the system. {INSTALL}"
    )


def _explicit(path: Path) -> Candidate:
    source = "ISTHMUS_GGML or an explicit path"
    if path.is_file():
        return Candidate(source, (path, *_siblings(path)))
    if path.is_dir():
        for candidate in _folder(source, path):
            return candidate
        raise LibraryNotFound(f"the folder {path} has no libllama*{_SUFFIX}*")
    raise LibraryNotFound(f"there is no ggml library at {path}")


def _folder(source: str, folder: Path) -> Iterator[Candidate]:
    exact = sorted(folder.glob(f"libllama{_SUFFIX}"))
    for file in exact or sorted(folder.glob(f"libllama.*{_SUFFIX}*")):
        yield Candidate(source, (file, *_siblings(file)))
        return


def _siblings(library: Path) -> tuple[Path, ...]:
    """Its companions. Some builds put their flavour into the names: libggml.vulkan.v0.5.0.so."""
    flavour = library.name[len("libllama") :]
    names = {
        *(f"{name}{_SUFFIX}" for name in ("libggml-cpu", "libggml", "libggml-base")),
        *(f"{name}{flavour}" for name in ("libggml", "libggml-base")),
    }
    files = (library.parent / name for name in sorted(names))
    return tuple(file for file in files if file.is_file())


def _package_folder(name: str) -> Path | None:
    """A package's folder, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _team_holder(parallel: Any) -> Callable[[int], None] | None:
    """See `Library.hold_team`."""
    if parallel is None or not sys.platform.startswith("linux"):
        return None
    parallel.restype, parallel.argtypes = None, [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    ]  # fmt: skip
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of a null pointer
    return lambda n_threads: parallel(nothing, None, n_threads, 0)


def _open(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise LibraryUnsupported(f"cannot open {file}: {error}. {_remedy(str(error))}") from None


def _remedy(said: str) -> str:
    """What to do about an error of the system's loader, which names the library that it lacks."""
    for name, packages in PACKAGES.items():
        if name in said and "cannot open shared object file" in said:
            found = ", ".join(f"{system}: {package}" for system, package in packages.items())
            return f"Install {name}, which it needs ({found})"
    return INSTALL


def _context_params(library: Library) -> type[ctypes.Structure]:
    found = tuple(
        ".".join(version.split(".")[:2]) for version in (library.version, library.llama_version)
    )
    for known, layout in KNOWN.items():
        if found == known:
            return layout
    readable = ", ".join(f"ggml {ggml} with llama.cpp {llama}" for ggml, llama in KNOWN)
    raise LibraryUnsupported(
        f"{library.path} ({library.source}) is ggml {library.version} with llama.cpp "
        f"{library.llama_version}; known are {readable}. {INSTALL}"
    )


def _check_layouts(library: Library) -> None:
    """Refuses a library that says a known version and yet has other layouts."""
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    facts = {
        "ggml_tensor_overhead": library.ggml_tensor_overhead() == _ggml.TENSOR_OVERHEAD,
        "ggml_tensor": _tensor_reads_back(library),
        "llama_model_params": not model.vocab_only and model.main_gpu == 0,
        "llama_context_params": (
            context.n_batch == 2048
            and context.n_ubatch == 512
            and context.n_seq_max == 1
            and context.type_k == context.type_v == _ggml.GgmlType.F16
            and context.offload_kqv
        ),
    }
    wrong = [name for name, good in facts.items() if not good]
    if wrong:
        raise LibraryUnsupported(
            f"{library.path} ({library.source}) lays out {', '.join(wrong)} in an unknown way. "
            f"{INSTALL}"
        )


def _tensor_reads_back(library: Library) -> bool:
    """A tensor made by the library has its shape and strides where `Tensor` expects them."""
    context = library.ggml_init(_ggml.InitParams(2 * _ggml.TENSOR_OVERHEAD, None, True))
    shape = (ctypes.c_int64 * 4)(64, 5, 3, 2)
    tensor = _ggml.tensor_at(library.ggml_new_tensor(context, _ggml.GgmlType.F16, 4, shape))
    good = (
        tensor.type == _ggml.GgmlType.F16
        and list(tensor.ne) == [64, 5, 3, 2]
        and list(tensor.nb) == [2, 128, 640, 1920]
        and not tensor.data
        and not tensor.view_src
    )
    library.ggml_free(context)
    return good
