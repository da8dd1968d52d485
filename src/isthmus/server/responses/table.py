"""What becomes of each field of a request, of each kind of item and of each tool: one table.

Requests are judged by it, docs/server.md shows it, and a test holds both to the types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class How(Enum):
    """What becomes of something that a request may have."""

    DONE = "done"
    ACCEPTED = "without effect"
    LEFT_OUT = "left out, with a warning"
    REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    how: How
    said: str
    """What is done, or why nothing is."""


def _done(said: str) -> Row:
    return Row(How.DONE, said)


def _accepted(said: str) -> Row:
    return Row(How.ACCEPTED, said)


def _left_out(said: str) -> Row:
    return Row(How.LEFT_OUT, said)


def _refused(said: str) -> Row:
    return Row(How.REFUSED, said)


FIELDS: Mapping[str, Row] = {
    "model": _done("a model of this server; the responses of one chain may have different models"),
    "input": _done("a text, or items"),
    "instructions": _done("a system message before all items; not inherited by what continues it"),
    "previous_response_id": _done("goes on from a stored response, as often as one likes"),
    "conversation": _done("an id or `{id}`; not together with `previous_response_id`"),
    "store": _done("true by default; with false nothing is kept"),
    "background": _done("goes on without its caller; needs `store`"),
    "stream": _done("events, each with its `sequence_number`"),
    "stream_options": _accepted("no event is padded, whatever `include_obfuscation` says"),
    "include": _done(
        "`reasoning.encrypted_content`, `message.output_text.logprobs`; all others are about tools "
        "that this server does not have, and add nothing"
    ),
    "tools": _done("see the kinds of tools below"),
    "tool_choice": _done("`none`, `auto`, `required`, a `function`, a `custom`, `allowed_tools`"),
    "parallel_tool_calls": _done("false allows one call"),
    "text": _done(
        "`format`: `text`, `json_object`, `json_schema`, unless a tool must be called; with it "
        "the model calls none by itself; no effect: `verbosity`"
    ),
    "reasoning": _done(
        "`effort` goes to the chat template; with `summary`, or `generate_summary`, thoughts are "
        "told as one, whole; no effect: `context`, `mode`"
    ),
    "max_output_tokens": _done("thoughts included; by default the server's `max_tokens`"),
    "temperature": _done("0 to 2; 1 by default"),
    "top_p": _done("1 by default"),
    "top_logprobs": _done("0 to 20, with `message.output_text.logprobs` in `include`"),
    "truncation": _done("`auto` leaves out the oldest turns that do not fit; else 400"),
    "metadata": _done("up to 16 pairs, told again"),
    "max_tool_calls": _accepted("counts tools that a server runs; this one runs none"),
    "service_tier": _accepted("there is one; told is `default`"),
    "prompt_cache_key": _accepted("what prompts have in common is found by itself"),
    "prompt_cache_options": _accepted("the same"),
    "prompt_cache_retention": _accepted("the same"),
    "safety_identifier": _accepted("told again"),
    "user": _accepted("told again"),
    "client_metadata": _accepted("what Codex says of itself"),
    "background_options": _accepted("a background response begins as soon as there is a place"),
    "seed": _done("ours: the same request with the same seed has the same answer"),
    "top_k": _done("ours, as in chat completions"),
    "min_p": _done("ours, as in chat completions"),
    "repeat_penalty": _done("ours, as in chat completions"),
    "logit_bias": _done("ours, as in chat completions"),
    "ignore_eos": _done("ours, as in chat completions"),
    "grammar": _done("ours, as in chat completions: GBNF that the answer follows"),
    "chat_template_kwargs": _done("ours, as in chat completions"),
    "thinking_budget": _done("ours, as in chat completions: tokens of a thought"),
    "prompt": _refused("prompts are not kept here: send the text"),
    "moderation": _refused("nothing here moderates"),
    "context_management": _refused("nothing is compacted: use `truncation`"),
    "access_programs": _refused("there are none"),
    "image": _refused("models read no images here"),
    "modalities": _refused("answers are texts"),
    "audio": _refused("answers are texts"),
}
"""By the name of the field. A field that is not here is refused too."""

ITEMS: Mapping[str, Row] = {
    "message": _done(
        "of a user, system, developer or assistant; a text, or parts `input_text`, `output_text`, "
        "`refusal`; `type` may be absent"
    ),
    "function_call": _done("with `namespace`"),
    "function_call_output": _done("a text, or parts of text"),
    "custom_tool_call": _done("as a call with one argument, `input`"),
    "custom_tool_call_output": _done("a text, or parts of text"),
    "reasoning": _done("its `content`, `encrypted_content` or `summary`, whichever it has first"),
    "item_reference": _done("an item of a stored response or conversation"),
    "additional_tools": _done("tools, as those of `tools`"),
}
"""By `type`. All other items, images, audio and files are refused."""

TOOLS: Mapping[str, Row] = {
    "function": _done("`strict` or not: if a call is required, its arguments follow the schema"),
    "custom": _done(
        "a function with one text, `input`; a grammar is told to the model, and enforced if "
        "`tool_choice` names the tool"
    ),
    "namespace": _done("its tools, as NAMESPACE__NAME to the model and apart to the caller"),
    "web_search": _left_out("the server reaches nothing"),
    "web_search_preview": _left_out("the server reaches nothing"),
    "file_search": _left_out("there are no vector stores"),
    "code_interpreter": _left_out("there is none"),
    "image_generation": _left_out("answers are texts"),
    "mcp": _left_out("the server reaches nothing; agents as clients reach MCP servers themselves"),
    "computer": _left_out("models read no images here"),
    "computer_use_preview": _left_out("models read no images here"),
    "local_shell": _left_out("models here are not trained for it: offer a function"),
    "shell": _left_out("models here are not trained for it: offer a function"),
    "apply_patch": _left_out("models here are not trained for it: offer a custom tool"),
    "tool_search": _left_out("all tools are offered at once"),
    "programmatic_tool_calling": _left_out("calls are told to the caller"),
}
"""By `type`, without the date that some have. Others are refused."""


def kind_of_tool(name: str) -> str:
    """The key in TOOLS of a tool's `type`: `web_search_2025_08_26` is `web_search`."""
    dated = name.rstrip("0123456789_")
    return name if name in TOOLS else dated


def render_table() -> str:
    """The table as docs/server.md has it."""
    parts = [("field", FIELDS), ("item", ITEMS), ("tool", TOOLS)]
    return "\n".join(_rendered(title, rows) for title, rows in parts)


def _rendered(title: str, rows: Mapping[str, Row]) -> str:
    lines = [f"| {title} | | |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {row.how.value} | {row.said} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"
