"""Which form a chat template is written for: small templates in the shapes of the real ones."""

from __future__ import annotations

import pytest

from isthmus.model.forms import PLAIN, recognised
from isthmus.model.forms.call_forms import CALLS
from isthmus.model.forms.thought_forms import THOUGHTS

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}CALL{% endfor %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
)
TEMPLATES = {
    "harmony": "{{ '<|start|>assistant to=functions.' + c.function.name + '<|channel|>commentary "
    "json<|message|>' + c.function.arguments|tojson + '<|call|>' }}",
    "gemma4": "{{ '<|tool_call>call:' + c.function.name + '{' }}{{ args }}{{ '}<tool_call|>' }}",
    "functiongemma": "{{ '<start_function_call>call:' + c.name + '{' }}k:<escape>v<escape>"
    "{{ '}<end_function_call>' }}",
    "deepseek-dsml": "{% set dsml = '｜DSML｜' %}{{ '<' + dsml + 'function_calls>' }}"
    "{{ '<' + dsml + 'invoke name=\"' + c.name + '\">' }}",
    "deepseek-dsml-tools": "{% set d = '｜DSML｜' %}{{ '<' + d + 'tool_calls>' }}",
    "deepseek-v3": "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + "
    "c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```<｜tool▁call▁end｜>' }}",
    "deepseek-v3.1": "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c.function.name + "
    "'<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' }}",
    "kimi-k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ c.id }}"
    "<|tool_call_argument_begin|>{{ c.function.arguments }}<|tool_call_end|>",
    "minimax-m2": "{% set begin = '<minimax:tool_call>' %}{{ begin }}<invoke name=\"{{ c.name }}\">"
    '<parameter name="{{ k }}">{{ v }}</parameter></invoke>',
    "seed": "<seed:tool_call>\n<function={{ c.name }}>\n<parameter={{ k }}>{{ v }}</parameter>\n"
    "</function>\n</seed:tool_call>",
    "longcat": "<longcat_tool_call>{{ c.name }}\n<longcat_arg_key>{{ k }}</longcat_arg_key>",
    "hunyuan-keys": "<tool_calls><tool_call>{{ c.name }}<tool_sep><arg_key>{{ k }}</arg_key>",
    "glm": "<tool_call>{{ c.name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>",
    "qwen3-coder": "{{ '<tool_call>\\n<function=' + c.name + '>\\n' }}"
    "{{ '<parameter=' + k + '>\\n' + v + '\\n</parameter>\\n' }}",
    "function-tag": "{{ '<|start_header_id|>' }}{{ '<function=' + c.name + '>' + c.arguments }}"
    "{{ '</function>' }}<|python_tag|>",
    "mistral-id": "{{ '[TOOL_CALLS]' + name + '[CALL_ID]' + c.id + '[ARGS]' + arguments }}",
    "mistral-args": "{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}",
    "mistral": "{{ '[TOOL_CALLS] [' }}{{ c.function|tojson }}{{ ']' + eos_token }}",
    "command-r7b": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": {{ n }}, '
    '"parameters": {{ p }}}]<|END_ACTION|>',
    "command-r": "Write 'Action:' followed by a json-formatted list of actions ... "
    '"tool_name": title of the tool',
    "nemotron": "{{ '<TOOLCALL>[' }}{{ c|tojson }}{{ ']</TOOLCALL>' }}",
    "lfm2": "{{ '<|tool_call_start|>[' + calls|join(', ') + ']<|tool_call_end|>' }}",
    "apertus": "{{ '<|tools_prefix|>[' }}{\"{{ c.name }}\": {{ c.arguments }}}<|tools_suffix|>",
    "internlm": "<|action_start|><|plugin|>\n{{ c|tojson }}<|action_end|>",
    "phi4": "{{ '<|tool|>' + tools + '<|/tool|>' }}{{ '<|tool_call|>' + c|tojson }}",
    "granite": "respond with <|tool_call|> followed by a JSON list of tools used",
    "granite-20b": "{{ '<function_call> ' + c|tojson }}",
    "hunyuan": "{{ '<tool_calls>[' }}{{ c.function|tojson }}{{ ']</tool_calls>' }}",
    "hermes": '{{ \'<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}{{ args }}'
    "{{ '}\\n</tool_call>' }}",
    "olmo3": "{{ '<function_calls>' + c + '</function_calls>' }}",
    "gemma3": "wrap the calls in ```tool_code\n{{ c }}\n```",
    "llama4": "{{ '<|header_start|>assistant<|header_end|>\\n\\n<|python_start|>' + c }}",
    "llama3": "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{{ '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{ '<|python_tag|>' }}",
    "python-list": "in the format of [func_name1(params_name1=params_value1), func_name2(params)]",
}


@pytest.mark.parametrize("row", CALLS, ids=lambda it: it.name)
def test_a_template_in_the_shape_of_the_real_one_is_recognised(row) -> None:
    form = recognised(CHATML.replace("CALL", TEMPLATES[row.name]))
    assert form.name.split("+")[0] == row.name
    assert form.calls == row.calls


def test_every_form_has_a_template() -> None:
    assert set(TEMPLATES) == {it.name for it in CALLS}


@pytest.mark.parametrize("row", THOUGHTS, ids=lambda it: it.name)
def test_a_template_with_thoughts_is_recognised(row) -> None:
    thought = row.thought
    said = f"{{% if m.reasoning_content %}}{thought.open_text}{{{{ r }}}}{thought.close_text}"
    assert recognised(CHATML + said).thought == thought


def test_calls_and_thoughts_are_recognised_apart() -> None:
    call, think = TEMPLATES["hermes"], "{% if '</think>' in content %}{% endif %}"
    assert recognised(CHATML.replace("CALL", call)).name == "hermes"
    assert recognised(CHATML.replace("CALL", call) + think).name == "hermes+think"
    assert recognised(CHATML + think).name == "think"


def test_a_template_without_either_is_plain() -> None:
    assert recognised(CHATML) == recognised("") == PLAIN


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("mistral-args", {"[TOOL_CALLS]", "[ARGS]"}),
        ("llama3", {"<|python_tag|>"}),
        ("harmony", {"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"}),
        ("gemma4", {"<|tool_call>", "<tool_call|>", '<|"|>'}),
        ("deepseek-dsml", {"｜DSML｜", "<｜DSML｜function_calls>"}),
        ("deepseek-v3.1", {"<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁calls▁end｜>"}),
        ("internlm", {"<|action_start|>", "<|plugin|>", "<|action_end|>"}),
        ("glm", {"<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}),
    ],
)
def test_controls_are_what_a_parser_must_see(name: str, texts: set[str]) -> None:
    assert texts <= recognised(TEMPLATES[name]).controls


def test_controls_of_a_thought_that_begins_with_a_word_have_the_token_alone() -> None:
    controls = recognised("<|channel>thought\n{{ t }}<channel|>").controls
    assert {"<|channel>", "<channel|>"} <= controls
