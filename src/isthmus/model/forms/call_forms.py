"""The ways to write calls that are known, as data. A template's is the first whose signs it has."""

from __future__ import annotations

from isthmus.model.forms.channels import Channels
from isthmus.model.forms.choice import Choice
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.named_calls import NamedCalls
from isthmus.model.forms.python_calls import PythonCalls
from isthmus.model.forms.recognition import CallForm, Signs, signs
from isthmus.model.forms.values import BARE, ESCAPE
from isthmus.model.forms.xml_calls import ANY, BY_SCHEMA, TEXT, XmlCalls


def _dsml(section: str) -> XmlCalls:
    return XmlCalls(
        section=(f"<｜DSML｜{section}>",),
        section_ends=f"</｜DSML｜{section}>",
        call='<｜DSML｜invoke name="',
        name_ends='">',
        parameter='<｜DSML｜parameter name="',
        key_ends=(
            ('" string="true">', TEXT),
            ('" string="false">', ANY),
            ('">', BY_SCHEMA),
        ),
        parameter_ends="</｜DSML｜parameter>",
        call_ends="</｜DSML｜invoke>",
    )


def _functions(section: str, padded: bool) -> XmlCalls:
    return XmlCalls(
        section=(f"<{section}>",),
        section_ends=f"</{section}>",
        call="<function=",
        name_ends=">",
        parameter="<parameter=",
        key_ends=((">", BY_SCHEMA),),
        parameter_ends="</parameter>",
        call_ends="</function>",
        padded=padded,
        between="\n",
        one_call=True,
    )


def _keys(prefix: str, name_ends: str = "", section: str = "") -> XmlCalls:
    return XmlCalls(
        section=(f"<{section}>",) if section else (),
        section_ends=f"</{section}>" if section else "",
        call=f"<{prefix}tool_call>",
        name_ends=name_ends,
        parameter=f"<{prefix}arg_key>",
        key_ends=((f"</{prefix}arg_key>", BY_SCHEMA),),
        value=f"<{prefix}arg_value>",
        parameter_ends=f"</{prefix}arg_value>",
        call_ends=f"</{prefix}tool_call>",
        after_call="\n" if section else "",
        between="" if section else "\n",
    )


_CALLS_JSON = '{"name": "f", "arguments": {"k": "v"}}'
_KEYED = "\n<{0}arg_key>k</{0}arg_key>\n<{0}arg_value>v</{0}arg_value>\n"
_CALL_BEGIN, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

