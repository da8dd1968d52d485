"""wasi-nn, function by function and errno by errno, called by a guest in WebAssembly text."""

from __future__ import annotations

import json
import logging
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Limits
from isthmus.abi import Errno
from isthmus.errors import GuestInvalid
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.wasm.wasi_nn import NnErrno, nn_errno
from tests.attacks.proxy import PAGES
from tests.nn.guests import CONFIG, DIMS, HANDLE, NAME, NBYTES, OUT, TENSOR, TEXT, Nn

OK, INVALID, ENCODING, _, BUSY, RUNTIME, UNSUPPORTED, LARGE, NOT_FOUND, END, FULL, LONG, GONE = (
    NnErrno
)
GREEDY = {"temp": 0, "ctx_size": 256, "n_predict": 8}
PAST = PAGES * 65_536
"""The first byte after the memory, before anything was loaded."""


def greedy(nn: Nn, model: Model, text: str, n: int) -> list[int]:
    """What a guest says that decodes by itself, in a session of its own."""
    handle = nn.open_session(nn.open_model(), 1 << 20)
    (session,) = nn.actor.sessions
    ids = model.tokenizer.encode(text, add_special=True, parse_special=True)
    nn.write(TEXT, struct.pack(f"<{len(ids)}i", *ids))
    assert nn.call("prefill", handle, TEXT, len(ids)) == 0
    said = []
    for _ in range(n):
        said.append(int(session.logits.argmax()))
        assert nn.call("decode", handle, said[-1]) == 0
    assert nn.call("session_close", handle) == 0
    return said


def test_the_errno_of_each_of_ours() -> None:
    known = {it: nn_errno(it) for it in Errno}
    assert known[Errno.EFAULT] == known[Errno.EBADF] == known[Errno.EALIGN] == INVALID
    assert known[Errno.ENOMEM] == known[Errno.ELIMIT] == LARGE
    assert (known[Errno.ENOTSUP], known[Errno.ECONTEXT]) == (UNSUPPORTED, FULL)
    assert known[Errno.EIO] == RUNTIME


def test_compute_says_what_greedy_decoding_says(nn: Nn, model: Model) -> None:
    wanted = greedy(nn, model, "the isthmus", 8)
    context = nn.open(**GREEDY)
    assert nn.put(context, "the isthmus") == OK
    n_in = len(model.tokenizer.encode("the isthmus", add_special=True))
    assert nn.metadata(context)["input_tokens"] == n_in
    assert nn.nn("compute", context) == OK
    text = model.tokenizer.decode(wanted, render_special=True)
    assert nn.output(context) == text
    told = nn.metadata(context)
    assert (told["input_tokens"], told["output_tokens"]) == (n_in, 8)
    assert isinstance(told["llama_build_number"], int)
    assert told["llama_commit"]
    pieces = []
    for token in wanted:
        assert nn.nn("compute_single", context) == OK
        pieces.append(nn.output(context, single=True))
        assert pieces[-1] == model.tokenizer.decode([token], render_special=True)
    assert nn.output(context) == b"".join(pieces) == text
    assert nn.actor.counters.bytes_copied == 0


