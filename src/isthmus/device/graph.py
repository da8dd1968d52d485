"""Graphs of tensor operations, written down once and computed many times.

Every method that adds an operation returns the tensor of its result; tensors are plain pointers,
owned by the graph. Shapes are ggml's: [ne0, ne1, ne2, ne3], ne0 contiguous. Shapes and types must
fit: ggml aborts the process where they do not, so whoever builds from outside data checks first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import count, pairwise

from isthmus.errors import DeviceFailed
from isthmus.native import _ggml
from isthmus.native._ggml import GgmlType, Tensor, tensor_at
from isthmus.native.loader import Library
from isthmus.native.owned import Owned

_LAST_STATE = 1
"""States that a gated delta net or a scan gives: that after the last token."""
_identities = count(1 << 48)
"""Far from those that ggml gives to graphs of its own."""


class TensorContext(Owned):
    """Owns the descriptions of up to `n_tensors` tensors; their elements lie elsewhere."""

    def __init__(self, library: Library, n_tensors: int, extra_nbytes: int = 0) -> None:
        nbytes = n_tensors * _ggml.TENSOR_OVERHEAD + extra_nbytes
        handle = library.ggml_init(_ggml.InitParams(nbytes, None, True))
        if not handle:
            raise DeviceFailed(f"no memory for the descriptions of {n_tensors} tensors")
        super().__init__(handle, library.ggml_free)
        self.library = library
        self._context = handle

    def tensor(self, dtype: int, *ne: int) -> int:
        """A new tensor of up to four dimensions, not yet placed."""
        shape = (ctypes.c_int64 * 4)(*ne, *(1 for _ in range(4 - len(ne))))
        return int(self.library.ggml_new_tensor(self._context, dtype, len(ne), shape))

    def describe(self, tensor: int) -> Tensor:
        """The tensor's own struct, in place."""
        return tensor_at(tensor)


