"""What becomes of each field that the API of llama.cpp's server has, and of those of a reranker."""

from __future__ import annotations

from isthmus.server.http.support import Table, done, refused, without_effect
from isthmus.server.openai.fields import CHAT, CHAT_TABLES

_MODEL = done("a model of this server; by default the first one")
_ALONE = "for each token the most probable ones are told as the model has them, before any sampler"
_SAMPLER = "this server has no such sampler"

TOKENIZE: Table = {
    "model": _MODEL,
    "content": done("a text, or a list of texts and ids; up to 300,000 tokens"),
    "add_special": done("false by default: BOS and what else the vocabulary wants around a text"),
    "parse_special": done(
        "false by default, unlike in llama.cpp: `<|im_end|>` in a text is text, unless it is asked "
        "for"
    ),
    "with_pieces": done("`piece` is a text, or a list of bytes if they are no UTF-8 by themselves"),
}
"""`/tokenize`."""

DETOKENIZE: Table = {
    "model": _MODEL,
    "tokens": done("ids; control tokens are told as their texts, and bytes that are no UTF-8 as �"),
}
"""`/detokenize`."""

_TEMPLATE_DONE: Table = {
    "model": _MODEL,
    "messages": done("as those of `/v1/chat/completions`"),
    "tools": done(),
    "tool_choice": done("`none`: the model is told of no tool"),
    "reasoning_effort": done("to templates that read it"),
    "chat_template_kwargs": done("further variables of the template"),
    "add_generation_prompt": done("true: the prompt ends where the answer begins"),
}
_NOTHING_IS_MADE = without_effect("no answer is made")
APPLY_TEMPLATE: Table = {
    **_TEMPLATE_DONE,
    **{
        name: row if row.is_refused else _NOTHING_IS_MADE
        for name, row in CHAT.items()
        if name not in _TEMPLATE_DONE
    },
}
"""`/apply-template`."""

COMPLETION: Table = {
    "model": _MODEL,
    "prompt": done(
        "a text, ids, a list of texts and ids, `{prompt_string}`, or 1 to 32 of these, which have "
        "as many answers"
    ),
    "parse_special": done(
        "ours, false by default: whether control tokens in a prompt's texts are read as such; if "
        "they are not, `warnings` say so"
    ),
    "n_predict": done("-1 by default: as many as fit; 0 only reads the prompt"),
    "max_tokens": done("another name of `n_predict`"),
    "n_cmpl": done("1 to 32 answers of each prompt; if there is a seed, each has another one"),
    "n": done("another name of `n_cmpl`"),
    "stream": done("events, the last of which has `stop: true`; there is no `[DONE]`"),
    "stop": done("a text or up to 16; empty ones are left out"),
    "temperature": done("0.8 by default; 0 and less takes the most probable token"),
    "top_k": done("40 by default; 0 and less keeps all"),
    "top_p": done("0.95 by default"),
    "min_p": done("0.05 by default"),
    "repeat_penalty": done("1 by default"),
    "repeat_last_n": done("64 by default; 0 for no token, -1 for all"),
    "presence_penalty": done("0 by default; for tokens of the answer"),
    "frequency_penalty": done("0 by default; for tokens of the answer"),
    "seed": done("-1 and 4294967295, by default, for another one each time"),
    "ignore_eos": done(),
    "logit_bias": done(
        "`[[id, number], …]` or `{id: number}`, from -100 to 100; a text instead of an id stands "
        "for each of its tokens, and `false` for -100; up to 300 tokens in all"
    ),
    "samplers": done("those that it does not name are not applied; their order is always the same"),
    "grammar": done("GBNF; not together with `json_schema`"),
    "json_schema": done("a schema that the answer follows"),
    "n_probs": done(f"up to 20; {_ALONE}"),
    "return_tokens": done("ids in `tokens`; a stream has them always"),
    "response_fields": done(
        "up to 100 fields that are told; `a/b` stands for the field `b` of `a`"
    ),
    "cache_prompt": without_effect("beginnings are remembered by themselves, without another bit"),
    "id_slot": without_effect("requests have no place of their own"),
    "n_keep": without_effect("an answer ends where the context ends: nothing is shifted"),
    "n_discard": without_effect("nothing is shifted"),
    "n_cache_reuse": without_effect("nothing is shifted"),
    "n_indent": without_effect("a text is indented as the model writes it"),
    "t_max_predict_ms": without_effect("`n_predict` bounds an answer; its caller may leave"),
    "t_max_prompt_ms": without_effect("a prompt is read whole"),
    "timings_per_token": without_effect("`timings` are told at the end"),
    "return_progress": without_effect("a prompt is read in one go"),
    "sse_ping_interval": without_effect("the server's own holds"),
    "typical_p": refused(_SAMPLER, 1),
    "top_n_sigma": refused(_SAMPLER, -1, 0),
    "dynatemp_range": refused(_SAMPLER, 0),
    "mirostat": refused(_SAMPLER, 0),
    "xtc_probability": refused(_SAMPLER, 0),
    "dry_multiplier": refused(_SAMPLER, 0),
    "adaptive_target": refused(_SAMPLER, -1),
    "min_keep": refused("samplers keep one token at least", 0, 1),
    "post_sampling_probs": refused(_ALONE, False),
    "lora": refused("an adapter is a model of its own: name it as `model`", []),
    "dynatemp_exponent": without_effect("belongs to a sampler that is not there"),
    "mirostat_tau": without_effect("the same"),
    "mirostat_eta": without_effect("the same"),
    "xtc_threshold": without_effect("the same"),
    "dry_base": without_effect("the same"),
    "dry_allowed_length": without_effect("the same"),
    "dry_penalty_last_n": without_effect("the same"),
    "dry_sequence_breakers": without_effect("the same"),
    "adaptive_decay": without_effect("the same"),
}
"""`/completion`."""

