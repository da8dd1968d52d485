"""The host functions of the group `tensor` in `abi/host.toml`, in its order."""

from __future__ import annotations

import time

from isthmus import abi
from isthmus.abi import Errno
from isthmus.actor.ask import Jobs
from isthmus.actor.host_api.context import MAX_NAME_NBYTES, Context
from isthmus.actor.operation import Weight
from isthmus.actor.tensor_unit import TensorUnit
from isthmus.errors import GuestFault


class TensorFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self.unit: TensorUnit

    def weight_find(self, model: int, name_ptr: int, name_nbytes: int, tensor_ptr: int) -> int:
        c = self._c
        opened = c.model(model)
        name = c.memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        layout = abi.TENSOR_64 if c.memory.is_64 else abi.TENSOR
        c.memory.check_aligned(tensor_ptr, layout.size, 4)
        info = opened.weights.info(name)
        if info is None:
            raise GuestFault(Errno.ENOENT)
        handle = c.handles.add(Weight(opened, name), c.handles.model_of(model))
        shape = (*info.shape, 1, 1, 1)[:4]
        c.memory.write(tensor_ptr, layout.pack(info.dtype, handle, 0, 0, *shape))
        return 0

    async def compute(self, operations_ptr: int, n_operations: int) -> int:
        c = self._c
        c.message.check()
        start = time.perf_counter_ns()
        try:
            await Jobs(c.message, self.unit.jobs(operations_ptr, n_operations))
        finally:
            c.counters.host_ns += time.perf_counter_ns() - start
        return 0
