"""The checker of errors that docstrings name."""

from __future__ import annotations

import pytest
from tools.check_raises import complaints

RAISES = """
class Shelf:
    {of_class}
    def take(self, name):
        {of_method}
        if not name:
            raise errors.NameEmpty("there is no name")
        raise NotImplementedError

    def _inner(self):
        raise NameEmpty

    def base(self):
        raise NameEmpty

    def made(self):
        "A function that raises."
        def raising():
            raise NameEmpty
        return raising

class NameEmpty(Exception):
    pass
"""


def found(of_class: str, of_method: str) -> list[str]:
    source = RAISES.replace("{of_class}", of_class).replace("{of_method}", of_method)
    return complaints({"shelf.py": source})


def test_what_is_raised_and_not_said_is_found() -> None:
    unsaid = "shelf.py:4: Shelf.take raises NameEmpty, which its docstring does not say"
    assert found('"""A shelf."""', '"""A book. The NameEmptyBook."""') == [unsaid]


@pytest.mark.parametrize(
    ("of_class", "of_method"),
    [
        ('"""A shelf."""', '"""A book. Raises NameEmpty without a name."""'),
        ('"""A shelf. Its methods raise NameEmpty."""', '"""A book."""'),
        ('"""A shelf."""', "pass"),
    ],
)
def test_it_is_said_by_the_function_or_its_class(of_class: str, of_method: str) -> None:
    assert found(of_class, of_method) == []


def test_an_error_that_does_not_exist_is_found() -> None:
    said = '"""A book. Raises NameEmpty,\n        or NameMissing, see `SomeClass`."""'
    text = "the docstring says that NameMissing is raised, and there is no such error"
    assert found('"""A shelf."""', said) == [f"shelf.py:5: {text}"]