CALLS: tuple[CallForm, ...] = (
    CallForm(
        "harmony",
        "gpt-oss",
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"k": "v"}<|call|>',
        Channels(),
        signs("<|channel|>", "<|message|>"),
    ),
    CallForm(
        "gemma4",
        "Gemma 4",
        '<|tool_call>call:f{k:<|"|>v<|"|>}<tool_call|>',
        NamedCalls(call="<|tool_call>", prefix="call:", ends="<tool_call|>", notation=BARE),
        signs("<|tool_call>"),
    ),
    CallForm(
        "functiongemma",
        "FunctionGemma",
        "<start_function_call>call:f{k:<escape>v<escape>}<end_function_call>",
        NamedCalls(
            call="<start_function_call>",
            prefix="call:",
            ends="<end_function_call>",
            notation=ESCAPE,
        ),
        signs("<start_function_call>"),
    ),
    CallForm(
        "deepseek-dsml",
        "DeepSeek V3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        _dsml("function_calls"),
        signs("｜DSML｜", "function_calls"),
    ),
    CallForm(
        "deepseek-dsml-tools",
        "DeepSeek V4",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        _dsml("tool_calls"),
        signs("｜DSML｜"),
    ),
    CallForm(
        "deepseek-v3",
        "DeepSeek V3 and R1",
        f"{_CALLS_BEGIN}{_CALL_BEGIN}function<｜tool▁sep｜>f\n"
        f'```json\n{{"k": "v"}}\n```{_CALL_END}{_CALLS_END}',
        NamedCalls(
            section=(_CALLS_BEGIN,),
            section_ends=_CALLS_END,
            call=_CALL_BEGIN,
            prefix="function<｜tool▁sep｜>",
            after_name="\n",
            middle=("```json",),
            before="\n",
            after="\n```",
            ends=_CALL_END,
            between="\n",
        ),
        signs(_CALL_BEGIN, "```json"),
    ),
    CallForm(
        "deepseek-v3.1",
        "DeepSeek V3.1",
        f'{_CALLS_BEGIN}{_CALL_BEGIN}f<｜tool▁sep｜>{{"k": "v"}}{_CALL_END}{_CALLS_END}',
        NamedCalls(
            section=(_CALLS_BEGIN,),
            section_ends=_CALLS_END,
            call=_CALL_BEGIN,
            middle=("<｜tool▁sep｜>",),
            ends=_CALL_END,
        ),
        signs(_CALL_BEGIN),
    ),
    CallForm(
        "kimi-k2",
        "Kimi K2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        '<|tool_call_argument_begin|>{"k": "v"}<|tool_call_end|><|tool_calls_section_end|>',
        NamedCalls(
            section=("<|tool_calls_section_begin|>",),
            section_ends="<|tool_calls_section_end|>",
            call="<|tool_call_begin|>",
            prefix="functions.",
            numbered=True,
            middle=("<|tool_call_argument_begin|>",),
            ends="<|tool_call_end|>",
        ),
        signs("<|tool_call_argument_begin|>"),
    ),
    CallForm(
        "minimax-m2",
        "MiniMax M2",
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="k">v</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        XmlCalls(
            section=("<minimax:tool_call>",),
            section_ends="</minimax:tool_call>",
            call='<invoke name="',
            name_ends='">',
            parameter='<parameter name="',
            key_ends=(('">', BY_SCHEMA),),
            parameter_ends="</parameter>",
            call_ends="</invoke>",
        ),
        signs("<minimax:tool_call>"),
    ),
    CallForm(
        "seed",
        "Seed-OSS",
        "<seed:tool_call>\n<function=f>\n<parameter=k>v</parameter>\n</function>\n"
        "</seed:tool_call>",
        _functions("seed:tool_call", padded=False),
        signs("<seed:tool_call>"),
    ),
    CallForm(
        "longcat",
        "LongCat",
        f"<longcat_tool_call>f{_KEYED.format('longcat_')}</longcat_tool_call>",
        _keys("longcat_"),
        signs("<longcat_tool_call>"),
    ),
    CallForm(
        "hunyuan-keys",
        "Hunyuan 3",
        f"<tool_calls>\n<tool_call>f<tool_sep>{_KEYED.format('')}</tool_call>\n</tool_calls>",
        _keys("", name_ends="<tool_sep>", section="tool_calls"),
        signs("<tool_sep>", "<arg_key>"),
    ),
    CallForm(
        "glm",
        "GLM 4.5 and later",
        f"<tool_call>f{_KEYED.format('')}</tool_call>",
        _keys(""),
        signs("<arg_key>"),
    ),
    CallForm(
        "qwen3-coder",
        "Qwen 3 Coder, Qwen 3.5, Nemotron 3, Step 3.5",
        "<tool_call>\n<function=f>\n<parameter=k>\nv\n</parameter>\n</function>\n</tool_call>",
        _functions("tool_call", padded=True),
        signs("<function=", "<parameter="),
    ),
    CallForm(
        "function-tag",
        "Llama 3.1 with functions of one's own, Functionary 3.1",
        '<function=f>{"k": "v"}</function>',
        NamedCalls(call="<function=", middle=(">",), ends="</function>"),
        signs("<function="),
    ),
    CallForm(
        "mistral-id",
        "Mistral Small 3.2",
        '[TOOL_CALLS]f[CALL_ID]000000000[ARGS]{"k": "v"}',
        NamedCalls(call="[TOOL_CALLS]", call_id="[CALL_ID]", middle=("[ARGS]", ""), or_json=True),
        signs("[TOOL_CALLS]", "[CALL_ID]"),
    ),
    CallForm(
        "mistral-args",
        "Ministral 3, Devstral, Magistral",
        '[TOOL_CALLS]f[ARGS]{"k": "v"}',
        NamedCalls(call="[TOOL_CALLS]", middle=("[ARGS]", ""), or_json=True),
        signs("[TOOL_CALLS]", "[ARGS]"),
    ),
    CallForm(
        "mistral",
        "Mistral 7B v0.3, Nemo, Small 3.1, Large 2",
        f"[TOOL_CALLS][{_CALLS_JSON}]",
        NamedCalls(call="[TOOL_CALLS]", middle=("[ARGS]", ""), or_json=True, writes_list=True),
        signs("[TOOL_CALLS]"),
    ),
    CallForm(
        "command-r7b",
        "Command R7B, Command A",
        '<|START_ACTION|>[{"tool_name": "f", "parameters": {"k": "v"}}]<|END_ACTION|>',
        JsonCalls(
            opens=("<|START_ACTION|>",),
            closes="<|END_ACTION|>",
            name="tool_name",
            arguments="parameters",
            listed=True,
        ),
        signs("<|START_ACTION|>"),
    ),
    CallForm(
        "command-r",
        "Command R and R+",
        'Action: ```json\n[{"tool_name": "f", "parameters": {"k": "v"}}]```',
        JsonCalls(
            opens=("Action: ```json", "Action:```json"),
            closes="```",
            before="\n",
            name="tool_name",
            arguments="parameters",
            listed=True,
        ),
        signs("Action:", "tool_name"),
    ),
    CallForm(
        "nemotron",
        "Nemotron Nano 2, Llama Nemotron",
        f"<TOOLCALL>[{_CALLS_JSON}]</TOOLCALL>",
        JsonCalls(opens=("<TOOLCALL>",), closes="</TOOLCALL>", listed=True),
        signs("<TOOLCALL>"),
    ),
    CallForm(
        "lfm2",
        "LFM 2 and 2.5",
        '<|tool_call_start|>[f(k="v")]<|tool_call_end|>',
        PythonCalls(opens=("<|tool_call_start|>",), closes="<|tool_call_end|>"),
        (Signs(("<|tool_call_start|>",)), Signs(("<|tool_list_start|>",))),
    ),
    CallForm(
        "apertus",
        "Apertus",
        '<|tools_prefix|>[{"f": {"k": "v"}}]<|tools_suffix|>',
        JsonCalls(opens=("<|tools_prefix|>",), closes="<|tools_suffix|>", listed=True, keyed=True),
        signs("<|tools_prefix|>"),
    ),
    CallForm(
        "internlm",
        "InternLM 2 and 3",
        '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"k": "v"}}<|action_end|>',
        JsonCalls(
            opens=("<|action_start|><|plugin|>",),
            closes="<|action_end|>",
            before="\n",
            arguments="parameters",
        ),
        signs("<|action_start|>", "<|plugin|>"),
    ),
    CallForm(
        "phi4",
        "Phi 4 mini",
        f"<|tool_call|>[{_CALLS_JSON}]<|/tool_call|>",
        JsonCalls(opens=("<|tool_call|>", "functools"), closes="<|/tool_call|>", listed=True),
        (Signs(("<|/tool_call|>",)), Signs(("<|/tool|>",))),
    ),
    CallForm(
        "granite",
        "Granite 3",
        f"<|tool_call|>[{_CALLS_JSON}]",
        JsonCalls(opens=("<|tool_call|>", "<tool_call>"), listed=True),
        signs("<|tool_call|>"),
    ),
    CallForm(
        "granite-20b",
        "Granite 20B for functions",
        f"<function_call> {_CALLS_JSON}",
        JsonCalls(opens=("<function_call>",), before=" "),
        signs("<function_call>"),
    ),
    CallForm(
        "hunyuan",
        "Hunyuan A13B, Jamba, Apriel, MiniMax M1",
        f"<tool_calls>[{_CALLS_JSON}]</tool_calls>",
        JsonCalls(opens=("<tool_calls>",), closes="</tool_calls>", listed=True),
        signs("<tool_calls>"),
    ),
    CallForm(
        "hermes",
        "Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4, EXAONE 4, ERNIE 4.5",
        f"<tool_call>\n{_CALLS_JSON}\n</tool_call>",
        JsonCalls(opens=("<tool_call>",), closes="</tool_call>", before="\n", after="\n"),
        signs("<tool_call>"),
    ),
    CallForm(
        "olmo3",
        "OLMo 3",
        '<function_calls>\nf(k="v")\n</function_calls>',
        PythonCalls(opens=("<function_calls>",), closes="</function_calls>", listed=False),
        signs("<function_calls>"),
    ),
    CallForm(
        "gemma3",
        "Gemma 3 with a prompt for functions",
        '```tool_code\nf(k="v")\n```',
        PythonCalls(opens=("```tool_code",), closes="```", listed=False),
        signs("tool_code"),
    ),
    CallForm(
        "llama4",
        "Llama 4",
        '<|python_start|>[f(k="v")]<|python_end|>',
        Choice(
            JsonCalls(arguments="parameters", starts_bare=True, between="; "),
            PythonCalls(opens=("<|python_start|>",), closes="<|python_end|>", suffix=".call"),
            writes_json=False,
        ),
        signs("<|python_start|>"),
    ),
    CallForm(
        "llama3",
        "Llama 3.1 to 3.3",
        '{"name": "f", "parameters": {"k": "v"}}',
        Choice(
            JsonCalls(
                opens=("<|python_tag|>",), arguments="parameters", starts_bare=True, between="; "
            ),
            PythonCalls(suffix=".call"),
        ),
        (Signs(("<|python_tag|>",)), Signs(('{"name": function name, "parameters":',))),
    ),
    CallForm(
        "python-list",
        "Llama 3.2 with a prompt for functions, ToolACE",
        '[f(k="v")]',
        PythonCalls(starts_bare=True),
        signs("[func_name1("),
    ),
)
