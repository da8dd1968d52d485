"""What a pass over tokens of one session computes from: addresses outside of any guest's memory."""

from __future__ import annotations

from isthmus.device.base import Device
from isthmus.device.graph import Graph
from isthmus.model.passes.input_layout import Input, InputLayout
from isthmus.model.passes.mask import Mask
from isthmus.native._ggml import GgmlType


class ForwardInputs:
    """Owns device memory for the inputs of graphs of up to `n_tokens` tokens and `n_ctx` rows.

    ::

        tokens i32 [n] │ positions i32 [n] │ rows i64 [n] │ outputs i32 [1 or more] │ zero i64 [1]
        masks f16 [n_kv, n]

    No guest can reach these bytes: kernels use them as addresses.
    """

    def __init__(
        self, device: Device, n_tokens: int, n_ctx: int, window: int | None, n_outputs: int = 1
    ) -> None:
        """`window`: tokens that windowed layers see; None where the model has none. `n_outputs`:
        columns after the last attention, all of them the last token's."""
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx
        windows: dict[str, int | None] = {"mask": None}
        if window is not None:
            windows["window mask"] = window
        self._layout = InputLayout(
            Input("tokens", GgmlType.I32, (n_tokens,)),
            Input("positions", GgmlType.I32, (n_tokens,)),
            Input("rows", GgmlType.I64, (n_tokens,)),
            Input("outputs", GgmlType.I32, (n_outputs,)),
            Input("zero", GgmlType.I64, (1,)),
            *(Input(name, GgmlType.F16, (n_tokens, n_ctx)) for name in windows),
        )
        layout = self._layout
        buffer = self.buffer = device.allocate_inputs(layout.nbytes, often=True)
        self.tokens = layout.array(buffer, "tokens")
        self.positions = layout.array(buffer, "positions")
        self.rows = layout.array(buffer, "rows")
        self.n_outputs = n_outputs
        self.outputs = layout.array(buffer, "outputs")
        layout.array(buffer, "zero")[:] = 0
        self.logits_are_far = device.logits_are_far
        self.masks = [
            Mask(device, buffer, layout.offset(name), (n_ctx, n_tokens), each)
            for name, each in windows.items()
        ]
        """Of layers that see everything; of those that see a window."""

    def place(self, graph: Graph, name: str, *ne: int) -> int:
        """A tensor of `graph` over the beginning of an input."""
        return self._layout.place(graph, self.buffer, name, *ne)

    def push(self) -> None:
        """Sends all but the masks, in one go."""
        if not self.buffer.is_host:
            self.buffer.push(0, self._layout.offset("mask"))

    def close(self) -> None:
        """Frees the memory."""
        for mask in self.masks:
            mask.close()
        self.buffer.close()
