"""Which sessions one kernel of attention takes."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.model.passes.joining import Joining, Run, try_runs


class Fake:
    """A session whose cache lies at a place, in steps of 1,000 bytes."""

    def __init__(self, place: int) -> None:
        self.kv_base, self.layout = 1000 * place, "layout"


def runs(*places: int, most: int = 128, far: Sequence[int] = ()) -> list[Run] | None:
    sessions = [Fake(place) for place in places]
    rows = {row for row, place in enumerate(places) if place in far}
    joining = Joining(sizes=(4, 8, 12), least_kv=256, most_kv=1024)
    return try_runs(sessions, rows, joining, most)  # type: ignore[arg-type]


def test_runs_at_equal_distances_with_places_of_nobody() -> None:
    assert runs(5) == [Run((0,), 0, joined=True, unseen=3)]
    assert runs(3, 1, 2, 4) == [Run((1, 2, 0, 3), 1000, joined=True)]
    assert runs(1, 2, 5) == [Run((0, 1, None, None, 2, None, None, None), 1000, joined=True)]
    far_apart = runs(1, 2, 9)
    assert far_apart is not None
    assert [run.rows for run in far_apart] == [(0, 1, None, None), (2, None, None, None)]
    assert runs(1, 2, far=[2]) == [Run((0, None, None, None), 0, joined=True), Run((1,))]
    assert runs(1, 2, 9, most=7) is None
    many = runs(*range(1, 14))
    assert many is not None
    assert [len(run.rows) for run in many] == [12, 4]


def test_one_short_distance_does_not_part_the_others() -> None:
    """Whatever else the process maps moves some sessions a little further away."""
    assert runs(0, 10, 20, 30, 39, 48) == [
        Run((0, 1, 2, 3), 10_000, joined=True),
        Run((4, 5, None, None), 9_000, joined=True),
    ]
    assert runs(0, 9, 19, 29, 39) == [
        Run((0, 1, None, None), 9_000, joined=True),
        Run((2, 3, 4, None), 10_000, joined=True),
    ]
