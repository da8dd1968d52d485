"""The generated files are those that abi/host.toml describes, and they agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from enum import IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from isthmus import abi

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
STRUCTS: dict[str, tuple[Struct, tuple[str, ...]]] = {
    "model_info": (abi.MODEL_INFO, abi.ModelInfo._fields),
    "chat_message": (abi.CHAT_MESSAGE, abi.ChatMessage._fields),
    "sampler": (abi.SAMPLER, abi.Sampler._fields),
    "tensor": (abi.TENSOR, abi.Tensor._fields),
    "candidate": (abi.CANDIDATE, abi.Candidate._fields),
    "step": (abi.STEP, abi.Step._fields),
    "media_part": (abi.MEDIA_PART, abi.MediaPart._fields),
    "operation": (abi.OPERATION, abi.Operation._fields),
}
CONSTANTS: dict[str, type[IntEnum | IntFlag]] = {
    "tokenize_flag": abi.TokenizeFlag,
    "detokenize_flag": abi.DetokenizeFlag,
    "chat_flag": abi.ChatFlag,
    "answer_flag": abi.AnswerFlag,
    "answer_part": abi.AnswerPart,
    "model_flag": abi.ModelFlag,
    "embed_flag": abi.EmbedFlag,
    "span_flag": abi.SpanFlag,
    "media_kind": abi.MediaKind,
    "part_kind": abi.PartKind,
    "token_flag": abi.TokenFlag,
    "emit_flag": abi.EmitFlag,
    "grammar_kind": abi.GrammarKind,
    "dtype": abi.Dtype,
    "op": abi.Op,
    "log_level": abi.LogLevel,
}


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    return tomllib.loads((ROOT / "abi/host.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def header() -> str:
    return (ROOT / "src/isthmus/sdk/c/isthmus.h").read_text(encoding="utf-8")


def test_generated_files_are_current() -> None:
    command = [sys.executable, str(ROOT / "tools/generate_abi.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_struct_is_known(source: dict[str, Any]) -> None:
    assert list(STRUCTS) == list(source["structs"])


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_sizes_agree(name: str, header: str) -> None:
    layout, fields = STRUCTS[name]
    wide = getattr(abi, f"{name.upper()}_64", None)
    asserted = re.findall(rf"sizeof\(isthmus_{name}_t\) == ([^,]+),", header)
    both = wide and f"(sizeof(void *) == 8 ? {wide.size} : {layout.size})"
    assert asserted == [both or str(layout.size)]
    if wide is not None:
        assert len(wide.unpack(bytes(wide.size))) == len(fields)
        aligned = Struct(f"@{wide.format.strip('<').replace('x', '')}0Q")
        assert aligned.size == wide.size, "C would lay it out otherwise"
    assert len(layout.unpack(bytes(layout.size))) == len(fields)
    assert Struct(layout.format.replace("<", "@")).size == layout.size, "C would add padding"


def test_host_functions_are_in_the_order_of_the_source(source: dict[str, Any]) -> None:
    listed = [
        (
            function["group"],
            function["name"],
            tuple((param["name"], param["type"]) for param in function["params"]),
            function["result"]["type"],
            tuple(abi.Errno[name] for name in function["errors"]),
        )
        for function in source["functions"]
    ]
    assert [
        (function.group, function.name, function.params, function.result, function.errors)
        for function in abi.HOST_FUNCTIONS
    ] == listed


def test_wasm_types() -> None:
    functions = {function.name: function for function in abi.HOST_FUNCTIONS}
    assert functions["session_open"].wasm_params == ("i32",) * 4
    assert functions["session_open"].wasm_result == "i32"
    assert functions["logits"].wasm_result == "i64"
    assert functions["clock_ns"].wasm_params == ()
    assert functions["session_open"].wasm_params_64 == ("i32", "i32", "i64", "i64")
    for function in abi.HOST_FUNCTIONS:
        assert {*function.wasm_params, function.wasm_result} <= {"i32", "i64"}


def test_header_declares_every_function_and_constant(header: str) -> None:
    imported = re.findall(r'^ISTHMUS_IMPORT\("(\w+)"\)$', header, re.MULTILINE)
    assert imported == [function.name for function in abi.HOST_FUNCTIONS]
    constants = {*re.findall(r"^ +ISTHMUS_(\w+ = \d+),$", header, re.MULTILINE)}
    expected = {f"{errno.name} = {errno.value}" for errno in abi.Errno}
    for name, group in CONSTANTS.items():
        prefix = name.removesuffix("_flag").removesuffix("_level").upper()
        expected |= {f"{prefix}_{member.name} = {member.value}" for member in group}
    assert constants == expected


def test_constants_and_errno(source: dict[str, Any]) -> None:
    assert {errno.name: errno.value for errno in abi.Errno} == {
        name: item["value"] for name, item in source["errno"].items()
    }
    assert set(abi.ERRNO_TEXT) == set(abi.Errno)
    assert list(CONSTANTS) == list(source["constants"])
    for name, group in CONSTANTS.items():
        assert issubclass(group, IntFlag) == name.endswith("_flag")
        values = {
            key: item["value"] for key, item in source["constants"][name].items() if key != "doc"
        }
        assert {member.name: member.value for member in group} == values
    assert (source["abi_version"], source["module"]) == (abi.ABI_VERSION, abi.MODULE)
