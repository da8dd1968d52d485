"""Ids of what is not kept, and is therefore found by nobody."""

from __future__ import annotations

import secrets


def random_id(prefix: str, n_digits: int = 24) -> str:
    """An id that nobody can guess: a prefix, as `call_`, and an even number of hexadecimal
    digits."""
    return prefix + secrets.token_hex(n_digits // 2)
