"""Whether Ray is installed."""

from __future__ import annotations

import importlib.util

from isthmus.errors import SettingsError


def require_ray() -> None:
    """SettingsError, saying how to install it, if it is not there."""
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("for Ray run: pip install 'isthmus[ray]'")
