"""Actors: the only place where a guest's memory and a model meet."""

from isthmus.actor.actor import Actor
from isthmus.actor.beginning import Frozen, Home, Spawned
from isthmus.actor.exchange import Reply
from isthmus.actor.host_api import Granted, Tool
from isthmus.actor.snapshot import Restoration
from isthmus.actor.stream import Stream
from isthmus.actor.usage import Usage

__all__ = [
    "Actor",
    "Frozen",
    "Granted",
    "Home",
    "Reply",
    "Restoration",
    "Spawned",
    "Stream",
    "Tool",
    "Usage",
]
