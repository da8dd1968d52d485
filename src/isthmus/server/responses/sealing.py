"""`reasoning.encrypted_content`: a thought that a caller who keeps nothing else gives back.

It is the text of the thought and how it is written, nothing more: `isthmus.1.` and the text in
URL-safe base64. It is not encrypted, since whoever gets it is told the same thought in the same
response, and any server reads it, after any restart. A thought that somebody made up is worth as
much as one that is given in plain text, which callers may do too.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "isthmus.1."


def seal(thought: str) -> str:
    """The thought as `encrypted_content`."""
    return _MARK + base64.urlsafe_b64encode(thought.encode()).decode()


def unseal(content: str) -> str | None:
    """The thought in an `encrypted_content`; None if no server of this kind has written it."""
    if not content.startswith(_MARK):
        return None
    try:
        return base64.b64decode(content[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
