"""Cases of the corpus that are known to fail, and why. Who mends one takes it out of here."""

from __future__ import annotations

_ABORT = "wasmtime's C API aborts when it is asked for the type"
_LARGE = "compiling it takes more memory or time than it may"
_REGEX = "libstdc++'s regular expressions overflow the stack"
_TEMPLATE = "templates have no bounds"

KNOWN = {
    "modules": {
        "v128-export": _ABORT,
        "v128-import": _ABORT,
        "900000-functions": _LARGE,
        "3000-br-tables": _LARGE,
        "million-nested-loops": _LARGE,
        "100000-data-segments": _LARGE,
        "20000-exports": "a spawn is quadratic in exports",
        "endless-initialize": "initialising has no deadline",
        "5000-globals": "a snapshot holds fewer globals than a guest may have",
    },
    "gguf": {
        "empty-token": "libllama aborts",
        "spm-without-bytes": "libllama throws through C",
        "template-power": _TEMPLATE,
        "template-width": _TEMPLATE,
        "template-loops": _TEMPLATE,
        "template-macro": _TEMPLATE,
        "template-doubling": _TEMPLATE,
        "template-brackets": _TEMPLATE,
    },
    "snapshots": {"endless-replay": "replaying has no deadline"},
    "stores": dict.fromkeys(
        ("restore-beside-gc", "restore-beside-gc-again"), "gc removes packs while they are read"
    ),
    "http": {
        "latin-1": "a body that is not UTF-8 is answered with 500",
        "v128-guest": _ABORT,
        "5000-digit-key": "int() refuses so many digits",
        "100000-braces-in-a-tool": "RecursionError",
    },
    "prompts": {
        **{
            f"{pre}-{what}": _REGEX
            for pre in ("tekken", "gpt-4o", "deepseek-llm", "falcon", "default", "bloom", "llama4")
            for what in ("marks", "letters")
        },
        "seed-coder-marks": _REGEX,
        "combining": _REGEX,
        "surrogate": "UnicodeEncodeError",
    },
    "abi": {
        "softmax-rows-of-one": "work is counted by elements",
        "40000-empty-messages": "tokenising outlives the deadline",
    },
}
"""Reasons by surface and case."""
