"""`isthmus serve`: APIs of OpenAI, Anthropic and Ollama, and durable agents, over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.cli.options import (
    add_device_options,
    add_memory64_option,
    add_model_options,
    model_settings,
    open_runtime,
    say,
)
from isthmus.cli.serving import aliases_of, catalog_of
from isthmus.cli.table import format_table
from isthmus.cli.tools import add_tool_options, tool_specs
from isthmus.config import Capacity, Environment
from isthmus.errors import SettingsError
from isthmus.paths import expanded
from isthmus.tools.spec import Toolbox, ToolSpec, add, specs_of_table
from isthmus.units import format_nbytes

if TYPE_CHECKING:
    from isthmus.server.models.models import Models
    from isthmus.server.settings import ServerSettings

HELP = "serve models by the APIs of OpenAI, Anthropic, Ollama and llama.cpp, and durable agents"
EXAMPLES = """\
  isthmus serve
  isthmus serve --model llama=model.gguf --port 8000 --data ./agents
  isthmus serve --model base.gguf --lora poet=poet.gguf --lora lawyer=lawyer.gguf:0.8
  isthmus serve --models ~/models --keep-alive 10m --alias gpt-4o=Qwen3-8B-Q4_K_M
  isthmus serve --data s3://bucket/agents
  isthmus serve --keys keys.txt --new-key ada --limit rpm=60 --limit tpd=100000
  isthmus serve --host 0.0.0.0 --keys keys.txt
  isthmus serve --config server.toml
  isthmus serve --ray local --replicas 1-3 --data s3://bucket/agents
  isthmus serve --tool weather=weather:forecast --fetch '*.wikipedia.org'
  curl localhost:8080/v1/chat/completions -d '{"model": "smollm2",
    "messages": [{"role": "user", "content": "Hello"}]}'"""
