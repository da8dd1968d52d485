"""What an actor's limits say of one more session."""

from __future__ import annotations

from isthmus.actor.host_api.context import Context
from isthmus.model import Session
from isthmus.model.layout import Layout


def admit_session(context: Context, layout: Layout) -> None:
    """GuestFault(ELIMIT) if the actor may not have one more session, of that layout."""
    limits, sessions = context.limits, context.handles.all(Session)
    kv_nbytes = sum(it.layout.kv_nbytes for it in sessions) + layout.kv_nbytes
    context.limit("sessions", len(sessions) + 1, limits.sessions)
    context.limit("kv_nbytes", kv_nbytes, limits.kv_nbytes)
    context.handles.require_room()
