"""A model's weights: the mapped files, seen by the device where they lie. Nothing is copied.

A device with memory of its own gets a copy, once. Repacking is the other exception, chosen by
`ModelSettings.repack`: some processors have faster kernels for weights in another order, at the
price of a private copy of those weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Binding, Buffer
from isthmus.device.graph import TensorContext
from isthmus.errors import DeviceFailed, ModelFileError, ModelUnsupported
from isthmus.memory import FileMapping
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import TensorInfo
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, HostAddr, align_up

Progress = Callable[[int, int], None]
"""(done, all): bytes of weights that were copied to a device."""


def ignore(_done: int, _all: int) -> None:
    """Nobody watches."""


TOKEN_EMBD = "token_embd.weight"
_NORMS = (GgmlType.F32,)
_INTEGERS = (GgmlType.I32, GgmlType.I64)


class Weights:
    """Owns the mappings of the files, their bindings to the device, and a tensor for each weight.

    An architecture takes what it needs by `require` and `optional`, which check the shape; after
    that `refuse_unused` makes sure that no weight of the files was ignored.
    """

    def __init__(self, device: Device, file: GgufFile, progress: Progress = ignore) -> None:
        self.device = device
        self._file = file
        self._used: set[str] = set()
        self.routers: set[str] = set()
        """Names of those that batches multiply with one column at a time."""
        self.per_head: set[str] = set()
        """Names of those that have a matrix for each head: see `Pass.matmul_heads`."""
        self.added: set[str] = set()
        """Names of those that no pass multiplies with: tables whose rows are looked up or added,
        and kernels."""
        self.adaptable: set[str] = set()
        """Names of those to whose products adapters can add: see `adapter`."""
        self._repacked: Repacked | None = None
        self._constants: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            self._mappings = [stack.enter_context(FileMapping(path)) for path in file.files]
            self._require_identity()
            self._context = stack.enter_context(
                TensorContext(device.library, len(file.tensors) + 1)
            )
            self._tensors = {
                info.name: self._context.tensor(info.dtype, *info.shape)
                for info in file.tensors.values()
            }
            bindings = self._bindings(stack)
            self.uploaded = not bindings
            """Whether the device has a copy of its own."""
            if bindings:
                self._place(bindings)
            else:
                self._upload(stack, progress)
                self._require_identity()
                for it in self._mappings:
                    it.close()  # the device has its own copy: the file may change
            self._stack = stack.pop_all()

    @property
    def infos(self) -> list[TensorInfo]:
        """What the files say about each weight."""
        return list(self._file.tensors.values())

    @property
    def multiplied(self) -> list[TensorInfo]:
        """What the files say about each weight that passes may multiply with."""
        return [info for info in self.infos if info.name not in self.added]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the files."""
        return sum(info.nbytes for info in self.infos)

    def require_intact(self) -> None:
        """Raises ModelFileError if a file changed under the weights that are read from it."""
        if self.uploaded:
            return
        for it in self._mappings:
            if not it.intact:
                raise ModelFileError(
                    f"{it.path} was written to while it was in use, so its weights are lost: "
                    "load the model again, and replace such files by renaming others"
                )

    def host_address(self, info: TensorInfo) -> HostAddr:
        """Where a weight's bytes are mapped."""
        return HostAddr(self._mappings[info.shard].base + info.offset)

    @property
    def host_nbytes(self) -> int:
        """Bytes of the host's memory that its kernels read: 0 if the device has its own copy."""
        mapped = 0 if self.uploaded else self.nbytes
        return mapped + self.repacked_nbytes

    @property
    def repacked_nbytes(self) -> int:
        """Bytes of the private copies that repacking made."""
        return self._repacked.nbytes if self._repacked else 0

    def info(self, name: str) -> TensorInfo | None:
        """What the file says about a weight."""
        return self._file.tensors.get(name)

    def tensor(self, name: str) -> int:
        """A weight's tensor, as it lies in the file."""
        return self._tensors[name]

    def used(self, name: str) -> int:
        """The tensor of that name as products use it: repacked where it is.

        A matrix for each head stays as it is: the library has no kernel for it in another order.
        """
        repacked = self._repacked.tensors if self._repacked else {}
        if name in self.per_head:
            return self._tensors[name]
        return repacked.get(name, self._tensors[name])

    def require(self, name: str, *shape: int) -> int:
        """The tensor of a matrix or table of exactly this shape; ModelFileError otherwise."""
        tensor = self.optional(name, *shape)
        if not tensor:
            raise ModelFileError(f"{self._file.path} has no tensor {name}")
        return tensor

    def optional(self, name: str, *shape: int) -> int:
        """As `require`, or 0 where the file has no such tensor. Raises ModelFileError for another
        shape, and ModelUnsupported for a type that nothing computes with."""
        info = self._file.tensors.get(name)
        if info is None:
            return 0
        self._used.add(name)
        if info.shape != _without_trailing_ones(shape):
            raise ModelFileError(
                f"{self._file.path}: tensor {name} has shape {list(info.shape)}; "
                f"expected {list(shape)}"
            )
        vector = len(info.shape) == 1
        if info.dtype in _INTEGERS or (vector and info.dtype not in _NORMS):
            raise ModelUnsupported(
                f"{self._file.path}: tensor {name} is of type {info.dtype.name}, "
                "which is not computed with here"
            )
        return self.used(name)

    def pass_over(self, *names: str) -> None:
        """Has `refuse_unused` take no notice of weights that the architecture does without."""
        self._used.update(names)
        self.added.update(names)

    def refuse_unused(self, ignored: Iterable[str] = ()) -> None:
        """Raises ModelUnsupported where the file holds a weight that nobody took."""
        left = [
            name
            for name in self._tensors
            if name not in self._used and not any(part in name for part in ignored)
        ]
        if left:
            raise ModelUnsupported(
                f"{self._file.path} holds {len(left)} tensors that this architecture does not "
                f"know, such as {left[0]}: its results would be wrong without them"
            )

    def router(self, name: str, *shape: int) -> int:
        """As `require`, for what is multiplied with one column at a time (`Pass.route`)."""
        self.routers.add(name)
        return self.require(name, *shape)

    def table(self, name: str, *shape: int) -> int:
        """As `require`, for a matrix whose rows are looked up: as it lies in the file."""
        self.require(name, *shape)
        return self._tensors[name]

    def lookup(self, name: str, *shape: int) -> int:
        """As `table`, for one that no pass multiplies with."""
        self.added.add(name)
        return self.table(name, *shape)

    def biases(self, name: str, *shape: int) -> int:
        """As `optional`, for a table of F32 whose rows are added to products."""
        tensor = self.optional(name, *shape)
        if tensor:
            self._require_f32(name)
            self.added.add(name)
        return tensor

    def kernel(self, name: str, *shape: int) -> int:
        """As `require`, for what no product has, in F32: the weights of a convolution. Raises
        ModelUnsupported for another type."""
        tensor = self.require(name, *shape)
        dtype = self._file.tensors[name].dtype
        if dtype != GgmlType.F32:
            raise ModelUnsupported(
                f"{self._file.path}: tensor {name} is of type {dtype.name}; only F32 is known here"
            )
        self.added.add(name)
        return tensor

    def is_quantised(self, name: str) -> bool:
        """Whether a weight's elements are in blocks, so that products have the same bits in any
        number of columns on most devices."""
        info = self._file.tensors[name]
        return int(self.device.library.ggml_blck_size(info.dtype)) > 1

    def first_row(self, name: str) -> int:
        """The first row of a table, as a vector. To be asked for once."""
        self._require_f32(name)
        table = self._context.describe(self._tensors[name])
        row = self._context.tensor(GgmlType.F32, table.ne[0])
        struct = self._context.describe(row)
        struct.buffer, struct.data = table.buffer, table.data
        return row

    def constant(self, name: str, values: npt.NDArray[np.float32 | np.int32]) -> int:
        """F32 or I32 [len(values)]: numbers that no file has. A second call gives the same."""
        if name not in self._constants:
            context = self._stack.enter_context(TensorContext(self.device.library, 1))
            buffer = self._stack.enter_context(self.device.allocate(values.nbytes))
            kind = GgmlType.I32 if values.dtype == np.int32 else GgmlType.F32
            tensor = context.tensor(kind, len(values))
            buffer.place(tensor, buffer.base)
            buffer.mark_weights()
            set_bytes = self.device.library.ggml_backend_tensor_set
            set_bytes(tensor, values.ctypes.data, 0, values.nbytes)
            self._constants[name] = tensor
        return self._constants[name]

    def repack(self) -> None:
        """Copies the matrices that the device has faster kernels for in another order."""
        if buffer_type := self.device.repack_buffer_type:
            self._repacked = Repacked(self, buffer_type)
            self._stack.callback(self._repacked.close)

    def close(self) -> None:
        """Gives bindings and mappings back; a second call does nothing."""
        self._stack.close()

    def _require_f32(self, name: str) -> None:
        dtype = self._file.tensors[name].dtype
        if dtype != GgmlType.F32:
            raise ModelUnsupported(
                f"{self._file.path}: tensor {name} is of type {dtype.name}; "
                "only F32 is added to others here"
            )

    def _require_identity(self) -> None:
        """What is mapped is what was tried and read, and nobody has written to it."""
        for mapping, identity in zip(self._mappings, self._file.identities, strict=True):
            if mapping.identity != identity or not mapping.intact:
                raise ModelFileError(
                    f"{mapping.path} changed while it was opened: try again when it is complete"
                )

    def _bindings(self, stack: contextlib.ExitStack) -> list[Binding]:
        """Each file as the device sees it; none if it wants a copy of them."""
        bindings = []
        for it in self._mappings:
            binding = self.device.bind_file(it)
            if binding is None:
                return []
            bindings.append(stack.enter_context(binding))
        return bindings

    def _place(self, bindings: list[Binding]) -> None:
        """Has the device read the weights where the files are mapped."""
        for info in self.infos:
            bindings[info.shard].place(self._tensors[info.name], self.host_address(info))
        for binding in bindings:
            binding.mark_weights()

    def _upload(self, stack: contextlib.ExitStack, progress: Progress) -> None:
        """Copies the weights into the device's own memory, in as many pieces as it allows."""
        library, kind = self.device.library, self.device.buffer_type
        sizes = {
            info.name: align_up(
                library.ggml_backend_buft_get_alloc_size(kind, self._tensors[info.name]),
                library.ggml_backend_buft_get_alignment(kind),
            )
            for info in self.infos
        }
        done = 0
        for names in _pieces(sizes, library.ggml_backend_buft_get_max_size(kind)):
            buffer = stack.enter_context(self.device.allocate(sum(sizes[name] for name in names)))
            buffer.mark_weights()
            at = buffer.base
            for name in names:
                info, tensor = self._file.tensors[name], self._tensors[name]
                buffer.place(tensor, at)
                library.ggml_backend_tensor_set(tensor, self.host_address(info), 0, info.nbytes)
                at, done = DeviceAddr(at + sizes[name]), done + info.nbytes
                progress(done, self.nbytes)


