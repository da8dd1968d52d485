"""Takes a file's weights, part by part, for the architecture that puts them together."""

from isthmus.model.loading.block_loader import BlockLoader
from isthmus.model.loading.loader import Loader

__all__ = ["BlockLoader", "Loader"]
