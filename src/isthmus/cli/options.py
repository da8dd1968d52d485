"""Options that several commands share, and what they open."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from isthmus.cli.naming import model_path, named_models, named_projectors, parse_lora
from isthmus.config import (
    CACHES,
    GRAPHS,
    KV_TYPES,
    ON_FAILURE,
    SHARING,
    Capacity,
    Environment,
    Limits,
    ModelSettings,
)
from isthmus.errors import SettingsError
from isthmus.model import Adapter, Model
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.runtime.memory64 import fitting_guest, n_ctx_of
from isthmus.snapshot.header import require_key
from isthmus.units import MIB

MODEL_FORMS = (
    "a GGUF file, any shard of a split one, a folder with one model, or a name that isthmus pull "
    "knows"
)
"""What a model is given as, for help."""


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--sharing`, `--caches`, `--threads`, `--ggml`."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda, cuda:1, vulkan, metal, null; isthmus devices lists what opens here "
        "(default: auto)",
    )
    group.add_argument(
        "--sharing",
        choices=SHARING,
        help="how a guest's memory reaches the device (default: the best way that works)",
    )
    group.add_argument(
        "--caches",
        choices=CACHES,
        default="auto",
        help="where KV caches lie: in guests' memory, or in the device's own (default: auto, where "
        "the device reads them faster)",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads (default: one per processor)",
    )
    group.add_argument(
        "--ggml",
        metavar="PATH",
        help="a ggml library to use (default: $ISTHMUS_GGML, or installed)",
    )


def add_model_options(
    parser: argparse.ArgumentParser, named: str = "a name for the guest (default name: default)"
) -> None:
    """`--model` and how to compute it. `named` tells what its name is."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help=f"{MODEL_FORMS}, under {named}; a path that exists wins over NAME=; repeat for more",
    )
    add_lora_option(group)
    add_mmproj_option(group)
    add_way_options(group)


def add_way_options(group: argparse._ActionsContainer) -> None:
    """How models are computed."""
    group.add_argument("--kv-type", choices=KV_TYPES, help="type of the KV cache (default: f16)")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="same bits whatever the threads, chunks or batches; slower",
    )
    group.add_argument(
        "--inexact",
        action="store_true",
        help="let agents decode together where that changes bits",
    )
    group.add_argument(
        "--width",
        metavar="CLASS",
        help="the class of all steps, on devices where bits depend on how many agents share one: "
        "alone has libllama's bits, few is quickest for up to 8 agents, many for more and costs a "
        "lone agent about twice the time, bounds such as 9-128 name any (default: many for serve "
        "and bench agents, otherwise alone)",
    )
    group.add_argument(
        "--repack", action="store_true", help="copy weights into the fastest kernels' order"
    )
    group.add_argument(
        "--graph",
        choices=GRAPHS,
        default=ModelSettings.graph,
        help="who builds the graph of the forward pass: own is Isthmus; adopted is libllama, on "
        "the cpu and for one agent at a time; auto is Isthmus if it knows the architecture, "
        "otherwise libllama (default: auto)",
    )
    _add_checkpoint_options(group)


def _add_checkpoint_options(group: argparse._ActionsContainer) -> None:
    """`--checkpoints` and `--message-checkpoints`."""
    group.add_argument(
        "--checkpoints",
        type=int,
        default=ModelSettings.checkpoints,
        metavar="N",
        help="of a model that keeps a state which each token rewrites: copies of it that a session "
        "has room for, 0 to 64, so that a turn can be taken back (default: 2)",
    )
    group.add_argument(
        "--message-checkpoints",
        action="store_true",
        help="take such a copy at the end of each message; otherwise guests take what they need",
    )


def add_lora_option(group: argparse._ActionsContainer) -> None:
    """`--lora`."""
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[NAME=]PATH[:SCALE]",
        help="a LoRA adapter in GGUF for the model of that name, or, under a new name, for the "
        "first model, as one more (default name: the first model's; default scale: 1); repeat for "
        "more, also for one name",
    )


