"""Actors: the only place where a guest's memory and a model meet."""

from isthmus.actor.actor import Actor
from isthmus.actor.async_stream import AsyncStream
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.host_api import Granted
from isthmus.actor.platform import Platform
from isthmus.actor.reply import Reply
from isthmus.actor.snapshot import Restoration
from isthmus.actor.stream import Stream
from isthmus.actor.usage import Usage

__all__ = [
    "Actor",
    "AsyncStream",
    "Frozen",
    "Granted",
    "Platform",
    "Reply",
    "Restoration",
    "Spawned",
    "Stream",
    "Usage",
]
