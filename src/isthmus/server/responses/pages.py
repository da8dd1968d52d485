"""Pages of items."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.server.http.errors import HttpError
from isthmus.server.responses.items import Item
from isthmus.server.responses.replies import ItemList
from isthmus.server.responses.requests import Page


def page_of(items: Sequence[Item], page: Page) -> ItemList:
    """The items, oldest first, that a page shows. HttpError 400 for one after an unknown item."""
    ordered = list(items) if page.order == "asc" else list(reversed(items))
    if page.after is not None:
        ids = [it["id"] for it in ordered]
        if page.after not in ids:
            raise HttpError(400, f"there is no item {page.after[:120]!r}", param="after")
        ordered = ordered[ids.index(page.after) + 1 :]
    data = ordered[: page.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(ordered) > len(data),
    }
