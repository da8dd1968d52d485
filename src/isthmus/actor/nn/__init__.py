"""wasi-nn in WasmEdge's dialect: models for guests that know nothing of Isthmus.

Sessions lie in the guest's own linear memory, which the host grows for them, and are limited,
batched and counted as all others.
"""

from isthmus.actor.nn.functions import NnFunctions

__all__ = ["NnFunctions"]
