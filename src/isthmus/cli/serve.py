"""`isthmus serve`: an OpenAI-compatible endpoint and durable agents, over HTTP."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path

from isthmus.cli.options import (
    add_device_options,
    add_model_options,
    fetched_model,
    open_models,
    open_runtime,
    say,
)
from isthmus.config import Capacity
from isthmus.errors import SettingsError
from isthmus.model import Model

HELP = "serve models and durable agents over HTTP, as OpenAI's API does"
EXAMPLES = """\
  isthmus serve
  isthmus serve --model llama=model.gguf --port 8000 --data ./agents
  isthmus serve --data s3://bucket/agents
  isthmus serve --new-key ada --keys keys.txt
  isthmus serve --host 0.0.0.0 --keys keys.txt
  isthmus serve --config server.toml
  curl localhost:8080/v1/chat/completions -d '{"model": "smollm2",
    "messages": [{"role": "user", "content": "Hello"}]}'"""
_INSTALL = "for serve run: pip install starlette uvicorn llguidance"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    group = parser.add_argument_group("server", "each can be a key of the --config file too")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    group.add_argument("--host", metavar="ADDRESS", help="(default: 127.0.0.1)")
    group.add_argument("--port", type=int, metavar="N", help="(default: 8080)")
    group.add_argument("--data", metavar="FOLDER|URL", help="of the agents (default: isthmus-data)")
    group.add_argument("--cache", metavar="FOLDER", help="for the agents of a URL")
    group.add_argument("--keys", metavar="FILE", help="hashed API keys: only their owners may ask")
    group.add_argument("--new-key", metavar="NAME", help="make a key, print it once, and end")
    group.add_argument("--n-ctx", type=int, metavar="N", help="tokens of context (default: 4096)")
    group.add_argument(
        "--slots", type=int, metavar="N", help="stateless requests at a time (default: 16)"
    )
    group.add_argument("--live", type=int, metavar="N", help="agents in memory (default: 64)")
    add_model_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    try:
        from isthmus.server.app import create_app  # noqa: PLC0415 - needs optional dependencies
        from isthmus.server.keys import new_key  # noqa: PLC0415
        from isthmus.server.listening import serve  # noqa: PLC0415
        from isthmus.server.settings import ServerSettings  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"{_INSTALL} ({error})") from None
    if arguments.new_key is not None:
        if not arguments.keys:
            raise SettingsError("--new-key NAME needs --keys FILE to add it to")
        print(new_key(Path(arguments.keys), arguments.new_key))
        return 0
    known = {it.name for it in fields(ServerSettings)}
    given = {name: value for name, value in vars(arguments).items() if name in known}
    settings = ServerSettings.make(arguments.config, given)
    logging.getLogger("isthmus.server").setLevel(logging.INFO)
    arguments.model = [_named(text) for text in arguments.model or (_fetched(),)]
    running = settings.slots + settings.live
    with open_runtime(arguments, Capacity(running=running)) as runtime:
        models = open_models(runtime, arguments)
        app = create_app(runtime, models, settings)
        return serve(app, settings, lambda host, port: _say_ready(host, port, models))


def _fetched() -> str:
    return f"smollm2={fetched_model('smollm2')}"


def _named(text: str) -> str:
    """`[NAME=]PATH` with a name: the file's, where none is given."""
    return text if "=" in text else f"{Path(text).stem}={text}"


def _say_ready(host: str, port: int, models: dict[str, Model]) -> None:
    say(f"serving {', '.join(models)} on http://{host}:{port}")
