"""Regular expressions of numbers within bounds, exact whatever their size."""

from __future__ import annotations

from decimal import Decimal

DIGITS = r"(\.[0-9]+)?"
NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+\-]?[0-9]{1,2})?"
INTEGER = r"(0|-?[1-9][0-9]*)"


def integers(least: int | None, most: int | None) -> str | None:
    """Whole numbers from `least` to `most`; None if there are none."""
    if least is not None and most is not None and least > most:
        return None
    parts = []
    if least is None or least < 0:
        low = None if least is None else -least
        high = 1 if most is None or most >= 0 else -most
        parts.append(f"-{_natural(high, low)}")
    if most is None or most >= 0:
        parts.append(_natural(max(0, least or 0), most))
    return f"({'|'.join(parts)})"


def _natural(least: int, most: int | None) -> str:
    if most is None:
        n = len(str(least))
        return f"({_between(least, 10**n - 1)}|[1-9][0-9]{{{n},}})"
    parts = []
    while len(str(least)) < len(str(most)):
        end = 10 ** len(str(least)) - 1
        parts.append(_between(least, end))
        least = end + 1
    parts.append(_between(least, most))
    return f"({'|'.join(parts)})"


def _between(least: int, most: int) -> str:
    """Whole numbers of equally many digits."""
    return _digits(str(least), str(most))


def _digits(low: str, high: str) -> str:
    if low == high:
        return low
    n = 0
    while low[n] == high[n]:
        n += 1
    head, low, high = low[:n], low[n:], high[n:]
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return head + _digit(int(low[0]), int(high[0])) + _any(rest)
    parts = [f"{low[0]}{_digits(low[1:], '9' * rest)}"]
    if int(low[0]) + 1 <= int(high[0]) - 1:
        parts.append(_digit(int(low[0]) + 1, int(high[0]) - 1) + _any(rest))
    parts.append(f"{high[0]}{_digits('0' * rest, high[1:])}")
    return f"{head}({'|'.join(parts)})"


def _digit(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"


def _any(n: int) -> str:
    return "" if n == 0 else f"[0-9]{{{n}}}"


def exactly(value: Decimal) -> str:
    """All ways to write a number without an exponent."""
    sign, whole, fraction = _parts(value)
    tail = rf"\.{fraction}0*" if fraction else r"(\.0+)?"
    zero = "-?" if not fraction and whole == 0 else ""
    return f"{zero}{'-' if sign else ''}{whole}{tail}"


def at_least(value: Decimal) -> str:
    """Numbers without an exponent that are not less."""
    if value <= 0:
        return f"({_natural(0, None)}{DIGITS}|-{_up_to(-value)})"
    return _from(value)


def at_most(value: Decimal) -> str:
    """Numbers without an exponent that are not greater."""
    if value < 0:
        return f"-{_from(-value)}"
    return f"(-{_natural(0, None)}{DIGITS}|{_up_to(value)})"


def _from(value: Decimal) -> str:
    """Numbers without a sign that are not less than one that is not negative."""
    _, whole, fraction = _parts(value)
    parts = [f"{_natural(whole + 1, None)}{DIGITS}"]
    if not fraction:
        parts.append(f"{whole}{DIGITS}")
    for n, digit in enumerate(fraction):
        if digit != "9":
            parts.append(rf"{whole}\.{fraction[:n]}[{int(digit) + 1}-9][0-9]*")
    if fraction:
        parts.append(rf"{whole}\.{fraction}[0-9]*")
    return f"({'|'.join(parts)})"


def _up_to(value: Decimal) -> str:
    """Numbers without a sign that are not greater than one that is not negative."""
    _, whole, fraction = _parts(value)
    parts = [f"{_natural(0, whole - 1)}{DIGITS}"] if whole else []
    parts.append(rf"{whole}(\.0+)?")
    for n, digit in enumerate(fraction):
        if digit != "0":
            parts.append(rf"{whole}\.{fraction[:n]}[0-{int(digit) - 1}][0-9]*")
        parts.append(rf"{whole}\.{fraction[: n + 1]}0*")
    return f"({'|'.join(parts)})"


def _parts(value: Decimal) -> tuple[bool, int, str]:
    """The sign, the whole part and the digits after the point."""
    whole, _, fraction = f"{abs(value):f}".partition(".")
    return value < 0, int(whole), fraction.rstrip("0")
