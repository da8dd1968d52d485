"""One guest over many inputs: each gets a fresh agent, and outputs come in the inputs' order."""

from isthmus.mapping.mapper import Job, Mapped, Mapper, map_inputs

__all__ = ["Job", "Mapped", "Mapper", "map_inputs"]