INFILL: Table = {
    "input_prefix": done("what is before the gap: a text, or a list of texts and ids"),
    "input_suffix": done("what is after it"),
    "input_extra": done("`{filename, text}` of other files, which come before"),
    "prompt": done("a text, or a list of texts and ids, that follows `input_prefix`"),
    "spm_infill": done("ours: what is after the gap comes first, as some models were trained"),
    **{name: row for name, row in COMPLETION.items() if name not in ("prompt", "parse_special")},
}
"""`/infill`."""

RERANK: Table = {
    "model": done("a model that makes embeddings; by default the first one"),
    "query": done("a text"),
    "documents": done("1 to 2,047 texts, or objects with a `text`"),
    "top_n": done("how many of the best are told; by default all"),
    "return_documents": done("true tells each with its text, as `document`"),
    "user": without_effect("the key says whose request it is"),
    "truncation": refused("a text that is too long is 400, and never cut in silence"),
    "texts": refused("give them as `documents`"),
    "max_tokens_per_doc": refused("a text that is too long is 400: cut it into documents"),
    "max_chunks_per_doc": refused("a text that is too long is 400: cut it into documents"),
    "rank_fields": refused("give each document as a text, or an object with a `text`"),
    "return_embeddings": refused("`/v1/embeddings` has them"),
    "priority": refused("requests come in their order"),
}
"""`/v1/rerank`."""

TEMPLATE_TABLES = {**CHAT_TABLES, "": APPLY_TEMPLATE}
"""`APPLY_TEMPLATE` and what is in its fields."""
TABLES = {
    "field of `/completion`": COMPLETION,
    "field of `/infill`, beside those of `/completion`": {
        name: row for name, row in INFILL.items() if COMPLETION.get(name) is not row
    },
    "field of `/tokenize`": TOKENIZE,
    "field of `/detokenize`": DETOKENIZE,
    "field of `/apply-template`": APPLY_TEMPLATE,
}
"""Those of llama.cpp's API, as docs/server.md has them."""

RERANK_TABLES = {"field of `/v1/rerank`": RERANK}

"""Reranking, likewise."""
