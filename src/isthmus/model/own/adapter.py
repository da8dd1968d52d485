"""LoRA adapters: GGUF files of small matrices that change a model's own, which stay as they are.

For a weight W, a file holds `W.lora_a` and `W.lora_b`; a product W · x becomes

    W · x + scale * alpha / rank * (B · (A · x))

in libllama's order of operations (`build_lora_mm` in `src/llama-graph.cpp`). With W of shape
[n_in, n_out], A is [n_in, rank] and B [rank, n_out]; of experts, both are stacked as W is. Of the
table of embeddings, A is [rank, n_vocab], whose rows are looked up, and B [rank, n_embd].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus.device.base import Device
from isthmus.errors import ModelFileError, ModelUnsupported, SettingsError
from isthmus.file_hash import FileHashes
from isthmus.model.blocks.products import LowRank
from isthmus.model.files.header import TensorInfo
from isthmus.model.files.opening import open_gguf
from isthmus.model.files.weights import TOKEN_EMBD, Weights
from isthmus.model.shape.hparams import Hparams
from isthmus.native._ggml import GgmlType

_A, _B = ".lora_a", ".lora_b"
_ALORA = "adapter.alora.invocation_tokens"
_INTEGERS = (GgmlType.I32, GgmlType.I64)
MAX_ADAPTERS = 8
"""That one model may have at the same time: each adds operations to every layer."""
MAX_SCALE = 1e6


class Adapter:
    """One file's matrices, checked against the model that they are for. Owned by that model.

    Raises as `GgufFile`; ModelFileError where the file is no adapter or does not fit the model,
    ModelUnsupported where it changes something that cannot be changed here.
    """

    def __init__(
        self, device: Device, path: Path, base: Weights, hparams: Hparams, hashes: FileHashes
    ) -> None:
        self._file = open_gguf(device.library, path, hashes)
        self.path = self._file.path
        self._require_lora(hparams.architecture)
        self._alpha = self._number("adapter.lora.alpha")
        self.sha256 = hashes.sha256(self._file.files)
        """Of the whole file, read now: later there may be another under its name."""
        self._ranks = {name: self._checked(name, base) for name in self._pairs()}
        self.weights = Weights(device, self._file)
        """Where its matrices lie: mapped, as a model's, or copied once to the device."""

    def __repr__(self) -> str:
        return f"<Adapter {self.path.name}: {len(self._ranks)} weights>"

    @property
    def names(self) -> list[str]:
        """The weights that it changes."""
        return list(self._ranks)

    def update(self, name: str, scale: float) -> LowRank | None:
        """What it adds to products with a weight; None where that stays as it is."""
        if name not in self._ranks:
            return None
        factor, rank = np.float32(scale), np.float32(self._ranks[name])
        if self._alpha:
            factor = factor * np.float32(self._alpha) / rank
        return LowRank(
            self.weights.tensor(name + _A), self.weights.tensor(name + _B), float(factor)
        )

    def close(self) -> None:
        """Gives mapping and memory back; a second call does nothing."""
        self.weights.close()

    # ------------------------------------------------------------------ what a file may say

    def _require_lora(self, architecture: str) -> None:
        said = self._file.metadata.get
        kind = said("general.type", "model")
        if kind != "adapter":
            raise ModelFileError(
                f"{self.path} is not an adapter: its general.type is {kind!r}; open a model by "
                "load_model or --model"
            )
        if said("adapter.type") != "lora":
            raise ModelUnsupported(
                f"{self.path} is an adapter of type {said('adapter.type')!r}; only lora is known"
            )
        if said("general.architecture") != architecture:
            raise ModelFileError(
                f"{self.path} is for models of architecture {said('general.architecture')!r}, and "
                f"this one is {architecture!r}: give the adapter of this model"
            )
        if _ALORA in self._file.metadata:
            raise ModelUnsupported(
                f"{self.path} begins to work behind certain tokens (aLoRA), which is not done here"
            )

    def _number(self, key: str) -> float:
        value = self._file.metadata.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"{self.path}: {key} is {value!r}; it is a number")
        if not (math.isfinite(value) and abs(value) <= MAX_SCALE):
            raise ModelFileError(f"{self.path}: {key} is {value}, which no adapter has")
        return float(value)

    def _pairs(self) -> list[str]:
        """The names of the weights that it changes, each with both of its matrices."""
        names: dict[str, None] = {}
        for name in self._file.tensors:
            weight, suffix = name[: -len(_A)], name[-len(_A) :]
            if suffix not in (_A, _B):
                raise ModelUnsupported(
                    f"{self.path} holds the tensor {name}; only pairs of lora_a and lora_b are "
                    "applied here, and results would be wrong without it"
                )
            other = weight + (_B if suffix == _A else _A)
            if other not in self._file.tensors:
                raise ModelFileError(f"{self.path} holds {name} and no {other}")
            names[weight] = None
        return list(names)

    def _checked(self, name: str, base: Weights) -> int:
        """The rank of a pair that fits its weight."""
        info = base.info(name)
        if info is None:
            raise ModelFileError(
                f"{self.path} changes {name}, which the model does not have: is it for another one?"
            )
        if name not in base.adaptable:
            raise ModelUnsupported(
                f"{self.path} changes {name}, which adapters cannot change here: "
                + ("the model uses it for its logits as well" if name == TOKEN_EMBD else "it is no "
                   "matrix of attention, feed-forward, experts, embeddings or output")
            )  # fmt: skip
        a, b = (self._file.tensors[name + suffix] for suffix in (_A, _B))
        n_in, n_out, *stack = info.shape + (1,) * (2 - len(info.shape))
        embedding = name == TOKEN_EMBD
        rank = a.shape[0] if embedding else (*a.shape, 1)[1]
        wanted_a = (rank, n_out) if embedding else (n_in, rank, *stack)
        wanted_b = (rank, n_in) if embedding else (rank, n_out, *stack)
        if rank < 1:
            raise ModelFileError(f"{self.path}: tensor {a.name} is empty")
        for found, wanted in ((a, wanted_a), (b, wanted_b)):
            self._require_shape(found, wanted, name, info.shape)
        return rank

    def _require_shape(
        self, found: TensorInfo, wanted: tuple[int, ...], name: str, whole: tuple[int, ...]
    ) -> None:
        n = max(len(found.shape), len(wanted))
        padded = [(*shape, *[1] * (n - len(shape))) for shape in (found.shape, wanted)]
        if padded[0] != padded[1]:
            raise ModelFileError(
                f"{self.path}: tensor {found.name} has shape {list(found.shape)}; with {name} of "
                f"{list(whole)} it would have {list(wanted)}: is the adapter for another model?"
            )
        if found.dtype in _INTEGERS:
            raise ModelUnsupported(
                f"{self.path}: tensor {found.name} is of type {found.dtype.name}, "
                "which is not computed with here"
            )


