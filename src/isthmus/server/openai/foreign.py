"""Fields that OpenAI does not have, and that clients of vLLM, llama.cpp and Ollama send."""

from __future__ import annotations

from isthmus.server.http.support import Table, done, refused, without_effect

_NO_SAMPLER = "this server does not have that sampler"
_UNUSED = "a setting of a sampler that this server does not have, and that is off"
_LIKE_TEMPLATE = "the chat template decides"

OURS: Table = {
    "top_k": done("0 and -1 keep all tokens"),
    "min_p": done("0 to 1"),
    "repeat_penalty": done("0.01 to 100, for `repeat_last_n` tokens; 1 if not given"),
    "repeat_last_n": done("64 if not given; -1 for all tokens of prompt and answer"),
    "repetition_penalty": done("vLLM's: a `repeat_penalty` for all tokens; not beside that"),
    "ignore_eos": done("the answer goes on after a token that ends a text"),
    "grammar": done("GBNF that the answer follows"),
    "json_schema": done("a schema that the answer follows, as llama.cpp has it"),
    "guided_json": done("the same, as vLLM has it"),
    "guided_regex": done("a regular expression that the answer follows, as vLLM has it"),
    "cache_prompt": without_effect("what prompts have in common is found, and changes no bit"),
    "id_slot": without_effect("the agent that has most of the prompt is found by itself"),
    "keep_alive": without_effect("the server's `keep_alive_s` decides; Ollama's API follows it"),
    "mirostat_tau": without_effect(_UNUSED),
    "mirostat_eta": without_effect(_UNUSED),
    "dynatemp_exponent": without_effect(_UNUSED),
    "xtc_threshold": without_effect(_UNUSED),
    "dry_base": without_effect(_UNUSED),
    "dry_allowed_length": without_effect(_UNUSED),
    "dry_penalty_last_n": without_effect(_UNUSED),
    "dry_sequence_breakers": without_effect(_UNUSED),
}
"""Those that are done, or change nothing, on both routes that make text."""

_SAMPLERS: Table = {
    "typical_p": refused(_NO_SAMPLER, 1),
    "tfs_z": refused(_NO_SAMPLER, 1),
    "top_a": refused(_NO_SAMPLER, 0),
    "top_n_sigma": refused(_NO_SAMPLER, -1, 0),
    "mirostat": refused(_NO_SAMPLER, 0),
    "mirostat_mode": refused(_NO_SAMPLER, 0),
    "dynatemp_range": refused(_NO_SAMPLER, 0),
    "xtc_probability": refused(_NO_SAMPLER, 0),
    "dry_multiplier": refused(_NO_SAMPLER, 0),
    "smoothing_factor": refused(_NO_SAMPLER, 0),
    "epsilon_cutoff": refused(_NO_SAMPLER, 0),
    "eta_cutoff": refused(_NO_SAMPLER, 0),
    "penalize_nl": refused("line breaks are tokens like all others", True),
    "penalty_last_n": refused("give `repeat_last_n`"),
    "min_keep": refused("one token is kept", 0, 1),
    "samplers": refused("their order is fixed: penalties, top_k, temperature, top_p, min_p"),
    "length_penalty": refused("there is no search with beams", 1),
    "use_beam_search": refused("there is no search with beams", False),
    "early_stopping": refused("there is no search with beams", False),
    "allowed_token_ids": refused("give `grammar` or `logit_bias`", []),
    "bad_words": refused("give `logit_bias`", []),
    "min_tokens": refused("give `ignore_eos` or `logit_bias`", 0),
    "stop_token_ids": refused("give `stop`", []),
    "include_stop_str_in_output": refused("the answer ends before a stop text", False),
    "logits_processors": refused("this server runs no code of strangers outside of guests", []),
}

