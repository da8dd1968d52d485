"""What becomes of each field that Ollama's API takes."""

from __future__ import annotations

from isthmus.server.http.support import Table, done, refused, without_effect

_MACHINE = "the server's own settings say how it computes, for everybody"
_NO_SAMPLER = "this server does not have that sampler"
_IMAGES = "PNG, JPEG or WebP in base64, if the model has a projector; before the text"

_COMMON: Table = {
    "model": done("with or without `:latest`; 404 if this server does not have it"),
    "stream": done("true by default: lines of JSON"),
    "format": done("`json`, or a schema that the answer follows"),
    "options": done("see below"),
    "think": done("a truth value or an effort, for chat templates that read it"),
    "keep_alive": done("how long the model stays after its last use, if the key may say so"),
    "truncate": done("true leaves out the oldest turns that do not fit; else 400"),
    "shift": refused("an answer ends when the context is full: nothing of it is forgotten", False),
    "logprobs": refused("give `/v1/chat/completions`", False),
    "top_logprobs": refused("give `/v1/chat/completions`", 0),
}

CHAT: Table = {
    "messages": done("see below; none asks whether the model is there"),
    **_COMMON,
    "tools": done("functions"),
}
"""`/api/chat`."""

GENERATE: Table = {
    "prompt": done("empty asks whether the model is there"),
    **_COMMON,
    "system": done("instructions; not beside `raw`"),
    "raw": done("the prompt as it is, without the chat template"),
    "suffix": done("what comes after a gap, for models that fill gaps; `prompt` is before it"),
    "images": done(f"{_IMAGES}; not beside `raw` or `suffix`"),
    "template": refused("the model's own is used", ""),
    "context": refused("give the conversation to `/api/chat`", []),
    "width": refused("answers are texts", 0),
    "height": refused("answers are texts", 0),
    "steps": refused("answers are texts", 0),
}
"""`/api/generate`."""

EMBED: Table = {
    "model": done("with or without `:latest`; 404 if this server does not have it"),
    "input": done("a text, or up to 2,048; none has no embedding"),
    "truncate": done("true by default: a text that is too long is cut at its end; else 400"),
    "dimensions": done("may only say what the model has"),
    "options": without_effect("an embedding has none"),
    "keep_alive": without_effect("the server's `keep_alive_s` holds"),
}
"""`/api/embed`."""

EMBEDDINGS: Table = {
    "model": done("with or without `:latest`; 404 if this server does not have it"),
    "prompt": done("a text, cut at its end if it is too long; none has no embedding"),
    "options": without_effect("an embedding has none"),
    "keep_alive": without_effect("the server's `keep_alive_s` holds"),
}
"""`/api/embeddings`, which is older."""

PULL: Table = {
    "model": done("a name that `isthmus pull` takes: `llama3.2:1b`, `hf.co/ORG/REPO:QUANT`"),
    "name": done("what `model` is called in earlier versions"),
    "stream": done("true by default: lines of JSON that tell the progress"),
    "insecure": refused("models are fetched by HTTPS", False),
}
"""`/api/pull`."""

SHOW: Table = {
    "model": done("with or without `:latest`"),
    "name": done("what `model` is called in earlier versions"),
    "verbose": without_effect("what is known of a model is told in any case"),
}
"""`/api/show`."""

MESSAGE: Table = {
    "role": done(),
    "content": done("a text"),
    "thinking": done("what the model thought, for templates that want it"),
    "tool_calls": done("in a message of `assistant`"),
    "tool_name": done("in a message of `tool`"),
    "tool_call_id": done("in a message of `tool`"),
    "images": done(_IMAGES),
}
"""Fields of a message."""

OPTIONS: Table = {
    "temperature": done("0, which takes the most probable token, or more; 0.8 if not given"),
    "top_k": done("0 and -1 keep all tokens; 40 if not given"),
    "top_p": done("0 to 1; 0.9 if not given"),
    "min_p": done("0 to 1"),
    "repeat_penalty": done("0 to 100, for `repeat_last_n` tokens; 1.1 if not given"),
    "repeat_last_n": done("64 if not given; -1 for all tokens of prompt and answer"),
    "presence_penalty": done("-100 to 100, for tokens of the answer"),
    "frequency_penalty": done("-100 to 100, for tokens of the answer"),
    "seed": done("64 bits; less than 0 for another one each time"),
    "num_predict": done("tokens of the answer; less than 1 for as many as fit the context"),
    "stop": done("up to 16 texts, none empty"),
    "num_ctx": without_effect("the context has the server's `n_ctx` tokens"),
    "num_keep": without_effect("what does not fit into the context is refused, and not cut"),
    "num_batch": without_effect(_MACHINE),
    "num_gpu": without_effect(_MACHINE),
    "num_thread": without_effect(_MACHINE),
    "main_gpu": without_effect(_MACHINE),
    "numa": without_effect(_MACHINE),
    "low_vram": without_effect(_MACHINE),
    "f16_kv": without_effect(_MACHINE),
    "use_mmap": without_effect(_MACHINE),
    "use_mlock": without_effect(_MACHINE),
    "mirostat_tau": without_effect("`mirostat` is off"),
    "mirostat_eta": without_effect("`mirostat` is off"),
    "typical_p": refused(_NO_SAMPLER, 1),
    "tfs_z": refused(_NO_SAMPLER, 1),
    "mirostat": refused(_NO_SAMPLER, 0),
    "penalize_newline": refused("line breaks are tokens like all others", True),
    "draft_num_predict": refused("no model here drafts for another", 0),
    "vocab_only": refused("models are loaded whole", False),
    "logits_all": refused("give `echo` and `logprobs` to `/v1/completions`", False),
    "embedding_only": refused("models are loaded whole", False),
}
"""Fields of `options`."""

_PARTS = {"messages[]": MESSAGE, "options": OPTIONS}
CHAT_TABLES = {"": CHAT, **_PARTS}
GENERATE_TABLES = {"": GENERATE, **_PARTS}
PULL_TABLES = {"": PULL}
SHOW_TABLES = {"": SHOW}
EMBED_TABLES = {"": EMBED}
EMBEDDINGS_TABLES = {"": EMBEDDINGS}
"""By the place that they are about, for those who read bodies."""

TABLES = {
    "field of `/api/chat`": CHAT,
    "field of a message": MESSAGE,
    "field of `/api/generate`": GENERATE,
    "field of `options`": OPTIONS,
    "field of `/api/embed`": EMBED,
    "field of `/api/embeddings`": EMBEDDINGS,
    "field of `/api/pull`": PULL,
    "field of `/api/show`": SHOW,
}
"""All of them, as docs/server.md has them."""
