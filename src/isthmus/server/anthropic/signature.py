"""Signatures of thoughts, which clients send back with them.

=========================  ======================  =================================================
a signature                beside                  says
=========================  ======================  =================================================
`isthmus-sha256:` + hex    the thought             that nobody changed or cut it on its way
`isthmus-text:` + base64   an empty thought        what the thought was: `display: omitted` hides it
anything else, or none     a thought               nothing: another server wrote it
=========================  ======================  =================================================

A signature is no secret, and says nothing about who thought: a caller may put any words into the
model's mouth anyway. It is never empty, since several clients send a thought back only if it is
signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from isthmus.errors import SettingsError

_SHOWN = "isthmus-sha256:"
_HIDDEN = "isthmus-text:"


def signature_of(thought: str, *, hidden: bool) -> str:
    """The signature that a client gets with a thought, or instead of it."""
    data = thought.encode()
    if hidden:
        return _HIDDEN + base64.b64encode(data).decode()
    return _SHOWN + hashlib.sha256(data).hexdigest()


def thought_of(thinking: str, signature: str) -> str:
    """The thought of a block that came back. SettingsError if it is not what was signed."""
    if signature.startswith(_HIDDEN) and not thinking:
        try:
            return base64.b64decode(signature.removeprefix(_HIDDEN), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise SettingsError("the signature was changed: send it back as it came") from None
    if signature.startswith(_SHOWN) and signature != signature_of(thinking, hidden=False):
        raise SettingsError(
            "the thinking is not what was signed: send it back as it came, or leave the block out"
        )
    return thinking
