"""What becomes of each field of a request, of each kind of item and of each tool."""

from __future__ import annotations

from isthmus.server.http.support import Table, done, left_out, refused, without_effect

FIELDS: Table = {
    "model": done("a model of this server; the responses of one chain may have different models"),
    "input": done("a text, or items"),
    "instructions": done("a system message before all items; not inherited by what continues it"),
    "previous_response_id": done("goes on from a stored response, as often as one likes"),
    "conversation": done("an id or `{id}`; not together with `previous_response_id`"),
    "store": done("true by default; with false nothing is kept"),
    "background": done("goes on without its caller; needs `store`"),
    "stream": done("events, each with its `sequence_number`"),
    "stream_options": without_effect("no event is padded, whatever `include_obfuscation` says"),
    "include": done(
        "`reasoning.encrypted_content`, `message.output_text.logprobs`; all others are about tools "
        "that this server does not have, and add nothing"
    ),
    "tools": done("see the kinds of tools below"),
    "tool_choice": done("`none`, `auto`, `required`, a `function`, a `custom`, `allowed_tools`"),
    "parallel_tool_calls": done("false allows one call"),
    "text": done(
        "`format`: `text`, `json_object`, `json_schema`, unless a tool must be called; with it "
        "the model calls none by itself; no effect: `verbosity`"
    ),
    "reasoning": done(
        "`effort` goes to the chat template; with `summary`, or `generate_summary`, thoughts are "
        "told as one, whole; no effect: `context`, `mode`"
    ),
    "max_output_tokens": done("thoughts included; by default as many as fit into the context"),
    "temperature": done("0 to 2; 1 by default"),
    "top_p": done("1 by default"),
    "top_logprobs": done("0 to 20, with `message.output_text.logprobs` in `include`"),
    "truncation": done("`auto` leaves out the oldest turns that do not fit; else 400"),
    "metadata": done("up to 16 pairs, told again"),
    "max_tool_calls": without_effect("counts tools that a server runs; this one runs none"),
    "service_tier": without_effect("there is one; told is `default`"),
    "prompt_cache_key": without_effect("what prompts have in common is found by itself"),
    "prompt_cache_options": without_effect("the same"),
    "prompt_cache_retention": without_effect("the same"),
    "safety_identifier": without_effect("told again"),
    "user": without_effect("told again"),
    "client_metadata": without_effect("what Codex says of itself"),
    "background_options": without_effect(
        "a background response begins as soon as there is a place"
    ),
    "seed": done("ours: the same request with the same seed has the same answer"),
    "top_k": done("ours, as in chat completions"),
    "min_p": done("ours, as in chat completions"),
    "repeat_penalty": done("ours, as in chat completions"),
    "presence_penalty": done("ours, as in chat completions"),
    "frequency_penalty": done("ours, as in chat completions"),
    "logit_bias": done("ours, as in chat completions"),
    "ignore_eos": done("ours, as in chat completions"),
    "grammar": done("ours, as in chat completions: GBNF that the answer follows"),
    "chat_template_kwargs": done("ours, as in chat completions"),
    "thinking_budget": done("ours, as in chat completions: tokens of a thought"),
    "prompt": refused("prompts are not kept here: send the text"),
    "moderation": refused("nothing here moderates"),
    "context_management": refused("nothing is compacted: use `truncation`"),
    "access_programs": refused("there are none"),
    "image": refused("send pictures as `input_image`"),
    "modalities": refused("answers are texts"),
    "audio": refused("answers are texts"),
}
"""By the name of the field. A field that is not here is refused too."""

ITEMS: Table = {
    "message": done(
        "of a user, system, developer or assistant; a text, or parts `input_text`, `output_text`, "
        "`refusal`; `type` may be absent. Of a user also `input_image` (a PNG, JPEG or WebP as a "
        "data URI; a URL if `media_hosts` allows it), `input_audio` (a WAV in base64) and "
        "`input_file` (one of these as a data URI in `file_data`), if the model has a projector; "
        "not `file_id`"
    ),
    "function_call": done("with `namespace`"),
    "function_call_output": done("a text, or parts of text"),
    "custom_tool_call": done("as a call with one argument, `input`"),
    "custom_tool_call_output": done("a text, or parts of text"),
    "reasoning": done("its `content`, `encrypted_content` or `summary`, whichever it has first"),
    "item_reference": done("an item of a stored response or conversation"),
    "additional_tools": done("tools, as those of `tools`"),
}
"""By `type`. All other items are refused."""

TOOLS: Table = {
    "function": done(
        "if a call is required, its arguments follow the schema; with `strict`, one that cannot be "
        "enforced whole is refused"
    ),
    "custom": done(
        "a function with one text, `input`; a grammar is told to the model, and enforced if "
        "`tool_choice` names the tool"
    ),
    "namespace": done("its tools, as NAMESPACE__NAME to the model and apart to the caller"),
    "web_search": left_out("the server reaches nothing"),
    "web_search_preview": left_out("the server reaches nothing"),
    "file_search": left_out("there are no vector stores"),
    "code_interpreter": left_out("there is none"),
    "image_generation": left_out("answers are texts"),
    "mcp": left_out("the server reaches nothing; agents as clients reach MCP servers themselves"),
    "computer": left_out("models read no images here"),
    "computer_use_preview": left_out("models read no images here"),
    "local_shell": left_out("models here are not trained for it: offer a function"),
    "shell": left_out("models here are not trained for it: offer a function"),
    "apply_patch": left_out("models here are not trained for it: offer a custom tool"),
    "tool_search": left_out("all tools are offered at once"),
    "programmatic_tool_calling": left_out("calls are told to the caller"),
}
"""By `type`, without the date that some have. Others are refused."""

TABLES = {"field": FIELDS, "item": ITEMS, "tool": TOOLS}
"""All of them, as docs/server.md has them."""
