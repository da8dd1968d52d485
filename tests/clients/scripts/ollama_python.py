"""`ollama`, the official client of Ollama."""

from __future__ import annotations

import json
import os

import ollama
from features import EMBED, ENDLESS, GAPS, MODEL, QUESTION, SCRIPTED, URL, run

CLIENT = ollama.Client(host=URL)
MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "num_predict": 40}
TEXTS = ["the isthmus is a land bridge", "a cat sleeps"]


def hello() -> None:
    done = CLIENT.chat(MODEL, MESSAGES, options=GREEDY)
    assert done.message.content
    assert done.eval_count
    assert done.eval_count > 0


def stream() -> None:
    whole = CLIENT.generate(MODEL, QUESTION, options=GREEDY)
    parts = CLIENT.generate(MODEL, QUESTION, options=GREEDY, stream=True)
    assert "".join(it.response for it in parts) == whole.response != ""


def structured() -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    done = CLIENT.chat(MODEL, MESSAGES, options={**GREEDY, "num_predict": 200}, format=schema)
    assert json.loads(done.message.content or "")["n"] in (1, 2)


def embed() -> None:
    done = CLIENT.embed(EMBED, TEXTS)
    one = CLIENT.embed(EMBED, TEXTS[1], truncate=False)
    assert len(done.embeddings) == len(TEXTS)
    assert one.embeddings[0] == done.embeddings[1]
    assert abs(sum(it * it for it in done.embeddings[0]) - 1) < 1e-4
    assert CLIENT.embeddings(EMBED, TEXTS[0]).embedding == done.embeddings[0]


def loaded() -> None:
    running = {it.model: it for it in CLIENT.ps().models}
    assert {it.model for it in CLIENT.list().models} == running.keys()
    assert running[MODEL].context_length
    assert running[MODEL].expires_at


def gap() -> None:
    options = {"temperature": 0, "num_predict": 4}
    done = CLIENT.generate(GAPS, "def f(", suffix=")", options=options)
    assert done.prompt_eval_count == len("def f()") + 3
    refusal = None
    try:
        CLIENT.generate(MODEL, "def f(", suffix=")", options=options)
    except ollama.ResponseError as error:
        refusal = error
    assert refusal is not None, "a model without the tokens filled a gap"
    assert refusal.status_code == 400
    assert "gaps" in refusal.error


def cancel() -> None:
    messages = [{"role": "user", "content": ENDLESS}]
    parts = CLIENT.chat(SCRIPTED, messages, stream=True)
    assert next(iter(parts)).model == SCRIPTED
    print("good", flush=True)
    os._exit(0)  # leaves as a killed client does


run(hello, stream, structured, embed, loaded, gap, cancel)