def _pieces(sizes: dict[str, int], largest: int) -> Iterator[list[str]]:
    """The names in order, cut so that no piece is larger than `largest` if it can be avoided."""
    piece: list[str] = []
    total = 0
    for name, nbytes in sizes.items():
        if piece and total + nbytes > largest:
            yield piece
            piece, total = [], 0
        piece.append(name)
        total += nbytes
    if piece:
        yield piece


class Repacked:
    """Owns private copies of those weights that the device has faster kernels for."""

    def __init__(self, weights: Weights, buffer_type: int) -> None:
        self.tensors: dict[str, int] = {}
        self.nbytes = 0
        with contextlib.ExitStack() as stack:
            matrices = [info for info in weights.infos if len(info.shape) > 1]
            context = stack.enter_context(
                TensorContext(weights.device.library, max(1, len(matrices)))
            )
            for info in matrices:
                self._copy(weights, info, context, buffer_type, stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Frees the copies."""
        self._stack.close()

    def _copy(
        self,
        weights: Weights,
        info: TensorInfo,
        context: TensorContext,
        buffer_type: int,
        stack: contextlib.ExitStack,
    ) -> None:
        """Copies one weight, if the device has kernels for it in another order."""
        library = weights.device.library
        handle = library.ggml_backend_buft_alloc_buffer(buffer_type, info.nbytes)
        if not handle:
            raise DeviceFailed(f"no memory for a repacked copy of {info.name}")
        buffer = Buffer(library, handle, info.nbytes)
        tensor = context.tensor(info.dtype, *info.shape)
        buffer.place(tensor, buffer.base)
        if not context.describe(tensor).extra:  # no kernels for this type or shape
            buffer.close()
            return
        stack.enter_context(buffer)
        buffer.mark_weights()
        library.ggml_backend_tensor_set(tensor, weights.host_address(info), 0, info.nbytes)
        self.tensors[info.name] = tensor
        self.nbytes += info.nbytes


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
