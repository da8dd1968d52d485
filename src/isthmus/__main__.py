"""`isthmus`, and `python -m isthmus`."""

import sys

_INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended, as shells give it."""


def main() -> int:
    """Runs the command line. Ctrl-C ends it without a traceback, also while it is being loaded."""
    try:
        from isthmus import cli  # noqa: PLC0415 - takes long enough to be interrupted

        return cli.main()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