_INSTALL = "for serve run: pip install 'isthmus[serve]'"
_ABSENT = (
    *("device", "threads", "caches", "deterministic", "inexact", "repack", "graph"),
    *("checkpoints", "message_checkpoints"),
)
"""Options whose defaults are those of `ServerSettings`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    group = parser.add_argument_group(
        "server",
        "a --config file may have these and more settings, and so may variables such as "
        "ISTHMUS_PORT; an option overrides a variable, and a variable the file",
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML (default: $ISTHMUS_CONFIG)"
    )
    group.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    group.add_argument(
        "--port", type=int, metavar="N", help="port, 0 for any that is free (default: 8080)"
    )
    _add_store_options(group)
    _add_key_options(group)
    group.add_argument(
        "--log-format",
        choices=("line", "json"),
        help="line for people, json for programs (default: line)",
    )
    group.add_argument(
        "--n-ctx", type=int, metavar="N", help="tokens of context (default: the model's)"
    )
    add_memory64_option(group)
    group.add_argument(
        "--slots", type=int, metavar="N", help="stateless requests at a time (default: 16)"
    )
    _add_hosts(group)
    _add_agent_options(group)
    _add_choice_of_models(group)
    _add_ray_options(parser)
    group.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when standard input ends: whoever started the server has ended",
    )
    add_model_options(parser, "a name for requests (default name: the file's, without .gguf)")
    add_tool_options(parser)
    add_device_options(parser)
    parser.set_defaults(**dict.fromkeys(_ABSENT))  # what is not given, the file or a variable says


def _add_agent_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--live", type=int, metavar="N", help="agents in memory (default: 64)")
    group.add_argument(
        "--save-tokens",
        type=int,
        metavar="N",
        help="save an agent's answer in its middle after so many tokens, so that it goes on after "
        "kill -9; 0 for never (default: 256)",
    )
    group.add_argument(
        "--save-after",
        dest="save_s",
        metavar="DURATION",
        help="and after so long: 30s, 5m or seconds; 0 for never (default: 30s)",
    )


def _add_choice_of_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--models",
        dest="models_folder",
        metavar="FOLDER",
        help="a folder whose GGUF files are loaded when a request names them (default, without "
        "--model: what isthmus pull fetched)",
    )
    group.add_argument(
        "--models-nbytes",
        type=int,
        metavar="N",
        help="bytes of weights that may be in memory at a time (default: what the machine allows)",
    )
    group.add_argument(
        "--keep-alive",
        dest="keep_alive_s",
        metavar="DURATION",
        help="how long a model that a request loaded stays after its last use: 30s, 5m, 1h or "
        "seconds; 0 unloads it at once, -1 never (default: 5m)",
    )
    group.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a further name for a model; repeat for more",
    )


def _add_ray_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "ray", "replicas of the server on a Ray cluster (docs/cluster.md; needs isthmus[ray])"
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="deploy to this Ray cluster, auto for the one of this machine; local begins one here",
    )
    group.add_argument(
        "--replicas",
        default="1",
        metavar="N|MIN-MAX",
        help="replicas, or how few and how many: as messages come (default: 1)",
    )
    group.add_argument(
        "--replica-messages",
        type=int,
        default=8,
        metavar="N",
        help="requests that are being answered, for each replica: with more there are more "
        "replicas (default: 8)",
    )
    group.add_argument(
        "--replica-gpus", type=float, default=0, metavar="N", help="cards of each (default: 0)"
    )
    group.add_argument(
        "--replica-memory",
        type=int,
        metavar="BYTES",
        help="memory that Ray sets aside for each, on a node that has it (default: what the files "
        "of its models take)",
    )


def _add_store_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        metavar="FOLDER|URL",
        help="where agents and responses are kept (default: isthmus-data)",
    )
    group.add_argument("--cache", metavar="FOLDER", help="local copy of the data, if that is a URL")
    group.add_argument(
        "--advertise",
        metavar="URL",
        help="where other servers with the same URL as data reach this one (default: where it "
        "listens)",
    )


def _add_key_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--keys", metavar="FILE", help="hashed API keys: only their owners may ask")
    group.add_argument("--new-key", metavar="NAME", help="make a key, print it once, and end")
    group.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KIND=N",
        help="a limit of the new key; repeat for more: concurrent (requests at a time), rpm "
        "(requests a minute), tpd (tokens a day), agents, disk (bytes), metrics (1: may read "
        "/metrics), models (1: may pull, load and unload models)",
    )
    group.add_argument("--list-keys", action="store_true", help="print whose keys there are")
    group.add_argument("--remove-key", metavar="NAME", help="take a key out of the file, and end")


def _add_hosts(group: argparse._ActionsContainer) -> None:
    """Who may ask, by which names, and who is asked."""
    group.add_argument(
        "--origins",
        nargs="+",
        metavar="ORIGIN",
        help="other sites whose pages may use the server, such as https://app.example.org; "
        "* for all",
    )
    group.add_argument(
        "--hosts",
        nargs="+",
        metavar="NAME",
        help="names of the server, such as llm.example.org: the proxy's",
    )
    group.add_argument(
        "--proxies",
        nargs="+",
        metavar="ADDRESS",
        help="proxies whose X-Forwarded-For the log believes (default: none)",
    )
    group.add_argument(
        "--media-hosts",
        nargs="+",
        metavar="HOST",
        help="hosts from which pictures are fetched that requests name by URL (default: none)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError if the server is not installed, or options contradict each
    other."""
    try:
        from isthmus.server.app import create_app  # noqa: PLC0415 - needs optional dependencies
        from isthmus.server.http.listening import serve  # noqa: PLC0415
        from isthmus.server.http.log import use_format  # noqa: PLC0415
        from isthmus.server.models.models import Models  # noqa: PLC0415
        from isthmus.server.settings import ServerSettings  # noqa: F401, PLC0415
    except ImportError as error:
        raise SettingsError(f"{_INSTALL} ({error})") from None
    if arguments.limit and not arguments.new_key:
        raise SettingsError("--limit is for a new key: give --new-key NAME too")
    arguments, settings = _settled(arguments)
    if arguments.new_key or arguments.remove_key or arguments.list_keys:
        return _change_keys(settings.keys, arguments)
    if arguments.ray is not None:
        return _serve_on_ray(arguments, settings)
    sys.setswitchinterval(_SWITCH_S)
    if arguments.until_eof:
        threading.Thread(target=_stop_at_eof, name="isthmus-until-eof", daemon=True).start()
    logging.getLogger("isthmus.server").setLevel(logging.INFO)
    # it warns of each write to a caller who has just left
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    use_format(settings.log_format)
    logging.getLogger().setLevel(settings.log_level.upper())
    capacity = Capacity(running=settings.running, memory_nbytes=settings.memory_nbytes)
    catalog = catalog_of(arguments, settings)
    with (
        Toolbox(_tool_specs(arguments, settings)) as box,
        open_runtime(arguments, capacity) as runtime,
    ):
        models = Models(runtime, catalog, settings, model_settings(arguments))
        models.load_at_start()
        app = create_app(models, settings, box)
        return serve(app, settings, lambda host, port: _say_ready(host, port, models))


