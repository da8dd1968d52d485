"""`emit_token` does what token_flags, detokenize, emit and decode do one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from isthmus.abi import EmitFlag, Errno
from isthmus.config import Limits
from isthmus.runtime import Runtime
from tests.attacks.proxy import Proxy, proxy_wat
from tests.tiny_gguf import TinyLlama

SESSION, TEXT, IDS = 1 << 20, 64, 128
ROOM = 32
N_CTX = 256


def proxy_of(runtime: Runtime, folder: Path, *, named: bool = True, **limits: int) -> Proxy:
    """With a model (handle 1), and a session of 256 tokens (2) that holds one."""
    path = TinyLlama(n_layer=1, with_tokenizer=named).write(folder / "it.gguf")
    wasm = bytes(wasmtime.wat2wasm(proxy_wat()))
    proxy = Proxy(runtime, wasm, runtime.load_model(path), limits=Limits(**limits))
    proxy.open_session(proxy.open_model(), SESSION, N_CTX)
    proxy.write(IDS, (1).to_bytes(4, "little"))
    assert proxy.call("prefill", 2, IDS, 1) == 0
    return proxy


def tokens_of(proxy: Proxy) -> list[int]:
    return proxy.actor.sessions[0].tokens.tolist()


def n_said(proxy: Proxy) -> int:
    """Bytes that the last call emitted."""
    return proxy.actor.body.context.message.output_nbytes


@pytest.fixture
def proxy(null_runtime: Runtime, tmp_path: Path) -> Proxy:
    return proxy_of(null_runtime, tmp_path)


def test_it_says_and_appends_what_single_calls_would(proxy: Proxy) -> None:
    for token in (65, 70, 65):
        proxy.write(IDS, token.to_bytes(4, "little"))
        nbytes = proxy.call("detokenize", 1, IDS, 1, 0, TEXT, ROOM)
        text = proxy.read(TEXT, nbytes)
        assert text
        proxy.write(TEXT, bytes(ROOM))
        assert proxy.call("emit_token", 2, token, TEXT, ROOM) == nbytes
        assert proxy.read(TEXT, nbytes) == text
        assert n_said(proxy) == nbytes
        assert proxy.actor.body.context.message.tokens_out == 1
    assert tokens_of(proxy) == [1, 65, 70, 65]


def test_nothing_happens_for_a_token_that_ends_the_generation(proxy: Proxy) -> None:
    ends = next(it for it in range(400) if proxy.call("token_flags", 1, it) & 1)
    assert proxy.call("emit_token", 2, ends, TEXT, ROOM) == EmitFlag.END
    assert (tokens_of(proxy), n_said(proxy)) == ([1], 0)


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ((2, 65, TEXT, 0), 1),  # the room is too small: that is what it needs
        ((2, 1 << 30, TEXT, ROOM), -Errno.ETOKEN),
        ((2, 0xFFFF_FFFF, TEXT, ROOM), -Errno.ETOKEN),
        ((1, 65, TEXT, ROOM), -Errno.EBADF),
        ((2, 65, 0xFFFF_FFF0, ROOM), -Errno.EFAULT),
    ],
)
def test_a_call_that_is_refused_changes_nothing(
    proxy: Proxy, arguments: tuple[int, ...], result: int
) -> None:
    assert proxy.call("emit_token", *arguments) == result
    assert (tokens_of(proxy), n_said(proxy)) == ([1], 0)


def test_tokens_are_counted_for_the_message_that_asks(proxy: Proxy) -> None:
    for _ in range(2):
        assert proxy.call("emit_token", 2, 65, TEXT, ROOM) == 1
        assert proxy.call("decode", 2, 66) == 0
        message = proxy.actor.body.context.message
        assert (message.tokens_out, message.output_nbytes) == (1, 0)
    assert tokens_of(proxy) == [1, 65, 66, 65, 66]


def test_a_closed_session_takes_no_token(proxy: Proxy) -> None:
    assert proxy.call("emit_token", 2, 65, TEXT, ROOM) == 1
    assert proxy.call("session_close", 2) == 0
    for name, arguments in (("emit_token", (2, 65, TEXT, ROOM)), ("decode", (2, 65))):
        assert proxy.call(name, *arguments) == -Errno.EBADF
    proxy.write(IDS, (7).to_bytes(4, "little"))
    opened = proxy.open_session(1, SESSION, N_CTX)
    assert proxy.call("prefill", opened, IDS, 1) == 0
    assert proxy.call("emit_token", opened, 66, TEXT, ROOM) == 1
    assert tokens_of(proxy) == [7, 66]


def test_a_full_context_refuses_after_the_text_is_said(proxy: Proxy) -> None:
    proxy.write(IDS, b"".join((65).to_bytes(4, "little") for _ in range(N_CTX - 1)))
    assert proxy.call("prefill", 2, IDS, N_CTX - 1) == 0
    assert proxy.call("emit_token", 2, 65, TEXT, ROOM) == -Errno.ECONTEXT
    assert (len(tokens_of(proxy)), n_said(proxy)) == (N_CTX, 1)


def test_limits_hold(null_runtime: Runtime, tmp_path: Path) -> None:
    proxy = proxy_of(null_runtime, tmp_path, output_nbytes=0)
    assert proxy.call("emit_token", 2, 65, TEXT, ROOM) == -Errno.ELIMIT
    assert (tokens_of(proxy), n_said(proxy)) == ([1], 0)


def test_a_model_without_a_tokenizer_has_no_text(null_runtime: Runtime, tmp_path: Path) -> None:
    proxy = proxy_of(null_runtime, tmp_path, named=False)
    assert proxy.call("emit_token", 2, 65, TEXT, ROOM) == -Errno.ENOTSUP
    assert tokens_of(proxy) == [1]
