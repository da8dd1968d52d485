"""The façade: load a model, load a guest, spawn actors, close everything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from isthmus.actor import Actor, Frozen, Granted, Spawned
from isthmus.actor.snapshot import (
    assess,
    guest_of,
    limits_of,
    require_level,
)
from isthmus.config import (
    Caches,
    Capacity,
    DeviceSettings,
    Environment,
    GraphBy,
    KvType,
    Level,
    Limits,
    ModelSettings,
    Sharing,
    Verify,
)
from isthmus.counters import Counters
from isthmus.device import Device
from isthmus.errors import (
    ActorClosed,
    Cancelled,
    DeadlineExceeded,
    IsthmusError,
    ModelNotFound,
    Overloaded,
    SettingsError,
    SnapshotError,
)
from isthmus.metrics import Metrics
from isthmus.model import Adapter, Model, open_model
from isthmus.native.loader import Library, open_library
from isthmus.paths import expanded
from isthmus.runtime.arguments import (
    command_line,
    options_of,
    require_given,
    require_guest_of,
    require_memory_for,
    require_range,
    require_reach,
    tools_of,
    warn_of_unknown,
)
from isthmus.runtime.opening import Parts, opened
from isthmus.runtime.roster import close_all
from isthmus.runtime.scripts import Script, interpreter_of
from isthmus.runtime.sources import bundled_modules, model_path, read_guest
from isthmus.snapshot import Saved, Snapshot, open_snapshot
from isthmus.snapshot.header import require_key
from isthmus.snapshot.store import resolve
from isthmus.tools import Tool
from isthmus.wasm import Guest


class Runtime:
    """One device, one WebAssembly engine, and the models and actors that live on them.

    ::

        with isthmus.Runtime() as rt:
            model = rt.load_model("model.gguf")
            actor = rt.spawn("chat", models={"default": model})
            for piece in actor.stream("Hello"):
                print(piece, end="", flush=True)

    `device` is `auto`, `cpu`, `cuda:0`, `vulkan:0`, `metal`, `null`; `threads` is the number of CPU
    threads, 0 for one for each processor; `sharing` forces how guests' memory reaches the device
    (docs/devices.md), by default the best way that works; `caches` says where KV caches lie,
    `guest` or `own`, by default where the device reads them faster; `capacity` is what all actors
    may use together; `library` is the path of a ggml library, by default ISTHMUS_GGML or the first
    one that is installed. Raises LibraryNotFound, LibraryUnsupported, DeviceUnavailable,
    SettingsError.

    Safe to use from several threads. `close` ends all actors, then frees models, device and engine.
    A Runtime that nobody holds any more is closed with a ResourceWarning.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        threads: int = 0,
        sharing: Sharing | None = None,
        caches: Caches = "auto",
        library: str | Path | None = None,
        snapshot_key: bytes | None = None,
        capacity: Capacity | None = None,
        environment: Environment | None = None,
    ) -> None:
        capacity, environment = capacity or Capacity(), environment or Environment.read()
        if snapshot_key is not None:
            require_key(snapshot_key)
        self.environment = environment
        """What the process's environment said; its `cache` has all that is kept."""
        self._metrics = Metrics()
        settings = DeviceSettings(threads, sharing=sharing, caches=caches)
        self.library: Library = open_library(environment.ggml if library is None else str(library))
        parts = Parts(device, settings, self.library, environment.cache, capacity, snapshot_key)
        self._holdings = holdings = opened(parts, self._metrics)
        self._platform, self._roster = holdings.platform, holdings.roster
        self._models = holdings.models
        self.device: Device = self._platform.device
        self.engine = self._platform.engines.plain
        self.file_hashes = self._platform.hashes
        """What is known of files by their contents, kept from process to process."""
        holdings.publish(self._metrics)
        holdings.closed_if_dropped(self)

    # ------------------------------------------------------------------ loading

    def load_model(
        self,
        path: str | Path,
        *,
        kv_type: KvType = "f16",
        prefill_chunk: int = 512,
        deterministic: bool = False,
        repack: bool = False,
        exact: bool = True,
        width: str = "alone",
        graph: GraphBy = "auto",
        checkpoints: int = 2,
        message_checkpoints: bool = False,
        mmproj: str | Path | None = None,
        label: str = "",
    ) -> Model:
        """Opens a GGUF file, or one that `isthmus pull` fetched, by its name: smollm2.

        Its weights are mapped, or copied once to a device with memory of its own.

        `kv_type` is the element type of KV caches (f16, f32, q8_0, q4_0); `prefill_chunk` the most
        tokens in one submission; `deterministic` gives the same bits whatever the thread count, the
        chunk or the mix of prefill and decode, and is slower; `repack` copies weights into the
        order of the processor's fastest kernels, where there are any; `exact=False` has agents
        decode together also where that changes bits.

        `width` is the class of all steps, which decides their bits on devices that have several
        (`Model.widths`): `alone` has those of a step by itself, which libllama computes too, and
        takes a few agents at once; `many` takes up to 128, and an agent that is alone about twice
        as long for a token.

        `graph` says who builds the graph of the forward pass: `own` is Isthmus, `adopted` is
        libllama, and `auto` is Isthmus if it knows the architecture. What libllama computes runs on
        the cpu alone, each agent by itself (`Model.lacks`).

        Some models keep a state that each token rewrites. `checkpoints` is how many copies of it a
        session has room for, to which it can be truncated: guests take them, and with
        `message_checkpoints` the host does at the end of each message. `mmproj` is the model's
        projector file, by which it takes pictures or sounds. `label` is its name in the metrics, by
        default what the file calls itself. Raises ModelNotFound, ModelFileError,
        ModelUnsupported, SettingsError, DeviceUnavailable.
        """
        self._require_open()
        settings = ModelSettings(
            kv_type=kv_type,
            prefill_chunk=prefill_chunk,
            deterministic=deterministic,
            repack=repack,
            exact=exact,
            width=width,
            graph=graph,
            checkpoints=checkpoints,
            message_checkpoints=message_checkpoints,
            mmproj=mmproj,
        )
        begun = time.monotonic()
        file = model_path(path, self.environment.cache)
        model = open_model(self.device, file, settings, self.file_hashes)
        model.call_it(label)
        self._models.add(model, model.weights.host_nbytes + model.projector_nbytes)
        self._metrics.model_loads.inc()
        self._metrics.model_load.observe(time.monotonic() - begun)
        return model

    def unload_model(self, model: Model) -> None:
        """Closes a model, and before it the models with adapters over it and all actors that were
        given one of them; a second call does nothing.

        What runs in those actors is cut off. Raises RegionBusy while somebody looks at an actor's
        memory, ModelBusy while an actor begins with the model: call it again then.
        """
        doomed = self._models.over(model)
        close_all([it for it in self.actors if any(it.uses(one) for one in doomed)])
        self._models.close_each(doomed)
        self._roster.sweep()
        if doomed:
            self._metrics.model_unloads.inc()

    def load_adapter(self, path: str | Path, model: Model) -> Adapter:
        """Opens a LoRA adapter, a GGUF file, for a model; `adapt` uses it.

        Its matrices are mapped, or copied once to a device with memory of its own, and freed with
        the model. Raises ModelNotFound, ModelFileError, ModelUnsupported.
        """
        self._require_open()
        try:
            return model.load_adapter(expanded(path))
        except IsthmusError:
            raise
        except (OSError, ValueError) as error:  # what no file system takes for a path
            raise ModelNotFound(f"the adapter {str(path)!r} cannot be opened: {error}") from None

    def adapt(self, model: Model, adapters: Mapping[Adapter, float], *, label: str = "") -> Model:
        """A model to whose products adapters add, each by its scale, over the same weights.

        ::

            poet = rt.adapt(model, {rt.load_adapter("poet.gguf", model): 1.0})
            actor = rt.spawn("chat", models={"default": poet})

        A guest opens it by the name under which it was given it, as any model. Actors of the base
        and of other adapters decode in batches of their own. `label` is its name in the metrics.
        Raises SettingsError.
        """
        self._require_open()
        made = model.adapted(adapters)
        made.call_it(label)
        return self._models.add(made)

    def load_guest(self, guest: str | Path | bytes) -> Guest:
        """Compiles a guest, once for each content: a path, the bytes of a module, or the name of a
        bundled guest. Raises GuestInvalid with everything that is wrong with it.
        """
        self._require_open()
        return self._compiled(*read_guest(guest))

    def forget_guest(self, sha256: str) -> None:
        """Keeps no compiled code of a module in memory any more; actors that use it live on."""
        self._platform.engines.forget(sha256)

    def spawn(
        self,
        /,
        guest: str | Path | bytes | Guest,
        *,
        models: Mapping[str, Model] | None = None,
        tools: Mapping[str, Tool | Callable[..., object]] | None = None,
        args: Sequence[str] | Mapping[str, object] = (),
        argv: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        seed: int | None = None,
        clock_ns: int | None = None,
        copy_tensors: bool = False,
        label: str = "",
        **options: object,
    ) -> Actor:
        """Starts an actor: a fresh instance of a guest with what it is given, and nothing else.

        `models` and `tools` are what it may open and call, by name; a tool is a function or an
        `isthmus.tools.Tool`. `options` are for the guest, such as `temperature=0.2`: any JSON value
        (`true` is given as 1, lists and objects as JSON, and what is None is left out); `args` are
        more of them, as `key=value` or as a mapping, also by names that `spawn` has itself. A
        command has instead `argv`, its arguments after its name, and variables, `environ`; it
        begins anew with each message. `seed` and `clock_ns` make random numbers and clock
        repeatable; by default they are new and now. `copy_tensors` stages the tensors of `compute`
        calls in device memory, to measure what that costs. `label` is its name in the log. Its
        initialisation may take `Capacity.initialize_s`. Raises GuestInvalid, GuestTrapped,
        DeadlineExceeded, SettingsError and what else its initialisation meets.
        """
        self._require_open()
        given = options_of(args, options)
        if isinstance(guest, str | Path) and interpreter_of(guest):
            given = (*options_of(Script.read(guest).options), *given)
        require_given(models, limits)
        compiled = guest if isinstance(guest, Guest) else self.load_guest(guest)
        arguments, variables = command_line(compiled, given, argv, environ)
        warn_of_unknown(compiled, given)
        granted = Granted(dict(models or {}), tools_of(tools), limits or Limits(), label)
        require_reach(compiled, granted.limits)
        require_range("seed", seed, -(2**63), 2**64)
        require_range("clock_ns", clock_ns, 0, 2**63)
        spawned = Spawned(
            args=(*given, *variables),
            seed=int.from_bytes(os.urandom(8), "little") if seed is None else seed,
            clock_ns=time.time_ns() if clock_ns is None else clock_ns,
            copy_tensors=copy_tensors,
            argv=arguments if compiled.is_command else None,
        )
        return Actor(self._platform, compiled, granted, spawned)

    def restore(
        self,
        path: str | Path | Saved,
        *,
        models: Mapping[str, Model] | None = None,
        tools: Mapping[str, Tool | Callable[..., object]] | None = None,
        guest: str | Path | bytes | Guest | None = None,
        limits: Limits | None = None,
        require: Level = "state-exact",
        verify: Verify = "full",
        label: str = "",
        args: Sequence[str] | Mapping[str, object] | None = None,
    ) -> Actor:
        """Brings back the actor that `Actor.snapshot` saved: its file, STORE/NAME, or its result.

        `models` and `tools` are those that it had, by the same names. `guest` is only needed to
        insist on one: a snapshot carries its own. `limits` and `args` are by default those that it
        had; other `args` reach a guest that reads them again, as `chat` does with each message.
        `actor.restored` tells how exact it is; below `require` (exact, state-exact, replayed) it
        is refused. With another model it must be `replayed`: its tokens are then prefilled again.
        `verify` is `full`, or `lazy` for a file that one trusts: its memory is then read when it
        is touched, and not compared with its hashes. `label` is its name in the log. The file must
        not be changed while the actor lives; replacing it by another one is fine. Raises
        SnapshotError; nothing is restored then.
        """
        self._require_open()
        if verify not in ("full", "lazy"):
            raise SettingsError(f"verify is {verify!r}: give full or lazy")
        file = path.path if isinstance(path, Saved) else resolve(path)
        snapshot = open_snapshot(file, self._platform.snapshot_key)
        limits = limits or limits_of(snapshot.manifest)
        granted = Granted(dict(models or {}), tools_of(tools), limits, label)
        how = assess(snapshot, self._platform.device_record, granted)
        require_level(how, require)
        compiled = self._guest_of(snapshot, guest)
        require_memory_for(snapshot, granted.limits)
        require_reach(compiled, granted.limits)
        frozen = Frozen.of(snapshot, how, verified=verify == "full")
        if args is not None:
            frozen = frozen.with_args(options_of(args))
        try:
            return Actor(self._platform, compiled, granted, frozen)
        except (SnapshotError, Overloaded, DeadlineExceeded, Cancelled, ActorClosed):
            raise
        except IsthmusError as error:
            raise SnapshotError(f"{snapshot.path} cannot be restored: {error}") from error

    def _guest_of(self, snapshot: Snapshot, given: str | Path | bytes | Guest | None) -> Guest:
        wasm, record = guest_of(snapshot), snapshot.manifest.guest
        if given is None:
            guest = self._compiled(wasm, record.name)
        else:
            guest = given if isinstance(given, Guest) else self.load_guest(given)
        require_guest_of(snapshot, guest)
        return guest

    def _compiled(self, wasm: bytes, name: str) -> Guest:
        return self._platform.engines.compile(wasm, name, trusted=wasm in bundled_modules())

    # ------------------------------------------------------------------ state

    @property
    def memory_limit_nbytes(self) -> int:
        """Bytes that all actors may have together now; see `Capacity.memory_nbytes`."""
        return self._platform.budget.limit_nbytes

    @property
    def actors(self) -> list[Actor]:
        """The actors that are not closed."""
        return self._roster.actors

    def counters(self) -> Counters:
        """Counts of the device, of all models and of all actors, added up."""
        return self._holdings.counters()

    @property
    def registry(self) -> CollectorRegistry:
        """Prometheus's registry of these metrics, to which a program may add its own."""
        return self._metrics.registry

    def metrics(self) -> str:
        """Counters, gauges and histograms of everything here, in Prometheus's text format."""
        return self._metrics.render()

    def close(self) -> None:
        """Closes actors, models, engine and device, in this order; a second call does nothing.

        Actors that are being spawned or restored are cut off first. In a forked process, where
        everything is its parent's, a call does nothing.
        """
        self._holdings.close()

    def end_beginnings(self) -> None:
        """Cuts off actors that are being spawned or restored now: their callers get Cancelled."""
        self._platform.beginnings.cut_off()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _require_open(self) -> None:
        self._holdings.require_open()