def test_a_context_is_used_again_and_again(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    said = []
    for text in ("the isthmus", "two seas", "two seas", "the isthmus"):
        assert nn.put(context, "something else") == OK
        assert nn.put(context, text) == OK
        assert nn.nn("compute", context) == OK
        said.append(nn.output(context))
    assert said[0] == said[3]
    assert said[1] == said[2] != said[0]
    assert nn.nn("compute_single", context) == OK
    assert nn.output(context, single=True)
    assert nn.nn("fini_single", context) == OK
    assert nn.output(context) == nn.output(context, single=True) == b""
    assert nn.nn("compute", context) == OK
    assert nn.output(context) == said[0]


@pytest.mark.parametrize("name", ["other", "preload:default", "../../etc/passwd", "", "default\0"])
def test_names_that_were_not_given_open_nothing(
    nn: Nn, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert nn.load(name)[0] == NOT_FOUND
    assert "was given default" in caplog.text
    nn.write(NAME, name.encode())
    assert nn.nn("load_by_name", NAME, len(name), HANDLE) == NOT_FOUND


def test_a_model_that_was_closed(runtime: Runtime, wasm: bytes, able: Path) -> None:
    other = runtime.load_model(able)
    nn = Nn(runtime, wasm, models={"default": other})
    other.close()
    assert nn.load()[0] == GONE
    nn.actor.close()


def test_load_takes_names_and_never_opens_paths(nn: Nn, able: Path) -> None:
    def load(*texts: bytes, encoding: int = 6, target: int = 0) -> int:
        at, builders = NAME, b""
        for text in texts:
            nn.write(at, text)
            builders += struct.pack("<II", at, len(text))
            at += len(text) + 8
        nn.write(CONFIG, builders + bytes(16))
        return nn.nn("load", CONFIG, len(texts), encoding, target, HANDLE)

    assert load(b"default") == OK
    first = nn.u32(HANDLE)
    assert load(b"preload:default", b'{"ctx-size": 256}', encoding=5, target=3) == OK
    assert nn.u32(HANDLE) == first
    assert load(b"preload:" + str(able).encode()) == NOT_FOUND
    assert load(b"GGUF\3\0\0\0") == UNSUPPORTED
    assert load(b"default", encoding=0) == load(b"default", encoding=7) == ENCODING
    assert load(b"default", target=4) == load() == INVALID
    assert load(*[b"default"] * 17) == INVALID
    assert load(b"\xff") == INVALID
    assert load(b"x" * 257) == INVALID
    assert nn.nn("load", PAST - 4, 1, 6, 0, HANDLE) == INVALID
    assert nn.nn("load", CONFIG, 1, 6, 0, PAST - 3) == INVALID


def test_the_same_name_is_the_same_graph_while_it_lives(nn: Nn) -> None:
    assert nn.load(ctx_size=256) == (OK, 0)
    assert nn.load(ctx_size="ignored, since it is open") == (OK, 0)
    assert nn.nn("load_by_name", NAME, 7, HANDLE) == OK
    assert nn.u32(HANDLE) == 0
    assert nn.nn("unload", 0) == OK
    assert nn.nn("unload", 0) == INVALID
    assert nn.load() == (OK, 1)


CONFIGS: list[tuple[Any, NnErrno]] = [
    (b"{", ENCODING),
    (b"[]", ENCODING),
    (b"\xff", ENCODING),
    (b"[" * 100_000, ENCODING),
    (b'{"temp": NaN}', ENCODING),
    (b"", OK),
    ({"prompt-template": 5, "n-gpu-layers": "x", "threads": -1, "a": {"b": []}}, OK),
    ({"ctx-size": None, "grammar": "", "mmproj": "", "typ-p": 1}, OK),
    ({"temp": -3, "top-p": -1, "repeat-penalty": -1, "top-k": -7, "top-p ": 9}, OK),
    ({"ctx-size": "256"}, INVALID),
    ({"ctx-size": True}, INVALID),
    ({"ctx-size": -1}, INVALID),
    ({"ctx-size": 2**40}, INVALID),
    ({"ctx-size": 256.5}, INVALID),
    ({"n-predict": 2**31}, INVALID),
    ({"temp": "hot"}, INVALID),
    ({"temp": 10**400}, INVALID),
    ({"top-p": 1.5}, INVALID),
    ({"min-p": 2}, INVALID),
    ({"batch-size": 0}, INVALID),
    ({"embedding": 1}, INVALID),
    ({"reverse-prompt": ["x"]}, INVALID),
    ({"grammar": "root ::= x", "json-schema": "{}"}, INVALID),
    ({"mmproj": "clip.gguf"}, UNSUPPORTED),
    ({"mmproj": 5}, INVALID),
    ({"image": "cat.png"}, UNSUPPORTED),
    ({"tts": True}, UNSUPPORTED),
    ({"typ-p": 0.5}, UNSUPPORTED),
    ({"xtc-probability": 0.1}, UNSUPPORTED),
    ({"xtc-threshold": 0.1, "dry-base": 2, "mirostat-eta": 0.2, "dynatemp-exponent": 2}, OK),
    ({"dry-multiplier": 0.8}, UNSUPPORTED),
    ({"mirostat": 2}, UNSUPPORTED),
    ({"dynatemp-range": 1}, UNSUPPORTED),
    ({"embd-normalize": 0}, UNSUPPORTED),
    ({"embd-normalize": -1}, OK),
]


@pytest.mark.parametrize(("config", "errno"), CONFIGS, ids=lambda it: str(it)[:40])
def test_configurations(nn: Nn, config: Any, errno: NnErrno) -> None:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    at = 1 << 20
    nn.write(NAME, b"default")
    nn.write(at, data)
    assert nn.nn("load_by_name_with_config", NAME, 7, at, len(data), HANDLE) == errno
    if errno != OK:
        assert nn.load() == (OK, 0)


def test_a_large_configuration(nn: Nn) -> None:
    nn.write(NAME, b"default")
    nbytes = (1 << 20) + 1
    assert nn.nn("load_by_name_with_config", NAME, 7, 1 << 20, nbytes, HANDLE) == LARGE


def test_a_refused_key_is_named_in_the_log(nn: Nn, caplog: pytest.LogCaptureFixture) -> None:
    assert nn.load(mmproj="clip.gguf")[0] == UNSUPPORTED
    assert "wasi-nn: mmproj is 'clip.gguf'" in caplog.text


def test_context_sizes(nn: Nn, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    most = model.hparams.n_ctx_train
    context = nn.open()
    (session,) = nn.actor.sessions
    assert session.n_ctx == min(4096, most)
    assert nn.change(context, ctx_size=256) == OK
    (session,) = nn.actor.sessions
    assert session.n_ctx == 256
    assert nn.change(context, ctx_size=10 * most) == OK
    assert f"takes {most}" in caplog.text


def test_what_a_context_must_be(nn: Nn) -> None:
    assert nn.nn("init_execution_context", 0, HANDLE) == INVALID
    _, graph = nn.load(**GREEDY)
    assert nn.nn("init_execution_context", graph + 1, HANDLE) == INVALID
    assert nn.nn("init_execution_context", graph, PAST * 2) == INVALID
    assert not nn.actor.sessions
    context = nn.init(graph)
    for name in ("compute", "compute_single"):
        assert nn.nn(name, context) == INVALID, "there is no input"
        assert nn.nn(name, context + 1) == INVALID
    assert nn.nn("fini_single", context + 1) == INVALID
    assert nn.nn("get_output", context + 1, 0, OUT, 64, NBYTES) == INVALID
    assert nn.nn("finalize_execution_context", context + 1) == INVALID
    assert nn.nn("finalize_execution_context", context) == OK
    assert not nn.actor.sessions
    assert nn.nn("get_output", context, 0, OUT, 64, NBYTES) == INVALID
    assert nn.init(graph) == context + 1


def test_tensors(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    for kind in range(6):
        nn.tensor(b"the sea", kind, (7, 9))
        assert nn.nn("set_input", context, 0, TENSOR) == OK
    for index, data, kind in ((0, b"x", 6), (2, b"x", 3), (0, b"\xff\xfe", 3)):
        nn.tensor(data, kind)
        assert nn.nn("set_input", context, index, TENSOR) == INVALID
    end = nn.actor.region.nbytes
    for words in ((DIMS, 1, 3, end - 3, 4), (end, 1, 3, DIMS, 4), (DIMS, 2**31, 3, DIMS, 4)):
        nn.write(TENSOR, struct.pack("<5I", *words))
        assert nn.nn("set_input", context, 0, TENSOR) == INVALID
    assert nn.nn("set_input", context, 0, end - 19) == INVALID
    nn.write(TENSOR, struct.pack("<5I", DIMS, 1, 3, 0, (1 << 20) + 1))
    assert nn.nn("set_input", context, 0, TENSOR) == LARGE
    assert nn.nn("compute", context) == OK, "the last good input is still there"


def test_outputs_and_small_buffers(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    assert nn.output(context) == nn.output(context, single=True) == b""
    assert nn.put(context, "the isthmus") == OK
    assert nn.nn("compute", context) == OK
    whole, end = nn.output(context), nn.actor.region.nbytes
    nn.write(OUT, b"\xaa" * 64)
    assert nn.nn("get_output", context, 0, OUT, len(whole) - 1, NBYTES) == LARGE
    assert nn.u32(NBYTES) == len(whole)
    assert nn.read(OUT, 64) == b"\xaa" * 64
    assert nn.nn("get_output", context, 0, OUT, len(whole), NBYTES) == OK
    assert nn.read(OUT, len(whole) + 1) == whole + b"\xaa"
    nn.write(NBYTES, bytes(4))
    for arguments in ((2, OUT, 64), (0, end - 4, 8), (0, OUT, 2**32 - 1)):
        assert nn.nn("get_output", context, *arguments, NBYTES) == INVALID
        assert nn.nn("get_output_single", context, *arguments, NBYTES) == INVALID
    assert nn.u32(NBYTES) == 0
    assert nn.nn("get_output", context, 0, OUT, 64, end - 3) == INVALID


def test_unloaded_contexts_can_only_be_read(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    assert nn.put(context, "the isthmus") == OK
    assert nn.nn("compute", context) == OK
    whole = nn.output(context)
    assert nn.nn("unload", 0) == OK
    assert not nn.actor.sessions
    assert nn.output(context) == whole
    assert nn.metadata(context)["output_tokens"] == 8
    assert nn.put(context, "more") == INVALID
    for name in ("compute", "compute_single", "fini_single"):
        assert nn.nn(name, context) == INVALID
    assert nn.nn("init_execution_context", 0, HANDLE) == INVALID


def test_five_rounds_of_load_and_unload_leave_memory_flat(nn: Nn) -> None:
    sizes = []
    for _ in range(5):
        contexts = [nn.open(**GREEDY) for _ in range(3)]
        for context in contexts:
            assert nn.put(context, "the sea") == OK
            assert nn.nn("compute", context) == OK
        sizes.append(nn.actor.region.nbytes)
        _, graph = nn.load()
        assert nn.nn("unload", graph) == OK
    assert len(set(sizes)) == 1


def test_the_ends_of_a_text(nn: Nn) -> None:
    context = nn.open(**GREEDY, grammar='root ::= "sea" "side"?')
    assert nn.put(context, "the") == OK
    assert nn.nn("compute", context) == OK
    whole = nn.output(context)
    assert whole.startswith((b"sea<|", b"seaside<|")), "with the end token's text"
    n = nn.metadata(context)["output_tokens"]
    codes = [nn.nn("compute_single", context) for _ in range(n + 1)]
    assert codes == [OK] * (n - 1) + [END, OK], "and then it begins anew"
    assert nn.nn("compute", context) == OK
    assert nn.change(context, grammar="", reverse_prompt="\0never") == OK
    assert nn.nn("compute", context) == OK
    free = nn.output(context)
    assert nn.change(context, reverse_prompt=free[:2].decode(errors="ignore")) == OK
    assert nn.nn("compute", context) == OK
    assert free[:2] in nn.output(context)
    assert len(nn.output(context)) < len(free)
    assert nn.change(context, n_predict=0) == OK
    assert nn.nn("compute", context) == OK
    assert nn.output(context) == b""


def test_json_schemas_and_bad_grammars(nn: Nn) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"]})
    context = nn.open(ctx_size=512, json_schema=schema, n_predict=200, temp=0)
    assert nn.put(context, "the") == OK
    assert nn.nn("compute", context) == OK
    told = nn.output(context).decode()
    assert json.loads(told[: told.index("<|")])["a"] == 5
    assert nn.change(context, json_schema="", grammar="no grammar") == OK
    assert nn.nn("compute", context) == INVALID
    assert nn.change(context, grammar="") == OK
    assert nn.nn("compute", context) == OK


def test_a_context_that_is_full(nn: Nn) -> None:
    context = nn.open(temp=0, ctx_size=16, ignore_eos=True)
    assert nn.put(context, "x" * 13) == OK
    n = nn.metadata(context)["input_tokens"]
    assert nn.nn("compute", context) == LONG
    assert nn.nn("compute_single", context) == LONG
    assert nn.put(context, "x" * (12 - (n - 13))) == OK
    assert nn.nn("compute", context) == FULL
    assert nn.metadata(context)["output_tokens"] == 5, "the last one is never decoded"
    codes = [nn.nn("compute_single", context) for _ in range(7)]
    assert codes == [OK] * 5 + [FULL, FULL]
    assert nn.nn("fini_single", context) == OK
    assert nn.nn("compute_single", context) == OK


def test_sampling_is_seeded(runtime: Runtime, model: Model, wasm: bytes) -> None:
    def say(**config: Any) -> list[bytes]:
        nn = Nn(runtime, wasm, models={"default": model})
        with nn.actor:
            context = nn.open(ctx_size=256, n_predict=8, **config)
            assert nn.put(context, "the") == OK
            said = []
            for _ in range(2):
                assert nn.nn("compute", context) == OK
                said.append(nn.output(context))
            return said

    first, second = say()
    assert [first, second] == say() == say(seed=-1) == say(seed=2**32 - 1)
    assert first != second, "the actor's random numbers go on"
    third, fourth = say(seed=5)
    assert third == fourth != first
    assert say(seed=6)[0] != third
    assert say(seed=5, presence_penalty=0.0, frequency_penalty=0.0)[0] == third
    assert say(seed=5, frequency_penalty=9.5, presence_penalty=9.5)[0] != third
    assert say(temp=1.5, top_p=0, seed=5) == say(temp=0)


def test_embeddings(nn: Nn, model: Model) -> None:
    context = nn.open(embedding=True, batch_size=64)
    assert not nn.actor.sessions
    assert nn.nn("compute", context) == INVALID
    assert nn.put(context, "the isthmus") == OK
    assert nn.nn("compute_single", context) == INVALID
    assert nn.nn("compute", context) == OK
    told = json.loads(nn.output(context))
    (wanted,) = model.embed(["the isthmus"])
    assert told["n_embedding"] == len(told["embedding"]) == model.hparams.n_embd
    assert told["embedding"] == pytest.approx(wanted.tolist(), rel=1e-6)
    assert nn.change(context, embd_normalize=-1) == OK
    assert nn.nn("compute", context) == OK
    plain = json.loads(nn.output(context))["embedding"]
    assert not math.isclose(math.hypot(*plain), 1.0, rel_tol=1e-3)
    assert nn.put(context, "x" * 80) == OK
    assert nn.nn("compute", context) == LONG
    assert nn.actor.counters.bytes_copied == 0
    assert nn.change(context, embedding=False, ctx_size=256, n_predict=2) == OK
    assert nn.nn("compute", context) == OK
    assert len(nn.actor.sessions) == 1


def test_a_model_that_makes_no_embeddings(runtime: Runtime, wasm: bytes, tiny: Path) -> None:
    nn = Nn(runtime, wasm, models={"default": runtime.load_model(tiny)})
    with nn.actor:
        _, graph = nn.load(embedding=True)
        assert nn.nn("init_execution_context", graph, HANDLE) == UNSUPPORTED


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ({"sessions": 1}, ("init_execution_context",)),
        ({"kv_nbytes": 1000}, ("init_execution_context",)),
        ({"memory_nbytes": PAST}, ("init_execution_context",)),
        ({"tokens": 5}, ("compute", "compute_single")),
        ({"tokens_in": 5}, ("compute", "compute_single")),
        ({"tokens_out": 3}, ("compute",)),
        ({"grammars": 0}, ("compute",)),
    ],
)
def test_limits(
    runtime: Runtime, model: Model, wasm: bytes, limits: dict[str, int], names: tuple[str, ...]
) -> None:
    nn = Nn(runtime, wasm, models={"default": model}, limits=Limits(**limits))
    with nn.actor:
        _, graph = nn.load(**GREEDY, grammar="root ::= [a-z]+")
        if "init_execution_context" in names:
            codes = [nn.nn("init_execution_context", graph, HANDLE) for _ in range(2)]
            assert codes[-1] == LARGE
            assert len(nn.actor.sessions) == int("sessions" in limits)
            return
        context = nn.init(graph)
        assert nn.put(context, "the isthmus") == OK
        for name in names:
            assert nn.nn(name, context) == LARGE


def test_memory_of_the_hosts_where_the_guest_opens_its_own_session(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    (session,) = nn.actor.sessions
    ptr = session.ptr
    assert nn.nn("finalize_execution_context", context) == OK
    assert nn.open_session(nn.open_model(), ptr) > 0
    assert nn.nn("init_execution_context", 0, HANDLE) == BUSY
    assert len(nn.actor.sessions) == 1


def test_sessions_that_the_guest_closes_or_destroys(nn: Nn) -> None:
    context = nn.open(**GREEDY)
    assert nn.put(context, "the isthmus") == OK
    assert nn.nn("compute_single", context) == OK
    (session,) = nn.actor.sessions
    kv = session.ptr + session.layout.kv_offset
    nn.write(kv, b"\xff" * session.layout.kv_nbytes)
    assert nn.nn("compute_single", context) == RUNTIME, "the logits are no numbers"
    handles = nn.actor.body.context.handles
    (number,) = [it for it in handles.numbers() if handles.get(it, object) is session]
    assert nn.call("session_close", number) == 0
    assert nn.nn("compute", context) == INVALID
    assert nn.nn("unload", 0) == OK


def test_what_is_logged(nn: Nn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    context = nn.open(**GREEDY, enable_log=True, stream_stdout=True)
    assert nn.put(context, "the isthmus") == OK
    assert nn.nn("compute", context) == OK
    assert "8 tokens out" in caplog.text
    said = [it for it in caplog.records if not it.getMessage().startswith("wasi-nn")]
    assert len(said) == 8, "a reactor's standard output is its log"


def test_outputs_of_contexts_that_were_unloaded_are_kept_for_a_while(nn: Nn) -> None:
    for _ in range(66):
        context = nn.open(embedding=True)
        _, graph = nn.load()
        assert nn.nn("unload", graph) == OK
    assert nn.output(context) == b""
    assert nn.nn("get_output", 0, 0, OUT, 64, NBYTES) == INVALID
    assert nn.nn("get_output", 2, 0, OUT, 64, NBYTES) == OK


def test_guests_with_a_64_bit_memory(runtime: Runtime) -> None:
    imported = '(import "wasi_ephemeral_nn" "compute" (func (param i32) (result i32)))'
    rest = """(memory (export "memory") i64 1)
      (func (export "on_message") (param i32) (result i32) (i32.const 0))"""
    with pytest.raises(GuestInvalid, match="exists for 32-bit memories only"):
        runtime.load_guest(bytes(wasmtime.wat2wasm(f"(module {imported} {rest})")))
    with runtime.spawn(bytes(wasmtime.wat2wasm(f"(module {rest})"))) as actor:
        assert actor.send("x").text == ""


def test_imports_of_another_type(runtime: Runtime) -> None:
    for kind, said in (
        ("(func (param i32 i32) (result i32))", r"compute is \(i32\) -> i32, not"),
        ("(global i32)", "is a function, not a global"),
    ):
        text = f"""(module (import "wasi_ephemeral_nn" "compute" {kind})
          (memory (export "memory") 1) (func (export "_start")))"""
        with pytest.raises(GuestInvalid, match=said):
            runtime.load_guest(bytes(wasmtime.wat2wasm(text)))
