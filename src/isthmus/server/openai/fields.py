"""What becomes of each field of a request, and of each kind of message, part, tool and format.

Fields of OpenAI's reference come first, then those that clients of other servers send: this
server's own, vLLM's and llama.cpp's.
"""

from __future__ import annotations

from isthmus.server.http.support import Table, done, refused, without_effect
from isthmus.server.openai.foreign import OURS, refused_foreign

_TOLD_NOWHERE = "nothing is kept of it"
_BY_ITSELF = "what prompts have in common is found by itself"
_NO_AUDIO = "answers are texts"

_COMMON: Table = {
    "model": done("404 if this server does not have it"),
    "frequency_penalty": done("-2 to 2: subtracted as often as the answer has the token"),
    "presence_penalty": done("-2 to 2: subtracted once for each token that the answer has"),
    "logit_bias": done("up to 300 token ids, as text, with -100 to 100"),
    "n": done("1 to 128"),
    "seed": done("64 bits; answers of one request have this seed and the following ones"),
    "stop": done("up to 16 texts, none empty; the answer ends before the first that comes"),
    "stream": done("as events"),
    "stream_options": done("`include_usage`; no effect: `include_obfuscation`; only with `stream`"),
    "temperature": done("0, which takes the most probable token, or more; 1 if not given"),
    "top_p": done("0 to 1; 0 takes the most probable token; 1 if not given"),
    "user": without_effect(f"the key says whose request it is; {_TOLD_NOWHERE}"),
}

CHAT: Table = {
    "messages": done("see below"),
    **_COMMON,
    "max_completion_tokens": done("thoughts included; by default as many as fit the context"),
    "max_tokens": done("the older name; 400 if the two differ"),
    "logprobs": done("of the model itself: before biases, penalties, grammars and sampling"),
    "top_logprobs": done("0 to 20, with `logprobs`"),
    "response_format": done("see below; not beside a tool that must be called"),
    "tools": done("see below"),
    "tool_choice": done("`none`, `auto`, `required`, a `function`, `allowed_tools`"),
    "parallel_tool_calls": done("false allows one call, if one must be made"),
    "reasoning_effort": done("goes to chat templates that read it, or `enable_thinking`"),
    "modalities": done("`text`"),
    "metadata": without_effect(f"up to 16 pairs; {_TOLD_NOWHERE}"),
    "store": without_effect(f"{_TOLD_NOWHERE}: `/v1/responses` keeps answers"),
    "service_tier": without_effect("there is one tier"),
    "safety_identifier": without_effect(f"the key says whose request it is; {_TOLD_NOWHERE}"),
    "prompt_cache_key": without_effect(_BY_ITSELF),
    "prompt_cache_options": without_effect(_BY_ITSELF),
    "prompt_cache_retention": without_effect(_BY_ITSELF),
    "prediction": without_effect("it would save time, and change no answer"),
    "verbosity": without_effect("models here are not trained for it: say it in a message"),
    "audio": refused(_NO_AUDIO),
    "function_call": refused("give `tool_choice`"),
    "functions": refused("give `tools`"),
    "moderation": refused("nothing here moderates"),
    "web_search_options": refused("the server reaches nothing"),
    **OURS,
    "chat_template_kwargs": done("further variables of the chat template"),
    "thinking_budget": done("tokens of a thought, after which it is closed"),
    **refused_foreign("messages"),
}
"""`/v1/chat/completions`."""

COMPLETIONS: Table = {
    "prompt": done("a text, ids, or up to 32 of either; null or empty: as a text begins"),
    **_COMMON,
    "best_of": done("`n` to 128: of so many those with the highest mean logprob; not streamed"),
    "echo": done("the prompt comes before the answer; with `logprobs` those of its tokens too"),
    "logprobs": done(
        "0 to 20, of the model itself: before biases, penalties, grammars and sampling; "
        "`text_offset` counts characters of the choice's `text`; bytes that are no characters are "
        "written `bytes:\\xe2`"
    ),
    "max_tokens": done("0 or more; 16 if not given"),
    "suffix": done("what comes after a gap, for models that fill gaps; not beside `echo`"),
    **OURS,
    **refused_foreign("prompt"),
}
"""`/v1/completions`."""

