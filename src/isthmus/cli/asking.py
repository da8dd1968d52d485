"""What commands ask a server: JSON over HTTP."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from typing import Any

from isthmus.config import Environment
from isthmus.errors import SettingsError

_PATIENCE_S = 30.0
_MAX_NBYTES = 64 * 2**20


def add_server_key_option(parser: argparse.ArgumentParser) -> None:
    """`--api-key`."""
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="the key for a server that wants one (default: $ISTHMUS_API_KEY, which other users of "
        "this machine do not see)",
    )


def is_url(text: str) -> bool:
    """Whether a text is the address of a server."""
    return text.startswith(("http://", "https://"))


def ask(server: str, path: str, arguments: argparse.Namespace) -> Any:
    """What a server answers to a GET. SettingsError says why there is no answer."""
    url = server.rstrip("/") + path
    key = arguments.api_key or Environment.read().api_key
    heads = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(url, headers=heads)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return json.loads(answer.read(_MAX_NBYTES))
    except urllib.error.HTTPError as error:
        with error:
            hint = ": give --api-key, or set ISTHMUS_API_KEY" if error.code in (401, 403) else ""
        raise SettingsError(f"{url} answers {error.code} {error.reason}{hint}") from None
    except urllib.error.URLError as error:
        hint = "is isthmus serve running there?"
        raise SettingsError(f"cannot ask {url}: {error.reason}; {hint}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot ask {url}: {error}") from None
