"""What becomes of each field, block and tool that Anthropic's Messages API takes."""

from __future__ import annotations

from isthmus.server.http.support import Table, done, refused, without_effect

_OURS = "as for `/v1/chat/completions`; Anthropic does not have it"
_ONE_MODEL = "this server answers with the model that is named, or not at all"

FIELDS: Table = {
    "model": done("404 if this server does not have it"),
    "messages": done("roles `user`, `assistant` and, at any place, `system`; see below"),
    "max_tokens": done("of thoughts and answer together; at least 1"),
    "system": done("a text or text blocks"),
    "stop_sequences": done("up to 16, none empty"),
    "stream": done(),
    "temperature": done("0 to 2; 1 if not given"),
    "top_p": done(),
    "top_k": done(),
    "tools": done("see below"),
    "tool_choice": done("`auto`, `any`, `tool`, `none`; `any` and `tool` enforce the call's form"),
    "thinking": done(
        "`enabled`, `adaptive`, `disabled` set `enable_thinking` and `thinking` for chat templates "
        "that read them; `budget_tokens` closes a thought; `display: omitted` hides it"
    ),
    "output_config": done(
        "`format` enforces a JSON schema, but not beside tools that may be called; `effort` sets "
        "`reasoning_effort` for chat templates that read it; `task_budget` has no effect"
    ),
    "output_format": done("the older name of `output_config.format`"),
    "min_p": done(_OURS),
    "repeat_penalty": done(_OURS),
    "seed": done(_OURS),
    "ignore_eos": done(_OURS),
    "cache_control": without_effect(
        "here and in every block: beginnings are remembered by themselves"
    ),
    "context_management": without_effect("the conversation is read whole, as it is sent"),
    "metadata": without_effect("the key says whose request it is"),
    "service_tier": without_effect("there is one tier"),
    "speed": without_effect("there is one speed"),
    "diagnostics": without_effect("`usage.cache_read_input_tokens` tells what was remembered"),
    "extra_body": without_effect("a client's own options, which it sends by mistake"),
    "container": refused("this server runs no code for a model"),
    "inference_geo": refused("this server computes where it stands"),
    "mcp_servers": refused("this server calls no MCP servers: give their tools as `tools`", []),
    "fallbacks": refused(_ONE_MODEL),
    "fallback_credit_token": refused(_ONE_MODEL),
    "billing_policy": refused("this server bills nobody"),
    "thread": refused("send the whole conversation: its beginning is remembered by itself"),
    "compaction": refused("this server summarises no conversation"),
}
"""Fields of a request."""

BLOCKS: Table = {
    "text": done("texts of one message are joined, by a line break if there is none"),
    "tool_use": done("in a message of `assistant`"),
    "tool_result": done(
        "in a message of `user`: a text or text blocks; `is_error` puts `Error: ` before it"
    ),
    "thinking": done("in a message of `assistant`; see `signature` above"),
    "tool_reference": done("in a `tool_result`: the model reads the tool's name"),
    "redacted_thinking": without_effect("only the server that wrote it can read it"),
    "image": done(
        "in a message of `user`: a PNG, JPEG or WebP in base64, or a URL if `media_hosts` allows "
        "it, if the model has a projector"
    ),
    "document": refused("the models of this server read text: send a document's text as text"),
    "search_result": refused("send what was found as text"),
    "container_upload": refused("this server runs no code for a model"),
    "server_tool_use": refused("this server has no tools of its own"),
    "web_search_tool_result": refused("this server has no tools of its own"),
    "web_fetch_tool_result": refused("this server has no tools of its own"),
    "code_execution_tool_result": refused("this server has no tools of its own"),
    "bash_code_execution_tool_result": refused("this server has no tools of its own"),
    "text_editor_code_execution_tool_result": refused("this server has no tools of its own"),
    "tool_search_tool_result": refused("this server has no tools of its own"),
    "compaction": refused("this server summarises no conversation"),
    "fallback": refused(_ONE_MODEL),
    "tool_addition": refused("give all tools at once, as `tools`"),
    "tool_removal": refused("give all tools at once, as `tools`"),
    "mcp_tool_use": refused("this server has no tools of its own"),
    "mcp_tool_result": refused("this server has no tools of its own"),
}
"""Blocks of a message's `content`, by their type."""

_YOURS = "give it as a tool of type custom with its input_schema, and run it yourself"

TOOLS: Table = {
    "custom": done("which is also a tool without a type"),
    "web_search_*": refused("this server has no tools of its own, and does not search the web"),
    "web_fetch_*": refused("this server has no tools of its own, and fetches nothing"),
    "code_execution_*": refused("this server runs no code for a model"),
    "tool_search_tool_*": refused("this server has no tools of its own: give all tools at once"),
    "mcp_toolset": refused("this server calls no MCP servers"),
    "advisor_*": refused(_ONE_MODEL),
    "bash_*": refused(_YOURS),
    "text_editor_*": refused(_YOURS),
    "memory_*": refused(_YOURS),
    "computer_*": refused(_YOURS),
    "browser_toolset_*": refused(_YOURS),
}
"""Kinds of tools, by their type; `*` is a date."""

TOOL_FIELDS: Table = {
    "name": done(),
    "description": done(),
    "input_schema": done(),
    "type": done("`custom` or null"),
    "cache_control": without_effect("see above"),
    "strict": done("a call that must be made is refused if its schema cannot be enforced whole"),
    "defer_loading": without_effect("the model is told of every tool at once"),
    "eager_input_streaming": without_effect("input is streamed as it comes in any case"),
    "allowed_callers": without_effect("the model calls tools, and no code does"),
    "input_examples": without_effect("chat templates show none"),
}
"""Fields of a tool."""

MESSAGE_TABLES = {
    "": FIELDS,
    "system[].type": BLOCKS,
    "messages[].content[].type": BLOCKS,
    "messages[].content[].content[].type": {
        **BLOCKS,
        "image": refused("a tool's result is text here: send pictures in a message of `user`"),
    },
    "tools[]": TOOL_FIELDS,
    "tools[].type": TOOLS,
}
"""By the place that they are about, for those who read bodies."""

TABLES = {
    "field": FIELDS,
    "block": BLOCKS,
    "kind of tool": TOOLS,
    "field of a tool": TOOL_FIELDS,
}
"""All of them, as docs/server.md has them."""