EMBEDDINGS: Table = {
    "model": done("404 if this server does not have it"),
    "input": done(
        "a text, ids, or up to 2,048 of either, 300,000 tokens together; a part `image_url`, "
        "`input_audio` or `text`, or a list of parts that have one embedding together"
    ),
    "encoding_format": done("`float`, or `base64` of 32-bit floats"),
    "dimensions": done("what the model has: few models are trained to be cut short"),
    "user": without_effect(f"the key says whose request it is; {_TOLD_NOWHERE}"),
    "keep_alive": without_effect("the server's `keep_alive_s` holds"),
    "truncate_prompt_tokens": refused("what does not fit is 400: cut it"),
    "input_type": refused("texts are embedded as they are: write the prefix that the model wants"),
}
"""`/v1/embeddings`."""

ROLES: Table = {
    "system": done(),
    "developer": done(),
    "user": done(),
    "assistant": done(),
    "tool": done("with `tool_call_id`"),
    "function": done("as far as the chat template has it; `tool` is its successor"),
}
"""Roles. Others go to the chat template, which may have them."""

MESSAGE: Table = {
    "role": done("see below"),
    "content": done("a text, parts or null"),
    "name": done("as far as the chat template has it"),
    "tool_calls": done("in a message of `assistant`"),
    "tool_call_id": done("in a message of `tool`"),
    "refusal": done("the content of a message that has no other"),
    "reasoning_content": done("what the model thought, for templates that want it"),
    "reasoning": done("another name of that"),
    "annotations": without_effect("models read texts"),
    "provider_specific_fields": without_effect("what a client keeps for itself"),
    "audio": refused(_NO_AUDIO),
    "function_call": refused("give `tool_calls`"),
}
"""Fields of a message."""

PARTS: Table = {
    "text": done(),
    "refusal": done("as text"),
    "image_url": done(
        "a data URI of a PNG, JPEG or WebP, or a URL if `media_hosts` allows it; if the model has "
        "a projector. No effect: `detail`"
    ),
    "input_audio": done("a WAV in base64, if the model has a projector for sounds"),
    "file": refused("the models of this server read text: send a file's text as text"),
    "video_url": refused("send pictures of it as `image_url`"),
    "audio_url": refused("send it as `input_audio`"),
}
"""Parts of a message's content, by their type."""

TOOLS: Table = {
    "function": done("`strict` or not: if a call must be made, its arguments follow the schema"),
    "custom": refused("give it as a function with one parameter"),
    "web_search": refused("the server reaches nothing"),
    "mcp": refused("the server reaches nothing"),
}
"""Kinds of tools, by their type."""

CHOICES: Table = {
    "function": done("the tool that must be called"),
    "allowed_tools": done("the model is told of these, and may or must call one"),
    "custom": refused("give it as a function with one parameter"),
}
"""Kinds of `tool_choice` that are objects, by their type."""

FORMATS: Table = {
    "text": done(),
    "json_object": done("any object"),
    "json_schema": done("the answer follows the schema; no effect: `name`, `description`"),
    "grammar": refused("give `grammar`"),
    "python": refused("give `grammar`"),
    "structural_tag": refused("give `grammar`"),
}
"""Kinds of `response_format`, by their type."""

MODALITIES: Table = {"text": done(), "audio": refused(_NO_AUDIO)}

CHAT_TABLES = {
    "": CHAT,
    "messages[]": MESSAGE,
    "messages[].content[].type": PARTS,
    "tools[].type": TOOLS,
    "tool_choice.type": CHOICES,
    "response_format.type": FORMATS,
    "modalities[]": MODALITIES,
}
COMPLETION_TABLES = {"": COMPLETIONS}
EMBEDDING_TABLES = {"": EMBEDDINGS}
"""By the place that they are about, for those who read bodies."""

TABLES = {
    "field of `/v1/chat/completions`": CHAT,
    "field of a message": MESSAGE,
    "role": ROLES,
    "part of a content": PARTS,
    "kind of tool": TOOLS,
    "kind of `tool_choice`": CHOICES,
    "kind of `response_format`": FORMATS,
    "field of `/v1/completions`": COMPLETIONS,
    "field of `/v1/embeddings`": EMBEDDINGS,
}
"""All of them, as docs/server.md has them. `/v1/models` takes no field."""
