"""What differs between a snapshot's models and device, and those that are here, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from isthmus.snapshot import Manifest
from isthmus.snapshot.records import DeviceRecord, ModelRecord


def state_differences(then: ModelRecord, now: ModelRecord) -> Iterator[str]:
    """What makes the bytes of a KV cache useless."""
    if then.weights_sha256 != now.weights_sha256:
        yield (
            f"model {then.name!r}: weights {then.weights_sha256[:12]}… ({then.file_name}) then, "
            f"{now.weights_sha256[:12]}… ({now.file_name}) now"
        )
    if then.added != now.added:
        yield (
            f"model {then.name!r}: {_adapters(then)} then, {_adapters(now)} now "
            "(Runtime.adapt, or --lora, gives them)"
        )
    if then.tokenizer_sha256 != now.tokenizer_sha256:
        yield (
            f"model {then.name!r}: tokenizer {then.tokenizer_sha256[:12]}… then, "
            f"{now.tokenizer_sha256[:12]}… now"
        )
    if then.graph != now.graph:
        yield (
            f"model {then.name!r}: its graph was that of {then.graph or 'Isthmus'} and is that of "
            f"{now.graph or 'Isthmus'} (load_model(graph=), or --graph, says whose)"
        )
    if then.kv_type != now.kv_type:
        yield f"model {then.name!r}: KV cache of {then.kv_type} then, {now.kv_type} now"


def _adapters(record: ModelRecord) -> str:
    said = [f"{it.file_name} {it.sha256[:12]}… by {it.scale:g}" for it in record.adapters]
    return f"adapters {', '.join(said)}" if said else "no adapter"


def settings_differences(then: ModelRecord, now: ModelRecord) -> Iterator[str]:
    """What changes rounding, of a model's settings."""
    names = ["deterministic", "repack"]
    if not (then.deterministic and now.deterministic):
        names.append("prefill_chunk")
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            yield f"model {then.name!r}: {name} was {before}, is {after}"
    if then.width != now.width:
        yield (
            f"model {then.name!r}: its steps were of width {then.width or 'alone'}, are of "
            f"{now.width or 'alone'} (load_model(width=), or --width, says which)"
        )


def device_differences(manifest: Manifest, now: DeviceRecord) -> Iterator[str]:
    """What changes rounding, of the device."""
    then = manifest.device
    names = ["name", "library", "features"]
    if then.library == now.library:
        names.append("library_sha256")
    if not (manifest.models and all(model.deterministic for model in manifest.models)):
        names.append("threads")
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            what = "device" if name == "name" else name
            yield f"{what}: {_shown(before)} then, {_shown(after)} now"


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