def add_mmproj_option(group: argparse._ActionsContainer) -> None:
    """`--mmproj`."""
    group.add_argument(
        "--mmproj",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the projector by which the model of that name takes pictures or sounds, in GGUF "
        "(default name: the first model's); repeat for more models",
    )


def add_image_option(group: argparse._ActionsContainer) -> None:
    """`--image`."""
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture (PNG, JPEG, WebP) or a sound (WAV) before the message, for guests that "
        "take it, such as chat, and a model with --mmproj; repeat for more",
    )


def read_files(names: Sequence[str]) -> list[bytes]:
    """Files that go with a message. SettingsError for one that cannot be read, or is empty."""
    found = []
    for name in names:
        try:
            data = Path(name).expanduser().read_bytes()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such home
            said = getattr(error, "strerror", None) or error
            raise SettingsError(f"cannot read the file {name!r}: {said}") from None
        if not data:
            raise SettingsError(f"the file {name!r} is empty")
        found.append(data)
    return found


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """`--arg`, `--seed` and limits."""
    group = parser.add_argument_group("guest")
    group.add_argument(
        "--arg", action="append", default=[], metavar="KEY=VALUE", help="an option for the guest"
    )
    group.add_argument("--seed", type=int, metavar="N", help="make random numbers repeatable")
    group.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds for each message; what takes longer is cut off (see --on-failure)",
    )
    group.add_argument("--memory", type=int, metavar="MIB", help="most linear memory, in MiB")
    add_memory64_option(group)
    group.add_argument(
        "--tokens", type=int, metavar="N", help="most tokens for each message, its prompt included"
    )
    group.add_argument("--fuel", type=int, metavar="N", help="most instructions for each message")
    group.add_argument(
        "--on-failure",
        choices=ON_FAILURE,
        default="keep",
        help="what becomes of the agent after a message that failed: keep goes on where the guest "
        "gave up by itself, and closes the agent where it was cut off (deadline, fuel, trap); undo "
        "makes it what it was before (default: keep)",
    )


def add_memory64_option(parser: argparse._ActionsContainer) -> None:
    """`--memory64`."""
    parser.add_argument(
        "--memory64",
        action=argparse.BooleanOptionalAction,
        help="take the build of a bundled guest with a 64-bit memory, or the 32-bit one (default: "
        "64-bit where the context's KV cache does not fit into 4 GiB)",
    )


def add_grammar_options(parser: argparse.ArgumentParser) -> None:
    """`--json-schema`, `--grammar`, `--regex`."""
    group = parser.add_argument_group(
        "grammar", "what each answer follows, from its first token to its last (guest: chat)"
    ).add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="JSON that fits this JSON schema")
    group.add_argument(
        "--grammar", metavar="FILE", help="a GBNF grammar; in a file called .lark, one of Lark"
    )
    group.add_argument("--regex", metavar="PATTERN", help="a regular expression for all of it")


def guest_args(arguments: argparse.Namespace) -> list[str]:
    """The options for the guest: `--arg`, and what the answers follow."""
    args = list(arguments.arg)
    for key, name in (("json_schema", arguments.json_schema), ("grammar", arguments.grammar)):
        if name is not None:
            lark = key == "grammar" and name.endswith(".lark")
            args.append(f"{'lark' if lark else key}={_source(name)}")
    if arguments.regex is not None:
        args.append(f"regex={arguments.regex}")
    return args


def _source(name: str) -> str:
    try:
        source = Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read the grammar {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the grammar {name} is not UTF-8 text") from None
    if not source.strip() or "\0" in source:
        raise SettingsError(f"the grammar {name} is empty, or has a zero byte in it")
    return source


def open_runtime(arguments: argparse.Namespace, capacity: Capacity | None = None) -> Runtime:
    """The runtime that the options ask for."""
    return Runtime(
        device=arguments.device,
        threads=arguments.threads,
        sharing=arguments.sharing,
        caches=arguments.caches,
        capacity=capacity,
        library=arguments.ggml,
        snapshot_key=read_key(arguments) if "key_file" in arguments else None,
    )


def add_key_option(parser: argparse._ActionsContainer) -> None:
    """`--key-file`."""
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="a key of 16 bytes or more: sign snapshots with it, and take no others "
        "(default: $ISTHMUS_SNAPSHOT_KEY_FILE)",
    )


