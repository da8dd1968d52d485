"""Actors: the only place where a guest's memory and a model meet."""

from isthmus.actor.actor import Actor
from isthmus.actor.beginning import Frozen, Home, Spawned
from isthmus.actor.host_api import Granted, Tool
from isthmus.actor.snapshot import Restoration
from isthmus.actor.stream import Reply, Stream

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
]
