"""Actors: the only place where a guest's memory and a model meet."""

from isthmus.actor.actor import Actor, Reply, Spawned, Stream
from isthmus.actor.host_api import Granted, Tool

__all__ = ["Actor", "Granted", "Reply", "Spawned", "Stream", "Tool"]