_SWITCH_S = 0.0005
"""Seconds after which a thread that runs Python lets another one. The thread that drives agents
wants the interpreter several times for each token, so by default each could take 5 ms longer."""


def _stop_at_eof() -> None:
    """Has the server stop, as SIGTERM does, once standard input ends."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _serve_on_ray(arguments: argparse.Namespace, settings: ServerSettings) -> int:
    """Deploys replicas that have these settings, until it is told to stop."""
    from isthmus.ray.serving import Scale, serve_until_told  # noqa: PLC0415 - needs Ray

    if tool_specs(arguments):
        raise SettingsError("with --ray give tools in the --config file, in a table [tools]")
    usual = type(settings)()
    said = {it.name: getattr(settings, it.name) for it in fields(settings)}
    said = {name: it for name, it in said.items() if it != getattr(usual, name)}
    if arguments.alias:
        said["aliases"] = {**settings.aliases, **aliases_of(arguments.alias)}
    scale = Scale.parse(
        arguments.replicas,
        messages=arguments.replica_messages,
        gpus=arguments.replica_gpus,
        memory=arguments.replica_memory,
    )
    return serve_until_told(arguments.ray, said, scale, say)


def _settled(arguments: argparse.Namespace) -> tuple[argparse.Namespace, ServerSettings]:
    """The options as the file and the environment complete them, and all settings."""
    from isthmus.server.settings import ServerSettings  # noqa: PLC0415 - needs optional dependencies

    variables = dict(Environment.read().settings)
    file = variables.pop("config", None)
    known = {it.name for it in fields(ServerSettings)}
    given = {
        name: value for name, value in vars(arguments).items() if name in known and value != []
    }
    settings = ServerSettings.make(
        arguments.config or (expanded(file) if file else None), given, variables
    )
    settled = {name: getattr(settings, name) for name in known & vars(arguments).keys()}
    return argparse.Namespace(**{**vars(arguments), **settled}), settings


def _change_keys(path: Path | str | None, arguments: argparse.Namespace) -> int:
    """`--new-key`, `--remove-key`, `--list-keys`."""
    from isthmus.server.http.key import KeyLimits  # noqa: PLC0415
    from isthmus.server.keys.keys import new_key, read_keys, remove_key  # noqa: PLC0415

    if path is None:
        raise SettingsError("give --keys FILE, the file that has the keys")
    path = Path(path)
    if arguments.remove_key:
        remove_key(path, arguments.remove_key)
    if arguments.new_key:
        print(new_key(path, arguments.new_key, KeyLimits.parse(arguments.limit)))
    if arguments.list_keys:
        rows = [(it.name, f"{it.digest[:12]}…", str(it.limits) or "-") for it in read_keys(path)]
        print(format_table(("name", "SHA-256", "limits"), rows))
    return 0


def _tool_specs(arguments: argparse.Namespace, settings: ServerSettings) -> dict[str, ToolSpec]:
    """The tools of the settings, and those of the options."""
    specs = specs_of_table(settings.tools)
    for name, spec in tool_specs(arguments).items():
        add(specs, name, spec)
    return specs


def _say_ready(host: str, port: int, models: Models) -> None:
    from isthmus.server.http.log import tell  # noqa: PLC0415

    url = f"http://{host}:{port}"
    nbytes, files = models.runtime.memory_limit_nbytes, models.files.all()
    loaded = [name for it in files for name in it.served]
    others = [name for it in files if not it.served for name in it.source.names]
    waiting = f", and on demand {', '.join(others)}" if others else ""
    tell(
        "listening",
        f"serving {', '.join(loaded) or 'no model yet'}{waiting} on {url}; agents may have "
        f"{format_nbytes(nbytes)} of memory, models {format_nbytes(models.limit_nbytes)}",
        url=url,
        models=[*loaded, *others],
        memory_nbytes=nbytes,
        models_nbytes=models.limit_nbytes,
    )
