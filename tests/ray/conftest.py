"""What these tests share with those of the server."""

from tests.server.conftest import tiny_q8

__all__ = ["tiny_q8"]
