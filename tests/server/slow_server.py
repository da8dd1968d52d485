"""`isthmus` on the null device, each submission of which lasts STEP_MS: it stands for a device that
no processor makes faster or slower."""

from __future__ import annotations

import os
import sys

from isthmus.cli import main
from isthmus.config import DeviceSettings
from isthmus.device import null
from isthmus.native.loader import Library


class SlowDevice(null.NullDevice):
    def __init__(self, library: Library, settings: DeviceSettings) -> None:
        super().__init__(library, settings)
        self.step_s = float(os.environ["STEP_MS"]) / 1e3


null.NullDevice = SlowDevice  # type: ignore[misc]
sys.exit(main())
