"""Errors survive a trip to another process, and say the numbers of what they are about."""

from __future__ import annotations

import pickle

import pytest

from isthmus import errors
from isthmus.abi import Errno
from isthmus.errors import (
    DeadlineExceeded,
    GuestExited,
    GuestFailed,
    GuestFault,
    GuestTrapped,
    IsthmusError,
    LimitExceeded,
    SnapshotMismatch,
)

MADE: list[IsthmusError] = [
    GuestFailed(Errno.EINVAL.value, "no such thing"),
    GuestFailed(77),
    GuestExited(3),
    GuestTrapped("unreachable", ("on_message", "deep")),
    LimitExceeded("too much", "tokens"),
    DeadlineExceeded("too slow"),
    SnapshotMismatch("another", ("the model", "the guest")),
    GuestFault(Errno.EBADF),
]
PLAIN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, IsthmusError)
    and kind not in {type(error) for error in MADE}
]


@pytest.mark.parametrize("error", [*MADE, *(kind("why") for kind in PLAIN)], ids=repr)
def test_a_pickled_error_is_the_same(error: IsthmusError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
