"""Conversations as models read them: the whole way from messages to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from isthmus import Limits, Model, Runtime
from isthmus.errors import ModelUnsupported, SettingsError, TemplateError
from tests.fuzz.parts import STRING, Parts
from tests.tiny_gguf import CHATML, TinyLlama

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}
TOOL_USE = "{{ tools | map(attribute='function') | map(attribute='name') | join }}" + CHATML
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    "{{ mode | default(1) }}{{ strftime_now('%Y') }}"
    "{% if add_generation_prompt %}<think>\n{% endif %}"
)
Load = Callable[..., Model]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


@pytest.fixture
def load(tmp_path: Path, runtime: Runtime) -> Load:
    """Loads a small model with templates by name; `usual` is the one without."""

    def loaded(**templates: str) -> Model:
        path = TinyLlama(with_tokenizer=True).write(tmp_path / f"{len(templates)}.gguf")
        parts = Parts.read(path.read_bytes())
        parts.pairs = [it for it in parts.pairs if b"chat_template" not in it.key]
        for name, source in templates.items():
            key = "tokenizer.chat_template" + (f".{name}" if name != "usual" else "")
            parts.put(key, STRING, source.encode())
        path.write_bytes(parts.write())
        return runtime.load_model(path)

    return loaded


def test_a_rendered_chat(load: Load) -> None:
    model = load(usual=THINKS)
    found = model.render_chat([USER], now=datetime(2031, 1, 1), variables={"mode": 2})
    assert found.text == "<|im_start|>hello<|im_end|>22031<think>\n"
    assert found.ids == model.tokenizer.encode(found.text, add_special=True, parse_special=True)
    assert found.opens_thought
    assert found.warnings == ()
    assert model.chat_tokens([USER], now=datetime(2031, 1, 1), variables={"mode": 2}) == found.ids
    assert model.format_chat([USER]).endswith("12024<think>\n")
    assert model.format_chat([USER], add_generation_prompt=False).endswith("12024")


def test_warnings_and_seams_do_not_show(load: Load) -> None:
    model = load(usual=CHATML)
    said = {"role": "user", "content": "<|im_end|> im_end"}
    found = model.render_chat([said], tools=[TOOL], variables={"volume": 11})
    assert "<|im_start|>user\n<|im_end|> im_end<|im_end|>" in found.text
    assert found.ids.count(2) == 1
    assert not found.opens_thought
    assert [it.rpartition(" ")[2] for it in found.warnings] == ["them.", "'volume'."]
    assert model.render_chat([said], tools=[]).warnings == ()


def test_tools_choose_the_template(load: Load) -> None:
    model = load(usual=CHATML, tool_use=TOOL_USE, rag="{{ raise_exception('no') }}")
    assert model.format_chat([USER], tools=[TOOL]).startswith("add<|im_start|>")
    assert model.format_chat([USER]).startswith("<|im_start|>")
    assert model.format_chat([USER], tools=[]).startswith("<|im_start|>")
    assert model.chat_templates.others == ("rag",)


def test_a_template_called_default(load: Load) -> None:
    model = load(default=CHATML, rag=TOOL_USE)
    assert model.format_chat([USER], tools=[TOOL]).startswith("<|im_start|>")


def test_no_template_for_a_conversation(load: Load) -> None:
    model = load(tool_use=TOOL_USE)
    assert model.has_chat_template
    assert model.format_chat([USER], tools=[TOOL]).startswith("add")
    with pytest.raises(TemplateError, match="'tool_use', and none called 'default'"):
        model.format_chat([USER])


def test_a_template_that_does_not_compile_fails_when_it_is_chosen(load: Load) -> None:
    model = load(usual=CHATML, tool_use="{% if %}")
    assert model.format_chat([USER]).startswith("<|im_start|>")
    with pytest.raises(TemplateError, match="not usable"):
        model.format_chat([USER], tools=[TOOL])


def test_models_without_a_template(load: Load) -> None:
    model = load()
    assert not model.has_chat_template
    with pytest.raises(ModelUnsupported, match="no chat template"):
        model.render_chat([USER])


def test_variables_shadow_nothing(load: Load) -> None:
    model = load(usual=CHATML)
    for name in ("messages", "tools", "bos_token", "add_generation_prompt"):
        for ask in (model.format_chat, model.render_chat, model.chat_tokens):
            given: Any = ask
            with pytest.raises(SettingsError, match=name):
                given([USER], variables={name: "x"})


def test_a_guests_template_has_the_clock_of_the_guest(load: Load, runtime: Runtime) -> None:
    """Which stands still but for its own readings, so a replay renders the same."""
    model = load(usual=CHATML)
    times, format_chat = [], model.format_chat

    def noted(*args: Any, now: datetime, **kwargs: Any) -> str:
        times.append(now)
        return format_chat(*args, now=now, **kwargs)

    model.format_chat = noted  # type: ignore[method-assign]
    began = datetime(2031, 5, 6, 7, 8, 9)
    clock_ns = int(began.replace(tzinfo=timezone.utc).timestamp()) * 10**9
    for _ in range(2):
        limits = Limits(tokens_out=1)
        given = {"models": {"default": model}, "clock_ns": clock_ns, "limits": limits}
        with runtime.spawn("chat", **given) as actor:
            actor.send("hello")
    assert times
    assert {it.replace(microsecond=0) for it in times} == {began}
    assert times[: len(times) // 2] == times[len(times) // 2 :]
