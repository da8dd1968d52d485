"""`isthmus ps`: which models a server has in memory, and what its agents do."""

from __future__ import annotations

import argparse
import time

from isthmus.cli.asking import add_server_key_option, ask, is_url
from isthmus.cli.options import say
from isthmus.cli.table import format_table
from isthmus.errors import SettingsError
from isthmus.printable import printable, printable_json
from isthmus.units import format_nbytes

HELP = "show which models a server has in memory"
EXAMPLES = """\
  isthmus ps
  isthmus ps http://127.0.0.1:8081 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    usual = "http://127.0.0.1:8080"
    parser.add_argument(
        "server", nargs="?", default=usual, metavar="URL", help=f"the server (default: {usual})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_server_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError for a server that is no address."""
    if not is_url(arguments.server):
        raise SettingsError(f"{arguments.server} is no address: give http://HOST:PORT")
    models = ask(arguments.server, "/api/ps", arguments)["models"]
    if arguments.json:
        print(printable_json(models, indent=1))
    elif models:
        heads = ("model", "weights", "context", "until")
        rows = [
            (
                printable(it["name"]),
                format_nbytes(it["size"]),
                f"{it['context_length']}",
                _until(it["expires_at"]),
            )
            for it in models
        ]
        print(format_table(heads, rows))
    else:
        say(f"{arguments.server} has no model in memory; a request loads one")
    return 0


def _until(when: str) -> str:
    """When a model leaves; servers give those that stay a year that nobody sees."""
    stays = int(when[:4]) > time.gmtime().tm_year + 50
    return "the server stops" if stays else when[:19].replace("T", " ")
