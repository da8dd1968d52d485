"""What these tests share with those of the server."""

from tests.server.conftest import nothing_is_left_running, tiny_q8

__all__ = ["nothing_is_left_running", "tiny_q8"]
