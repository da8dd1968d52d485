"""The table that a benchmark prints."""

from isthmus.cli import bench


def test_a_figure_that_only_some_results_have_is_shown_for_those() -> None:
    results = [{"clients": 1, "ratio": 1.25, "first_ratio": 0.5}, {"clients": 8, "ratio": 0.75}]
    lines = [line.split() for line in bench._table({"results": results}).splitlines()]
    assert lines[0] == ["clients", "ratio", "first_ratio"]
    assert lines[2:] == [["1", "1.25", "0.5"], ["8", "0.75", "-"]]