class Graph(TensorContext):
    """Operations in the order in which they run. `handle` of the graph itself is `pointer`."""

    def __init__(self, library: Library, max_nodes: int) -> None:
        overhead = library.ggml_graph_overhead_custom(max_nodes, False)
        super().__init__(library, max_nodes + 32, overhead)
        self.pointer: int = library.ggml_new_graph_custom(self._context, max_nodes, False)

        head = _ggml.GraphHead.from_address(self.pointer)
        ours = head.nodes == self.pointer + ctypes.sizeof(head) and head.uid == 0
        self._head = head if ours else None

    @property
    def n_nodes(self) -> int:
        """Operations that run."""
        return int(self.library.ggml_graph_n_nodes(self.pointer))

    def changed(self) -> None:
        """To be called when it is complete, and whenever a tensor of it was moved or reshaped.

        Until the next call a device may take it for what it ran last, and look no closer. A graph
        that never says so is looked at each time it runs, which takes CUDA 0.1 ms.
        """
        if self._head is not None:
            self._head.uid = next(_identities)

    def parts(self, cuts: Sequence[int]) -> list[_ggml.GraphHead]:
        """Graphs that compute its nodes part by part, in order, once its tensors have places.

        `cuts` are the numbers of the nodes at which a new part begins. The results are those of the
        whole; others can compute between two parts. Parts are views of this graph's nodes, as
        `ggml_graph_view` makes them, so they are valid as long as the graph. A ggml whose graphs
        are laid out in another way gets a single part.
        """
        if self._head is None:
            return [_ggml.GraphHead.from_address(self.pointer)]
        return parts_of(self.pointer, cuts)

    def expand(self, tensor: int) -> None:
        """Makes the tensor, and whatever it needs, part of the graph."""
        self.library.ggml_build_forward_expand(self.pointer, tensor)

    def output(self, tensor: int) -> None:
        """Makes the tensor part of the graph and keeps its elements from being reused."""
        self.library.ggml_set_output(tensor)
        self.expand(tensor)

    # ------------------------------------------------------------------ arithmetic

    def add(self, a: int, b: int) -> int:
        """a + b, b repeated to a's shape."""
        return int(self.library.ggml_add(self._context, a, b))

    def add_chosen(self, a: int, b: int, chosen: int) -> int:
        """a [n, c, m] plus the rows of b [n, count] that `chosen` (I32 [c, m]) names."""
        return int(self.library.ggml_add_id(self._context, a, b, chosen))

    def mul(self, a: int, b: int) -> int:
        """a * b element by element, b repeated to a's shape."""
        return int(self.library.ggml_mul(self._context, a, b))

    def div(self, a: int, b: int) -> int:
        """a / b element by element, b repeated to a's shape."""
        return int(self.library.ggml_div(self._context, a, b))

    def clamp(self, a: int, least: float, most: float) -> int:
        """a, written to where a lies, with each element brought between `least` and `most`."""
        return int(self.library.ggml_clamp(self._context, a, least, most))

    def sum_rows(self, a: int) -> int:
        """[1, …]: the sum of each row."""
        return int(self.library.ggml_sum_rows(self._context, a))

    def scale(self, a: int, factor: float) -> int:
        """a * factor."""
        return int(self.library.ggml_scale(self._context, a, factor))

    def silu(self, a: int) -> int:
        """a / (1 + exp(-a))."""
        return int(self.library.ggml_silu(self._context, a))

    def sigmoid(self, a: int) -> int:
        """1 / (1 + exp(-a))."""
        return int(self.library.ggml_sigmoid(self._context, a))

    def gelu(self, a: int) -> int:
        """a times the share of the normal distribution below it, approximated with tanh."""
        return int(self.library.ggml_gelu(self._context, a))

    def tanh(self, a: int) -> int:
        """The hyperbolic tangent of each element."""
        return int(self.library.ggml_tanh(self._context, a))

    def softplus(self, a: int) -> int:
        """log(1 + exp(a))."""
        return int(self.library.ggml_softplus(self._context, a))

    def swiglu(self, gate: int, up: int) -> int:
        """silu(gate) * up."""
        return int(self.library.ggml_swiglu_split(self._context, gate, up))

    def clamped_swiglu(self, gate: int, up: int, slope: float, limit: float) -> int:
        """gate * sigmoid(slope * gate) * (up + 1), gate at most `limit`, up within it to both
        sides."""
        return int(self.library.ggml_swiglu_oai(self._context, gate, up, slope, limit))

    def swiglu_halves(self, a: int) -> int:
        """silu of the first half of each row, times its second half."""
        return int(self.library.ggml_swiglu(self._context, a))

    def geglu(self, gate: int, up: int) -> int:
        """gelu(gate) * up."""
        return int(self.library.ggml_geglu_split(self._context, gate, up))

    def softmax(self, a: int) -> int:
        """Softmax of each row."""
        return int(self.library.ggml_soft_max(self._context, a))

    def argmax(self, a: int) -> int:
        """I32 [ne1]: where each row has its maximum."""
        return int(self.library.ggml_argmax(self._context, a))

    def top_k(self, a: int, k: int) -> int:
        """I32 [k, ne1]: where each row has its k largest elements, the largest first."""
        return int(self.library.ggml_argsort_top_k(self._context, a, k))

    def largest(self, a: int, k: int) -> int:
        """I32 [k, ne1]: where each row has k elements that no other one exceeds, in any order."""
        return int(self.library.ggml_top_k(self._context, a, k))

    def descending(self, a: int) -> int:
        """I32 [ne0, ne1]: the order in which each row descends; equal elements in any order."""
        return int(self.library.ggml_argsort(self._context, a, _ggml.SORT_DESCENDING))

    def piece_maxima(self, a: int, width: int) -> int:
        """[ne0 / width, ne1]: the greatest of each `width` elements of a row; NaN is passed over.

        An element of minus infinity counts as the least finite number.
        """
        pool = self.library.ggml_pool_2d
        return int(pool(self._context, a, _ggml.POOL_MAX, width, 1, width, 1, 0.0, 0.0))

    def layer_norm(self, a: int, epsilon: float) -> int:
        """Each row less its mean, divided by its standard deviation."""
        return int(self.library.ggml_norm(self._context, a, epsilon))

    def l2_norm(self, a: int, epsilon: float) -> int:
        """Each row divided by its length, or by `epsilon` where that is more."""
        return int(self.library.ggml_l2_norm(self._context, a, epsilon))

    def rms_norm(self, a: int, epsilon: float) -> int:
        """Each row divided by the root of the mean of its squares."""
        return int(self.library.ggml_rms_norm(self._context, a, epsilon))

    def matmul(self, a: int, b: int) -> int:
        """[n, m] from a [k, n] and b [k, m]."""
        return int(self.library.ggml_mul_mat(self._context, a, b))

    def matmul_f32(self, a: int, b: int) -> int:
        """As `matmul`, with its sums in F32 on devices that otherwise take F16 for them."""
        product = self.matmul(a, b)
        self.library.ggml_prec_set_acc(product, _ggml.PRECISION_F32)
        return product

    def matmul_chosen(self, a: int, b: int, chosen: int) -> int:
        """F32 [n, c, m]: products of some of the matrices in a [k, n, count] with columns of b.

        `chosen` (I32 [c, m]) names c matrices for each of m; b is [k, c, m], or [k, 1, m] for the
        same column in all c.
        """
        return int(self.library.ggml_mul_mat_id(self._context, a, b, chosen))

    # ------------------------------------------------------------------ moving

    def cast(self, a: int, dtype: GgmlType) -> int:
        """a with another element type."""
        return int(self.library.ggml_cast(self._context, a, dtype))

    def copy_into(self, a: int, destination: int) -> int:
        """a written to the elements of `destination`, converted to its type."""
        return int(self.library.ggml_cpy(self._context, a, destination))

    def copied(self, a: int) -> int:
        """a in memory of its own, its rows one behind the other."""
        return int(self.library.ggml_cont(self._context, a))

    def join_columns(self, a: int, b: int) -> int:
        """The columns of a, then those of b."""
        return int(self.library.ggml_concat(self._context, a, b, 1))

    def join_rows(self, a: int, b: int) -> int:
        """[n + m, ne1, ne2]: each row of a [n, ne1, ne2], then the one of b [m, ne1, ne2] at the
        same place."""
        return int(self.library.ggml_concat(self._context, a, b, 0))

    def get_rows(self, a: int, rows: int) -> int:
        """F32 [ne0, n]: the rows of a that `rows` (I32 [n]) names."""
        return int(self.library.ggml_get_rows(self._context, a, rows))

    def set_rows(self, a: int, values: int, rows: int) -> int:
        """a after `values` [ne0, n] (F32) were written to the rows that `rows` (I64 [n]) names."""
        return int(self.library.ggml_set_rows(self._context, a, values, rows))

    def reshape(self, a: int, *ne: int) -> int:
        """The same elements in two to four dimensions."""
        reshape = getattr(self.library, f"ggml_reshape_{len(ne)}d")
        return int(reshape(self._context, a, *ne))

    def repeated(self, a: int, *ne: int) -> int:
        """a again and again, in a shape of four dimensions that are multiples of its own."""
        return int(self.library.ggml_repeat_4d(self._context, a, *ne))

    def repeated_like(self, a: int, b: int) -> int:
        """a again and again, in b's shape."""
        return self.repeated(a, *self.describe(b).ne)

    def matmul_heads(self, a: int, b: int) -> int:
        """[n, m, n_head] from a [k, n, n_head] and b [k, n_head, m]: each head's own product.

        The result is a view, of which each column's heads lie apart.
        """
        return self.swap_1_2(self.matmul(a, self.swap_1_2(b)))

    def filled(self, a: int, value: float) -> int:
        """A tensor like a, each element of which is `value`."""
        return int(self.library.ggml_fill(self._context, a, value))

    def view_2d(self, a: int, ne: tuple[int, int], nb1: int, offset: int) -> int:
        """Part of a: shape `ne`, `nb1` bytes from row to row, from byte `offset` on."""
        return int(self.library.ggml_view_2d(self._context, a, *ne, nb1, offset))

    def view_3d(self, a: int, ne: tuple[int, int, int], nb: tuple[int, int], offset: int) -> int:
        """Part of a in three dimensions, strides `nb` in bytes."""
        return int(self.library.ggml_view_3d(self._context, a, *ne, *nb, offset))

    def view_4d(
        self, a: int, ne: tuple[int, int, int, int], nb: tuple[int, int, int], offset: int
    ) -> int:
        """Part of a in four dimensions, strides `nb` in bytes."""
        return int(self.library.ggml_view_4d(self._context, a, *ne, *nb, offset))

    def swap_1_2(self, a: int) -> int:
        """a with its dimensions 1 and 2 exchanged; no element moves."""
        return int(self.library.ggml_permute(self._context, a, 0, 2, 1, 3))

    def transpose(self, a: int) -> int:
        """a with its dimensions 0 and 1 exchanged; no element moves."""
        return int(self.library.ggml_permute(self._context, a, 1, 0, 2, 3))

    # ------------------------------------------------------------------ attention

    def flash_attention(
        self,
        q: int,
        k: int,
        v: int,
        mask: int,
        scale: float,
        soft_cap: float = 0.0,
        sinks: int = 0,
    ) -> int:
        """F32 [head, n_head, n] from q [head, n, n_head], k and v [head, n_kv, n_head_kv].

        `mask` is F16 [n_kv, n], added to the scaled products, or 0 for none; sums are kept in F32.
        A `soft_cap` other than 0 makes scaled products soft_cap * tanh(product / soft_cap) before
        that. `sinks` is F32 [n_head], or 0 for none: a product of each head that takes its share of
        the weights and has no value.
        """
        attention = self.library.ggml_flash_attn_ext
        result = attention(self._context, q, k, v, mask, scale, 0.0, soft_cap)
        if sinks:
            self.library.ggml_flash_attn_ext_add_sinks(result, sinks)
        self.library.ggml_prec_set_acc(result, _ggml.PRECISION_F32)
        return int(result)

    def plain_attention(self, q: int, k: int, v: int, mask: int, scale: float) -> int:
        """As `flash_attention`, step by step, for devices that have no kernel of it.

        It takes memory for all scores, F32 [n_kv, n, n_head].
        """
        library, context = self.library, self._context
        scores = library.ggml_mul_mat(context, k, q)
        library.ggml_prec_set_acc(scores, _ggml.PRECISION_F32)
        shares = library.ggml_soft_max_ext(context, scores, mask, scale, 0.0)
        seen = library.ggml_mul_mat(context, self.copied(self.transpose(v)), shares)
        return self.copied(self.swap_1_2(seen))

    # ------------------------------------------------------------------ states

    def convolve(self, x: int, kernel: int) -> int:
        """F32 [n_channels, n]: of each channel, the sums of `width` elements in a row, weighted.

        x is F32 [width - 1 + n, n_channels], `kernel` F32 [width, n_channels].
        """
        return int(self.library.ggml_ssm_conv(self._context, x, kernel))

    def scan(self, state: int, x: int, dt: int, a: int, b: int, c: int, which: int) -> int:
        """F32 [head * n_head * n + d_state * head * n_head]: results, and then the next state.

        `state` is F32 [d_state, head, n_head], x [head, n_head, n], dt [n_head, n], a [1, n_head],
        b and c [d_state, n_group, n], `which` I32 [1], which is 0. Token by token, with softplus of
        dt, each head's state is multiplied with exp(dt * a) and gets dt * b * x; the result is its
        product with c.
        """
        scan = self.library.ggml_ssm_scan
        return int(scan(self._context, state, x, dt, a, b, c, which, _LAST_STATE))

    def gated_delta_net(self, q: int, k: int, v: int, decay: int, beta: int, state: int) -> int:
        """F32 [head * n_head_v, n + head]: n columns of results, and after them the next state.

        q and k are F32 [head, n_head_k, n], v [head, n_head_v, n], `decay` (a logarithm) and `beta`
        [1, n_head_v, n], `state` [head, head, n_head_v]. Token by token, each head's state is
        multiplied with exp(decay) and moved by `beta` towards one that answers k with v; the result
        is what it answers q, divided by the root of `head`.
        """
        net = self.library.ggml_gated_delta_net
        return int(net(self._context, q, k, v, decay, beta, state, _LAST_STATE))


def parts_of(pointer: int, cuts: Sequence[int]) -> list[_ggml.GraphHead]:
    """See `Graph.parts`; of any graph whose head is laid out as `GraphHead`."""
    head, parts = _ggml.GraphHead.from_address(pointer), []
    for begin, end in pairwise(dict.fromkeys([0, *cuts, head.n_nodes])):
        part = _ggml.GraphHead.from_buffer_copy(head)
        part.size = part.n_leafs = part.uid = 0
        part.n_nodes = end - begin
        part.nodes = head.nodes + ctypes.sizeof(ctypes.c_void_p) * begin
        part.grads = part.grad_accs = part.leafs = None
        parts.append(part)
    return parts
