"""Cases of the corpus that are known to fail, and why. Who mends one takes it out of here."""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {}
"""Reasons by surface and case."""