def read_key(arguments: argparse.Namespace) -> bytes | None:
    """The key that the options or the environment say. Raises SettingsError for a file that cannot
    be read."""
    path = arguments.key_file or Environment.read().snapshot_key_file
    if not path:
        return None
    try:
        key = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"cannot read the key {path}: {error.strerror}") from None
    require_key(key)
    return key


def open_models(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Model]:
    """The models that the options name, and those with adapters."""
    named = named_models(arguments.model)
    projectors = named_projectors(arguments.mmproj, named)
    models = {
        name: open_model(runtime, arguments, path, projectors.get(name))
        for name, path in named.items()
    }
    return models | open_adapted(runtime, models, arguments.lora)


def open_adapted(runtime: Runtime, models: dict[str, Model], texts: list[str]) -> dict[str, Model]:
    """The models that `[NAME=]PATH[:SCALE]` makes of others; see `add_lora_option`. Raises
    SettingsError if there is no model to adapt."""
    if texts and not models:
        raise SettingsError(f"--lora {texts[0]}: an adapter changes a model; give --model too")
    wanted: dict[str, dict[Adapter, float]] = {}
    for text in texts:
        name, path, scale = parse_lora(text)
        name = name or next(iter(models))
        base = models.get(name) or next(iter(models.values()))
        wanted.setdefault(name, {})[runtime.load_adapter(path, base)] = scale
    first = next(iter(models.values()), None)
    return {
        name: runtime.adapt(models.get(name) or first, adapters)  # type: ignore[arg-type]
        for name, adapters in wanted.items()
    }


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers of a list such as 512,2000; SettingsError, naming the option, for any other."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise SettingsError(f"{option} {text}: give whole numbers above 0, such as 512,2000")
    return tuple(int(part) for part in parts)


def words(option: str, text: str) -> list[str]:
    """The words of a list such as cpu,cuda, each once; SettingsError, naming the option, if there
    are none."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise SettingsError(f"{option} is empty: give one name or more, separated by commas")
    return found


def open_model(
    runtime: Runtime, arguments: argparse.Namespace, path: str, mmproj: Path | None = None
) -> Model:
    """One model, computed as the options say."""
    settings = replace(model_settings(arguments), mmproj=mmproj)
    return runtime.load_model(model_path(path), **asdict(settings))


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """How models are computed."""
    return ModelSettings(
        kv_type=arguments.kv_type or ModelSettings.kv_type,
        deterministic=arguments.deterministic,
        exact=not arguments.inexact,
        width=arguments.width or ModelSettings.width,
        repack=arguments.repack,
        graph=arguments.graph,
        checkpoints=arguments.checkpoints,
        message_checkpoints=arguments.message_checkpoints,
    )


def limits(arguments: argparse.Namespace) -> Limits:
    """The limits that the options ask for."""
    chosen: dict[str, float | int | str] = {"on_failure": arguments.on_failure}
    if arguments.deadline is not None:
        chosen["deadline_s"] = arguments.deadline
    if arguments.memory is not None:
        chosen["memory_nbytes"] = arguments.memory * MIB
    for name in ("tokens", "fuel"):
        if getattr(arguments, name) is not None:
            chosen[name] = getattr(arguments, name)
    return Limits(**chosen)  # type: ignore[arg-type]


def sized_guest(
    arguments: argparse.Namespace, models: Mapping[str, Model], args: Sequence[str]
) -> tuple[str, Limits]:
    """The guest that the options name, in the build that its context needs, and its limits."""
    model = models.get("default")
    if model is None:
        return arguments.guest, limits(arguments)
    n_ctx = n_ctx_of(args, model)
    return fitting_guest(arguments.guest, model, n_ctx, limits(arguments), arguments.memory64)


def say(text: str) -> None:
    """A line for the user that is not the command's output."""
    print(printable(text, lines=True), file=sys.stderr, flush=True)
