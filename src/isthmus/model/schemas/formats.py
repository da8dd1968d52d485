"""Formats that are followed, as expressions of whole texts, and those that have to be named."""

from __future__ import annotations

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_ZONE = r"(?:[zZ]|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9a-fA-F]{1,4}"
_LOW = f"(?:{_HEX}:{_HEX}|{_IPV4})"
_IPV6 = "|".join(
    [
        f"(?:{_HEX}:){{6}}{_LOW}",
        f"::(?:{_HEX}:){{0,5}}{_LOW}",
        *(f"(?:{_HEX}(?::{_HEX}){{0,{n}}})::(?:{_HEX}:){{0,{4 - n}}}{_LOW}" for n in range(5)),
        f"(?:(?:{_HEX}:){{0,5}}{_HEX})?::{_HEX}",
        f"(?:(?:{_HEX}:){{0,6}}{_HEX})?::",
    ]
)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9\\-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_WORD = r"[a-zA-Z0-9!#$%&'*+\-/=?\x5e_`{|}\x7e]{1,64}"
_PIECE = r"(?:[a-zA-Z0-9\-._\x7e!$&'()*+,;=:@]|%[0-9a-fA-F]{2})"
_TIME = "[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S"
_DAYS = "[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D"
_UUID = "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_POINTER = r"(?:/(?:[^/\x7e\x00-\x1f\x7f]|\x7e[01])*)*"

FORMATS = {
    "date": _DATE,
    "time": f"{_CLOCK}{_ZONE}",
    "date-time": f"{_DATE}[tT]{_CLOCK}{_ZONE}",
    "duration": f"P(?:(?:{_DAYS})(?:T(?:{_TIME}))?|T(?:{_TIME})|[0-9]+W)",
    "email": rf"{_WORD}(?:\.{_WORD}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": _UUID,
    "uri": rf"[a-zA-Z][a-zA-Z0-9+\-.]*:(?://{_HOST}(?::[0-9]{{1,5}})?(?:/{_PIECE}*)*|{_PIECE}+)"
    rf"(?:\?(?:{_PIECE}|[/?])*)?(?:\x23(?:{_PIECE}|[/?])*)?",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]*)(?:\x23|{_POINTER})",
}
"""Each is narrow rather than wide: a date is one that is in the calendar, a host has four labels at
most."""

NOT_FOLLOWED = frozenset(
    (
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "regex",
        "uri-reference",
        "uri-template",
    )
)
"""Formats of JSON Schema that are named in a warning. All others are annotations."""
