"""`llamacpp_client`, a client of llama.cpp's server."""

from __future__ import annotations

from urllib.parse import urlsplit

from features import MODEL, URL, run
from llamacpp_client import LlamaCppClient, LlamaCppServerAddress

PROMPT = "Once upon a time, there was a"
"""A text goes on, where the model ends an answer to a question at once."""
PLACE = urlsplit(URL)
CLIENT = LlamaCppClient([LlamaCppServerAddress(PLACE.hostname or "", PLACE.port or 0)])
GREEDY = {"temperature": 0, "n_predict": 20}


def hello() -> None:
    done = CLIENT.new_completion(PROMPT, **GREEDY)
    assert done.content
    assert 0 < done.tokens_predicted <= 20
    assert done.stop_type in ("limit", "eos")


def stream() -> None:
    *parts, last = CLIENT.new_stream_completion(PROMPT, **GREEDY)
    assert [it.stop for it in (*parts, last)] == [False] * len(parts) + [True]
    text = "".join(it.content for it in parts)
    assert text == CLIENT.new_completion(PROMPT, **GREEDY).content != ""
    assert last.tokens_evaluated > 0


def plain() -> None:
    wanted = {"n_predict": 4, "n_probs": 1, "return_tokens": True, "ignore_eos": True}
    done = CLIENT.completion(PROMPT, model=MODEL, **wanted)
    assert isinstance(done, dict)
    assert len(done["tokens"]) == len(done["completion_probabilities"]) == 4
    assert done["model"] == MODEL


run(hello, stream, plain)
