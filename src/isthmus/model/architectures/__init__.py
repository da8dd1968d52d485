"""Architectures, one file each, named as `general.architecture` of a GGUF file.

Each defines `load(file, hparams, weights, repack)`, which takes and checks the file's weights and
returns something whose `build` writes the forward pass into a graph.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.forward import Pass
from isthmus.model.gguf import GgufFile
from isthmus.model.hparams import Hparams, read_hparams
from isthmus.model.weights import Weights


class Architecture(Protocol):
    """What an architecture's `load` returns."""

    @property
    def hparams(self) -> Hparams:
        """The model's shape."""

    @property
    def n_vocab(self) -> int:
        """Length of the logits."""

    def build(self, g: Pass) -> int:
        """Writes the forward pass into `g` and returns the logits, f32 [n_vocab, n_outputs]."""


def architectures() -> list[str]:
    """The architectures that this release knows."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def architecture_of(file: GgufFile) -> str:
    """A file's architecture; ModelUnsupported, with the list of known ones, for any other."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFileError(f"{file.path} does not say which architecture it is")
    if name not in architectures():
        raise ModelUnsupported(
            f"{file.path} is of architecture {name!r}; "
            f"this release knows {', '.join(architectures())}"
        )
    return name


def load_architecture(
    file: GgufFile, hparams: Hparams, weights: Weights, repack: bool
) -> Architecture:
    """Takes the file's weights for its architecture."""
    module = importlib.import_module(f"{__name__}.{hparams.architecture}")
    architecture: Architecture = module.load(file, hparams, weights, repack)
    return architecture


def hparams_of(file: GgufFile) -> Hparams:
    """A file's hyperparameters, once its architecture is known."""
    return read_hparams(file, architecture_of(file))
