"""The table of what Anthropic's Messages API takes, and what becomes of each part here.

`docs/server.md` shows it, refusals take their reasons from it, and a test holds it to the types of
`requests.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Support(Enum):
    """What becomes of a field, a block or a kind of tool."""

    DONE = "done"
    WITHOUT_EFFECT = "accepted without effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    support: Support
    said: str = ""
    """How it is done, why it has no effect, or why it is refused; the last is told to callers."""


def _done(name: str, said: str = "") -> Row:
    return Row(name, Support.DONE, said)


def _no_effect(name: str, said: str) -> Row:
    return Row(name, Support.WITHOUT_EFFECT, said)


def _refused(name: str, said: str) -> Row:
    return Row(name, Support.REFUSED, said)


_OURS = "as for `/v1/chat/completions`; Anthropic does not have it"
_ONE_MODEL = "this server answers with the model that is named, or not at all"

FIELDS: tuple[Row, ...] = (
    _done("model", "404 if this server does not have it"),
    _done("messages", "roles `user`, `assistant` and, at any place, `system`; see below"),
    _done("max_tokens", "of thoughts and answer together; at least 1"),
    _done("system", "a text or text blocks"),
    _done("stop_sequences", "up to 16, none empty"),
    _done("stream"),
    _done("temperature", "0 to 2; 1 if not given"),
    _done("top_p"),
    _done("top_k"),
    _done("tools", "see below"),
    _done("tool_choice", "`auto`, `any`, `tool`, `none`; `any` and `tool` enforce the call's form"),
    _done(
        "thinking",
        "`enabled`, `adaptive`, `disabled` set `enable_thinking` and `thinking` for chat templates "
        "that read them; `budget_tokens` closes a thought; `display: omitted` hides it",
    ),
    _done(
        "output_config",
        "`format` enforces a JSON schema, but not beside tools that may be called; `effort` sets "
        "`reasoning_effort` for chat templates that read it; `task_budget` has no effect",
    ),
    _done("output_format", "the older name of `output_config.format`"),
    _done("min_p", _OURS),
    _done("repeat_penalty", _OURS),
    _done("seed", _OURS),
    _done("ignore_eos", _OURS),
    _no_effect("cache_control", "here and in every block: beginnings are remembered by themselves"),
    _no_effect("context_management", "the conversation is read whole, as it is sent"),
    _no_effect("metadata", "the key says whose request it is"),
    _no_effect("service_tier", "there is one tier"),
    _no_effect("speed", "there is one speed"),
    _no_effect("diagnostics", "`usage.cache_read_input_tokens` tells what was remembered"),
    _no_effect("extra_body", "a client's own options, which it sends by mistake"),
    _refused("container", "this server runs no code for a model"),
    _refused("inference_geo", "this server computes where it stands"),
    _refused("mcp_servers", "this server calls no MCP servers: give their tools as `tools`"),
    _refused("fallbacks", _ONE_MODEL),
    _refused("fallback_credit_token", _ONE_MODEL),
    _refused("billing_policy", "this server bills nobody"),
    _refused("thread", "send the whole conversation: its beginning is remembered by itself"),
    _refused("compaction", "this server summarises no conversation"),
)
"""Fields of a request."""

BLOCKS: tuple[Row, ...] = (
    _done("text", "texts of one message are joined, by a line break if there is none"),
    _done("tool_use", "in a message of `assistant`"),
    _done(
        "tool_result",
        "in a message of `user`: a text or text blocks; `is_error` puts `Error: ` before it",
    ),
    _done("thinking", "in a message of `assistant`; see `signature` above"),
    _done("tool_reference", "in a `tool_result`: the model reads the tool's name"),
    _no_effect("redacted_thinking", "only the server that wrote it can read it"),
    _refused("image", "the models of this server read text: send no images"),
    _refused("document", "the models of this server read text: send a document's text as text"),
    _refused("search_result", "send what was found as text"),
    _refused("container_upload", "this server runs no code for a model"),
    _refused("server_tool_use", "this server has no tools of its own"),
    _refused("web_search_tool_result", "this server has no tools of its own"),
    _refused("web_fetch_tool_result", "this server has no tools of its own"),
    _refused("code_execution_tool_result", "this server has no tools of its own"),
    _refused("bash_code_execution_tool_result", "this server has no tools of its own"),
    _refused("text_editor_code_execution_tool_result", "this server has no tools of its own"),
    _refused("tool_search_tool_result", "this server has no tools of its own"),
    _refused("compaction", "this server summarises no conversation"),
    _refused("fallback", _ONE_MODEL),
    _refused("tool_addition", "give all tools at once, as `tools`"),
    _refused("tool_removal", "give all tools at once, as `tools`"),
    _refused("mcp_tool_use", "this server has no tools of its own"),
    _refused("mcp_tool_result", "this server has no tools of its own"),
)
"""Blocks of a message's `content`, by their type."""

_YOURS = "give it as a tool of type custom with its input_schema, and run it yourself"

TOOLS: tuple[Row, ...] = (
    _done("custom", "which is also a tool without a type"),
    _refused("web_search_*", "this server has no tools of its own, and does not search the web"),
    _refused("web_fetch_*", "this server has no tools of its own, and fetches nothing"),
    _refused("code_execution_*", "this server runs no code for a model"),
    _refused("tool_search_tool_*", "this server has no tools of its own: give all tools at once"),
    _refused("mcp_toolset", "this server calls no MCP servers"),
    _refused("advisor_*", _ONE_MODEL),
    _refused("bash_*", _YOURS),
    _refused("text_editor_*", _YOURS),
    _refused("memory_*", _YOURS),
    _refused("computer_*", _YOURS),
    _refused("browser_toolset_*", _YOURS),
)
"""Kinds of tools, by their type; `*` is a date."""

TOOL_FIELDS: tuple[Row, ...] = (
    _done("name"),
    _done("description"),
    _done("input_schema"),
    _done("type", "`custom` or null"),
    _no_effect("cache_control", "see above"),
    _no_effect("strict", "a call that must be made follows its schema in any case"),
    _no_effect("defer_loading", "the model is told of every tool at once"),
    _no_effect("eager_input_streaming", "input is streamed as it comes in any case"),
    _no_effect("allowed_callers", "the model calls tools, and no code does"),
    _no_effect("input_examples", "chat templates show none"),
)
"""Fields of a tool."""

SECTIONS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("field", FIELDS),
    ("block", BLOCKS),
    ("kind of tool", TOOLS),
    ("field of a tool", TOOL_FIELDS),
)
"""The whole table."""


def find(rows: tuple[Row, ...], name: str) -> Row | None:
    """The row of a name, or of one that ends differently after a `*`."""
    for row in rows:
        stem = row.name.removesuffix("*")
        if name == row.name or (stem != row.name and name.startswith(stem)):
            return row
    return None


def as_markdown() -> str:
    """The table as `docs/server.md` has it."""
    parts = []
    for title, rows in SECTIONS:
        parts.append(f"\n| {title} | what becomes of it | |\n| --- | --- | --- |\n")
        parts += [f"| `{row.name}` | {row.support.value} | {row.said} |\n" for row in rows]
    return "".join(parts) + "\n"
