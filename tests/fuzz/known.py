"""Cases of the corpus that are known to fail, and why. Who mends one takes it out of here."""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "http": {
        "5000-digit-key": "int() refuses so many digits, in a logit_bias",
    },
}
"""Reasons by surface and case."""