@dataclass(frozen=True)
class Applied:
    """An adapter, and how much of it: by what its part of a product is multiplied."""

    adapter: Adapter
    scale: float

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not (number and abs(self.scale) <= MAX_SCALE):  # which no infinity and no NaN is
            raise SettingsError(
                f"the scale of an adapter is {self.scale!r}; give a number, often 1"
            )


class Adaptation:
    """The adapters of one model, in the order in which they are added."""

    def __init__(self, adapters: Mapping[Adapter, float] | None = None) -> None:
        """SettingsError for a scale that is none, or too many adapters."""
        self.applied = tuple(Applied(it, scale) for it, scale in (adapters or {}).items())
        if len(self.applied) > MAX_ADAPTERS:
            raise SettingsError(
                f"{len(self.applied)} adapters at once; a model takes up to {MAX_ADAPTERS}"
            )

    @property
    def added(self) -> list[tuple[str, float]]:
        """Which files are added, by SHA-256, and by which scale: what a KV cache depends on."""
        return [(it.adapter.sha256, it.scale) for it in self.applied if it.scale]

    def updates(self, name: str) -> tuple[LowRank, ...]:
        """What is added to products with a weight; adapters of scale 0 add nothing."""
        return tuple(self._updates(name))

    def _updates(self, name: str) -> Iterator[LowRank]:
        for it in self.applied:
            update = it.adapter.update(name, it.scale) if it.scale else None
            if update is not None:
                yield update
