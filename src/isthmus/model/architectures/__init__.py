"""Architectures, one file each, named as `general.architecture` of a GGUF file, `_` for `-`.

Each defines `FAMILY`, which says what its files have in common, and `load`, which puts the file's
weights together to a decoder (blocks/), whose `build` writes the forward pass into a graph; or to
an encoder, which has no logits and makes embeddings. What is not known is refused by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.weights import Weights
from isthmus.model.loading import Loader
from isthmus.model.own.adapter import Adaptation
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Hparams
from isthmus.model.shape.metadata import Metadata
from isthmus.model.shape.reading import read_hparams

_IGNORED = ("attn_rot_embd",)
"""Parts of names of tensors that old files have and nothing needs."""

_NAMES = {it: it for it in ("ernie4_5", "nemotron_h", "nemotron_h_moe", "seed_oss")}
_NAMES["ernie4_5_moe"] = "ernie4_5-moe"
"""The names of architectures that have an underscore, by their files."""


class Architecture(Protocol):
    """What an architecture's `load` returns."""

    @property
    def hparams(self) -> Hparams:
        """The model's shape."""

    @property
    def n_vocab(self) -> int:
        """Length of the logits."""

    @property
    def rank(self) -> Callable[[Pass, int], int] | None:
        """A reranker's classifier: f32 [n_embd, 1] to [n_scores, 1]; None for other models."""

    def hidden(self, g: Pass) -> int:
        """Writes all but the logits into `g` and returns it, f32 [n_embd, n_outputs]."""

    def build(self, g: Pass) -> int:
        """Writes the forward pass into `g` and returns the logits, f32 [n_vocab, n_outputs]."""


def architectures() -> list[str]:
    """The architectures that this release knows."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(_NAMES.get(name, name.replace("_", "-")) for name in names)


def name_of(file: GgufFile) -> str:
    """The architecture that a file says it is of, known or not. Raises ModelFileError."""
    if file.metadata.get("general.type") == "adapter":
        raise ModelFileError(
            f"{file.path} is an adapter and no model: load its base, and add it by --lora or "
            "Runtime.load_adapter"
        )
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFileError(f"{file.path} does not say which architecture it is")
    return name


def architecture_of(file: GgufFile) -> str:
    """A file's architecture; ModelUnsupported for one that is not among `architectures`."""
    name = name_of(file)
    if name not in architectures():
        raise ModelUnsupported(
            f"{file.path} is of architecture {name!r}, for which Isthmus writes no graph: leave it "
            "to libllama, by graph='adopted' or --graph adopted"
        )
    return name


def family_of(name: str) -> Family:
    """What the files of a known architecture have in common."""
    family: Family = _module(name).FAMILY
    return family


def load_architecture(
    file: GgufFile,
    hparams: Hparams,
    weights: Weights,
    repack: bool,
    adaptation: Adaptation | None = None,
) -> Architecture:
    """Takes the file's weights for its architecture, none of which may be left over."""
    if repack:
        weights.repack()
    metadata = Metadata(file, hparams.architecture)
    load: Callable[[Loader], Architecture] = _module(hparams.architecture).load
    architecture = load(Loader(hparams, metadata, weights, adaptation))
    drafting = (f"blk.{i}." for i in range(hparams.n_layer, metadata.integer("block_count")))
    weights.refuse_unused((*_IGNORED, *drafting))
    return architecture


def hparams_of(file: GgufFile) -> Hparams:
    """A file's hyperparameters, once its architecture is known."""
    name = architecture_of(file)
    return read_hparams(file, name, family_of(name))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