_OTHERS: Table = {
    "n_predict": refused("give `max_tokens`"),
    "num_predict": refused("give `max_tokens`"),
    "num_ctx": refused("the server's `n_ctx` is for everybody"),
    "options": refused("give its parts as fields: Ollama's are on `/api/chat`"),
    "n_keep": refused("what does not fit into the context is refused, and not cut", 0, -1),
    "n_discard": refused("what does not fit into the context is refused, and not cut", 0),
    "n_indent": refused("lines are not indented", 0),
    "n_probs": refused("give `logprobs`", 0),
    "post_sampling_probs": refused("logprobs are the model's own", False),
    "prompt_logprobs": refused("give `echo` and `logprobs` to `/v1/completions`", False),
    "return_tokens": refused("give `logprobs`", False),
    "return_token_ids": refused("give `logprobs`", False),
    "return_tokens_as_token_ids": refused("give `logprobs`", False),
    "return_progress": refused("a prompt's progress is not told", False),
    "timings_per_token": refused("times are in `/metrics`", False),
    "response_fields": refused("an answer is told whole", []),
    "t_max_predict_ms": refused("a request has the server's `deadline_s`", 0, -1),
    "lora": refused("an adapter is a model: name it", []),
    "lora_adapter": refused("an adapter is a model: name it"),
    "priority": refused("everybody is equal", 0),
    "guided_grammar": refused("give `grammar`, as GBNF"),
    "guided_choice": refused("give `guided_regex` or `guided_json`"),
    "guided_decoding_backend": refused("there is one"),
    "structured_outputs": refused("give `guided_json`, `guided_regex` or `grammar`"),
    "skip_special_tokens": refused("control tokens of an answer are left out", True),
    "spaces_between_special_tokens": refused("control tokens of an answer are left out", True),
    "detokenize": refused("answers are texts", True),
    "truncate_prompt_tokens": refused("what does not fit into the context is 400: cut it", -1),
    "kv_transfer_params": refused("what is remembered stays in this server"),
    "cache_salt": refused("what is remembered of a key's prompts is that key's already"),
    "request_id": refused("give the header `x-request-id`"),
    "stream_interval": refused("each token is told at once", 1),
    "extra_body": refused("give its parts as fields", {}),
}

_OF_CHAT: Table = {
    "enable_thinking": refused("give `chat_template_kwargs` or `reasoning_effort`"),
    "thinking": refused("give `chat_template_kwargs`, `reasoning_effort` or `thinking_budget`"),
    "think": refused("give `chat_template_kwargs` or `reasoning_effort`"),
    "reasoning": refused("give `reasoning_effort`"),
    "reasoning_format": refused("thoughts are told as `reasoning_content`", "auto", "deepseek"),
    "include_reasoning": refused("thoughts are told as `reasoning_content`", True),
    "separate_reasoning": refused("thoughts are told as `reasoning_content`", True),
    "parse_tool_calls": refused("calls are told as `tool_calls`", True),
    "add_generation_prompt": refused(_LIKE_TEMPLATE, True),
    "continue_final_message": refused("give `/v1/completions` or `/v1/messages`", False),
    "add_special_tokens": refused(_LIKE_TEMPLATE, False),
    "chat_template": refused("the model's own is used"),
    "documents": refused("send them as messages"),
    "mm_processor_kwargs": refused("models read texts"),
    "media_io_kwargs": refused("models read texts"),
    "echo": refused("give `/v1/completions`", False),
    "best_of": refused("give `/v1/completions`", 1),
    "prompt": refused("give `messages`, or `/v1/completions`"),
    "system": refused("give a message of that role"),
    "format": refused("give `response_format`"),
}

_OF_TEXT: Table = {
    "messages": refused("give `prompt`, or `/v1/chat/completions`"),
    "response_format": refused("give `json_schema` or `grammar`", {"type": "text"}),
    "add_special_tokens": refused("give ids, which are taken as they are", True),
    "max_completion_tokens": refused("give `max_tokens`"),
    "top_logprobs": refused("give `logprobs`, as a number", 0),
    "tools": refused("give `/v1/chat/completions`", []),
    "prompt_embeds": refused("give `prompt`"),
    "input_prefix": refused("this server completes texts at their end", ""),
    "input_suffix": refused("this server completes texts at their end", ""),
}


def refused_foreign(said_in: str) -> Table:
    """Those that are refused, on the route whose text is said in `messages` or in `prompt`."""
    return {**_SAMPLERS, **_OTHERS, **(_OF_CHAT if said_in == "messages" else _OF_TEXT)}
