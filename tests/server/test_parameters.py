"""What the parameters of OpenAI's routes do: by a tiny model, whose every step can be followed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isthmus import Runtime
from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.request import Request
from isthmus.server.generation.wanted import Sampling, Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.texts import Texts
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
PROMPT = "the isthmus is land, a bridge"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model(tiny_q8: Path) -> Iterator[Model]:
    with Runtime(device="cpu") as runtime:
        yield runtime.load_model(tiny_q8)


def post(server: Serving, path: str = TEXT, **more: Any) -> Any:
    given = {"messages": HELLO} if path == CHAT else {"prompt": PROMPT}
    return server.client.post(path, json={"model": "tiny", "temperature": 0, **given, **more})


def ask(server: Serving, path: str = TEXT, **more: Any) -> Any:
    answer = post(server, path, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Serving, path: str = TEXT, **more: Any) -> Any:
    answer = post(server, path, **more)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def chunks(server: Serving, path: str = TEXT, **more: Any) -> list[Any]:
    answer = post(server, path, stream=True, **more)
    assert answer.status_code == 200, answer.text
    *lines, done = [it for it in answer.text.split("\n\n") if it]
    assert done == "data: [DONE]"
    return [json.loads(it.removeprefix("data: ")) for it in lines]


def logprobs_of(choice: Any) -> Any:
    told = choice["logprobs"]
    lengths = {name: len(it) for name, it in told.items()}
    assert len(set(lengths.values())) == 1, lengths
    return told


# ------------------------------------------------------------------ penalties


@pytest.mark.parametrize(
    ("presence", "frequency"), [(1.5, 0), (0, 0.7), (-2, 0), (2, 2), (0.3, -0.5)]
)
def test_penalties_are_for_tokens_of_the_answer(
    tiny_server: Serving, presence: float, frequency: float
) -> None:
    """Each token has the greatest logprob after the penalties, and logprobs are told without."""
    made = ask(tiny_server, max_tokens=40, logprobs=20, ignore_eos=True,
               presence_penalty=presence, frequency_penalty=frequency)  # fmt: skip
    told = logprobs_of(made["choices"][0])
    seen: Counter[str] = Counter()
    for token, top in zip(told["tokens"], told["top_logprobs"], strict=True):
        left = {it: top[it] - frequency * seen[it] - presence * (seen[it] > 0) for it in top}
        assert left[token] >= max(left.values()) - 1e-4
        seen[token] += 1
    plain = logprobs_of(ask(tiny_server, max_tokens=40, logprobs=20, ignore_eos=True)["choices"][0])
    assert Counter(plain["tokens"]).most_common(1)[0][1] > 20  # it repeats itself
    assert (told["tokens"] == plain["tokens"]) is (presence + frequency < 0)
    assert told["top_logprobs"][0] == plain["top_logprobs"][0]


def test_a_penalty_keeps_a_token_from_coming_again(tiny_server: Serving) -> None:
    token = {"65": 10}  # comes again and again without a penalty
    plain = ask(tiny_server, max_tokens=12, logit_bias=token, ignore_eos=True, logprobs=0)
    often = Counter(logprobs_of(plain["choices"][0])["tokens"]).most_common(1)[0]
    assert often[1] == 12
    less = ask(tiny_server, max_tokens=12, logit_bias=token, ignore_eos=True, logprobs=0,
               frequency_penalty=2)["choices"][0]  # fmt: skip
    assert 0 < Counter(logprobs_of(less)["tokens"])[often[0]] < 12


def test_a_repeat_penalty_is_for_the_last_tokens(tiny_server: Serving, model: Model) -> None:
    ids = model.tokenizer.encode("e" * 70 + "x" * 40)
    bias = {str(ids[0]): 3}

    def first(**more: Any) -> list[str]:
        made = ask(tiny_server, prompt=ids, max_tokens=1, logprobs=0, logit_bias=bias, **more)
        return list(logprobs_of(made["choices"][0])["tokens"])

    everywhere = first(repeat_penalty=100, repeat_last_n=-1)
    assert first(repetition_penalty=100) == everywhere
    assert first(repeat_penalty=100, repeat_last_n=110) == everywhere
    assert first(repeat_penalty=100, repeat_last_n=0) == first()


def test_logprobs_are_the_models_own(tiny_server: Serving) -> None:
    """Whatever changes what is drawn."""
    plain = ask(tiny_server, max_tokens=1, logprobs=20)["choices"][0]
    top = logprobs_of(plain)["top_logprobs"][0]
    for more in (
        {"logit_bias": {"70": 100}},
        {"guided_regex": "[A-F]{3}"},
        {"temperature": 5, "seed": 1, "top_k": 3},
        {"repetition_penalty": 50},
    ):
        told = logprobs_of(ask(tiny_server, max_tokens=1, logprobs=20, **more)["choices"][0])
        shown = told["top_logprobs"][0]
        assert top.items() <= shown.items()
        assert shown[told["tokens"][0]] == told["token_logprobs"][0]


# ------------------------------------------------------------------ how tokens are chosen


def test_a_top_p_of_0_takes_the_most_probable_token(tiny_server: Serving) -> None:
    greedy = ask(tiny_server, max_tokens=8)["choices"][0]["text"]
    for path, more in ((TEXT, {"top_p": 0}), (TEXT, {"top_k": 1}), (TEXT, {"min_p": 1})):
        made = ask(tiny_server, path, temperature=1.5, max_tokens=8, **more)
        assert made["choices"][0]["text"] == greedy
    ollama = {"options": {"top_p": 0, "num_predict": 8, "repeat_penalty": 1}, "raw": True}
    body = {"model": "tiny", "prompt": PROMPT, "stream": False, **ollama}
    assert tiny_server.post("/api/generate", body)["response"] == greedy


@pytest.mark.parametrize("temperature", [100, 1e4, 1e38, 1e39, 1e300, 1.7e308, 5e-324, 1e-30])
def test_any_temperature(tiny_server: Serving, temperature: float) -> None:
    more: dict[str, Any] = {"temperature": temperature, "max_tokens": 30, "ignore_eos": True}
    made = ask(tiny_server, seed=3, logprobs=0, **more)["choices"][0]
    tokens = logprobs_of(made)["tokens"]
    if temperature < 1:
        assert (
            made["text"] == ask(tiny_server, max_tokens=30, ignore_eos=True)["choices"][0]["text"]
        )
    else:
        assert len(set(tokens)) > 15  # of 30: nearly every token is as likely as any other


def test_answers_of_one_seed_differ_and_come_again(tiny_server: Serving) -> None:
    def texts(**more: Any) -> list[str]:
        made = ask(tiny_server, temperature=1, max_tokens=8, seed=2**63 - 1, **more)
        return [it["text"] for it in made["choices"]]

    assert len(set(texts(n=5))) == 5
    assert texts(n=5) == texts(n=5)
    assert texts(n=5)[0] == texts()[0]
    assert [it["index"] for it in ask(tiny_server, n=3, max_tokens=1)["choices"]] == [0, 1, 2]


def test_biases(tiny_server: Serving) -> None:
    made = ask(tiny_server, max_tokens=3, logprobs=0, logit_bias={"70": 100, "71": -100})
    assert len(set(logprobs_of(made["choices"][0])["tokens"])) == 1
    assert ask(tiny_server, max_tokens=1, logit_bias={"70": 5e-324})["choices"]
    for wrong in ("99999", "-1", "x", "", "1.0", "9" * 5000, "\u0661"):
        for path in (TEXT, CHAT):
            error = refused(tiny_server, path, max_tokens=1, logit_bias={wrong: 1})
            assert error["param"] == "logit_bias"


# ------------------------------------------------------------------ several answers


def test_the_best_of_several(tiny_server: Serving) -> None:
    how: dict[str, Any] = {"temperature": 1.5, "max_tokens": 6, "seed": 7}
    everything = ask(tiny_server, n=6, logprobs=0, **how)
    ranked = sorted(everything["choices"], key=mean, reverse=True)
    best = ask(tiny_server, n=2, best_of=6, **how)
    assert [it["text"] for it in best["choices"]] == [it["text"] for it in ranked[:2]]
    assert [it["index"] for it in best["choices"]] == [0, 1]
    assert [it["logprobs"] for it in best["choices"]] == [None, None]
    assert best["usage"]["completion_tokens"] == everything["usage"]["completion_tokens"]
    several = ask(tiny_server, n=1, best_of=3, prompt=["a", "b"], **how)
    assert len(several["choices"]) == 2
    assert refused(tiny_server, n=3, best_of=2)["param"] == "best_of"
    assert refused(tiny_server, best_of=2, stream=True)["param"] == "best_of"
    assert len(chunks(tiny_server, best_of=1, max_tokens=1)) >= 2


def mean(choice: Any) -> float:
    told = logprobs_of(choice)["token_logprobs"]
    return sum(told) / len(told)


def test_more_answers_than_the_server_has_room_for(tiny_server: Serving) -> None:
    error = refused(tiny_server, prompt=["a"] * 32, n=128, max_tokens=1)
    assert (error["param"], "has room for" in error["message"]) == ("n", True)
    assert refused(tiny_server, prompt=["a"] * 32, best_of=128)["param"] == "best_of"


# ------------------------------------------------------------------ where answers end


def test_an_answer_ends_with_the_model_or_the_context(tiny_server: Serving) -> None:
    """And not at a number of tokens that nobody gave."""
    long = ask(tiny_server, CHAT, ignore_eos=True)
    n_prompt, n_answer = long["usage"]["prompt_tokens"], long["usage"]["completion_tokens"]
    assert long["choices"][0]["finish_reason"] == "length"
    assert n_prompt + n_answer >= 1024
    assert ask(tiny_server, ignore_eos=True)["usage"]["completion_tokens"] == 16  # as OpenAI has it


def test_no_tokens_at_all(tiny_server: Serving) -> None:
    made = ask(tiny_server, max_tokens=0)
    [choice] = made["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert made["usage"]["completion_tokens"] == 0
    full = ask(tiny_server, prompt=[65] * 1024, max_tokens=0)
    assert full["usage"]["prompt_tokens"] == 1024
    assert refused(tiny_server, prompt=[65] * 1024, max_tokens=1)["code"] == (
        "context_length_exceeded"
    )
    for name in ("max_tokens", "max_completion_tokens"):
        assert refused(tiny_server, CHAT, **{name: 0})["param"] == name
    assert (
        refused(tiny_server, CHAT, max_tokens=5, max_completion_tokens=6)["param"] == "max_tokens"
    )
    assert ask(tiny_server, CHAT, max_tokens=5, max_completion_tokens=5)


@pytest.mark.parametrize(
    ("bound", "wanted", "most"),
    [(None, None, 2**31 - 1), (20, None, 20), (20, 500, 20), (20, 5, 5), (None, 500, 500)],
)
def test_a_server_may_bound_all_answers(
    model: Model, bound: int | None, wanted: int | None, most: int
) -> None:
    completer: Any = SimpleNamespace(model=model, require_fitting=lambda *_: None)
    writer = Writer({}, ServerSettings(max_tokens=bound), Texts())
    request = writer.request(completer, [1, 2], Wanted(messages=(), max_tokens=wanted))
    assert request.max_tokens == most
    with pytest.raises(SettingsError, match="max_tokens is 0"):
        ServerSettings(max_tokens=0)


def test_stops(tiny_server: Serving) -> None:
    how: dict[str, Any] = {"guided_regex": "[a-z]{30}", "temperature": 1, "seed": 5}
    how |= {"max_tokens": 40, "logprobs": 0}
    whole = ask(tiny_server, **how)["choices"][0]
    text = whole["text"]
    at = next(i for i in range(5, 20) if text.find(text[i : i + 3]) == i)
    stop = text[at : at + 3]  # over the borders of tokens: each is a letter
    for given in (stop, [stop], ["!", stop], [stop, stop + text[at + 3]]):
        made = ask(tiny_server, stop=given, **how)
        [choice] = made["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text[:at], "stop")
        told = logprobs_of(choice)
        assert told == {name: it[:at] for name, it in whole["logprobs"].items()}
        assert made["usage"]["completion_tokens"] == at + 3
        parts = [it["choices"][0] for it in chunks(tiny_server, stop=given, **how)]
        assert "".join(it["text"] for it in parts) == text[:at]
        offsets = [n for it in parts if it["logprobs"] for n in it["logprobs"]["text_offset"]]
        assert offsets == [*range(at)]
    for nothing in (None, []):
        assert ask(tiny_server, stop=nothing, **how)["choices"][0]["text"] == text
    assert refused(tiny_server, stop="")["param"] == "stop"
    assert refused(tiny_server, stop=["a", ""])["param"] == "stop[1]"
    assert refused(tiny_server, stop=["a"] * 17)["param"] == "stop"


# ------------------------------------------------------------------ echo, logprobs and offsets


def check_offsets(choice: Any, text: str) -> None:
    """Each token stands where it is said to; bytes stand where their character begins."""
    told = logprobs_of(choice)
    assert choice["text"].startswith(text)
    ends = [*told["text_offset"][1:], len(choice["text"])]
    for token, begin, end in zip(told["tokens"], told["text_offset"], ends, strict=True):
        assert 0 <= begin <= end
        if not token.startswith("bytes:") and begin < end:
            assert choice["text"][begin:end].removeprefix("\ufffd") == token


def test_echo(tiny_server: Serving) -> None:
    plain = ask(tiny_server, max_tokens=6, logprobs=2)["choices"][0]
    made = ask(tiny_server, max_tokens=6, logprobs=2, echo=True)["choices"][0]
    assert made["text"] == PROMPT + plain["text"]
    check_offsets(made, PROMPT)
    check_offsets(plain, "")
    told, own = logprobs_of(made), logprobs_of(plain)
    n = len(told["tokens"]) - len(own["tokens"])
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert told["token_logprobs"][n:] == own["token_logprobs"]  # to the bit: echo changes nothing
    without = ask(tiny_server, max_tokens=6, echo=True)["choices"][0]
    assert (without["text"], without["logprobs"]) == (made["text"], None)
    only = ask(tiny_server, max_tokens=0, logprobs=2, echo=True)
    assert only["choices"][0]["text"] == PROMPT
    scored = logprobs_of(only["choices"][0])
    assert scored == {name: it[:n] for name, it in told.items()}
    assert only["usage"]["completion_tokens"] == 0
    for _ in range(2):  # and it leaves nothing behind that changes an answer
        assert ask(tiny_server, max_tokens=6, logprobs=2)["choices"][0] == plain


def test_a_streamed_echo(tiny_server: Serving) -> None:
    whole = ask(tiny_server, max_tokens=4, logprobs=1, echo=True)["choices"][0]
    parts = [it["choices"][0] for it in chunks(tiny_server, max_tokens=4, logprobs=1, echo=True)]
    assert "".join(it["text"] for it in parts) == whole["text"]
    for name, wanted in logprobs_of(whole).items():
        assert [n for it in parts if it["logprobs"] for n in it["logprobs"][name]] == wanted


def test_bytes_that_are_no_characters(tiny_server: Serving) -> None:
    text = "é漢"
    choice = ask(tiny_server, prompt=text, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    told = logprobs_of(choice)
    assert told["tokens"] == [f"bytes:\\x{it:02x}" for it in text.encode()]
    assert told["text_offset"] == [0, 0, 1, 1, 1]
    many = ask(tiny_server, max_tokens=20, logprobs=20, ignore_eos=True)["choices"][0]
    assert all(len(it) >= 20 for it in logprobs_of(many)["top_logprobs"])  # none looks like another


def test_the_token_that_ends_an_answer_is_told_with_its_logprob(
    tiny_server: Serving, model: Model
) -> None:
    """So a harness that asks for one token more than it wants can count on one."""
    how: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True}
    ends = {"logit_bias": {str(model.tokenizer.eos): 100}}
    made = ask(tiny_server, **how, **ends)
    [choice] = made["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
    assert made["usage"]["completion_tokens"] == 0
    told, other = logprobs_of(choice), logprobs_of(ask(tiny_server, **how)["choices"][0])
    assert told["token_logprobs"][:-1] == other["token_logprobs"][:-1]
    eos = model.tokenizer.decode([model.tokenizer.eos], render_special=True)
    assert told["tokens"][-1] == eos.decode()
    assert told["text_offset"][-1] == len(PROMPT)
    parts = [it["choices"][0] for it in chunks(tiny_server, **how, **ends)]
    assert [n for it in parts if it["logprobs"] for n in it["logprobs"]["tokens"]] == told["tokens"]
    chat = ask(tiny_server, CHAT, max_tokens=2, logprobs=True, **ends)
    assert chat["choices"][0]["logprobs"] is None


def test_a_prompt_that_is_null_or_empty(tiny_server: Serving, model: Model) -> None:
    begin = model.tokenizer.bos if model.tokenizer.bos >= 0 else model.tokenizer.eos
    wanted = ask(tiny_server, prompt=[begin], max_tokens=4)["choices"]
    for prompt in (None, "", [""]):
        made = ask(tiny_server, prompt=prompt, max_tokens=4)
        assert made["choices"] == wanted
    assert ask(tiny_server, prompt=None, max_tokens=0, echo=True)["choices"][0]["text"] == ""
    for wrong in ([], [[]], [[1], []], [["a"]], [1, "a"], [2**40], [-1]):
        refused(tiny_server, prompt=wrong, max_tokens=1)


def test_scores_are_those_of_libllamas_logits(
    tiny_server: Serving, tiny_q8: Path, model: Model, device: Device
) -> None:
    """As lm-evaluation-harness asks: prompts as ids and as text, several in one request."""
    texts = [PROMPT, "two cats sleep on the land", "a"]
    lists = [model.tokenizer.encode(it, add_special=True) for it in texts]
    how: dict[str, Any] = {"echo": True, "max_tokens": 0, "logprobs": 5}
    as_ids = ask(tiny_server, prompt=lists, **how)["choices"]
    as_text = ask(tiny_server, prompt=texts, **how)["choices"]
    one = ask(tiny_server, prompt=lists[0], **{**how, "max_tokens": 1})["choices"][0]
    assert logprobs_of(one)["token_logprobs"][:-1] == logprobs_of(as_ids[0])["token_logprobs"]
    with Libllama(device, tiny_q8, 256, ModelSettings()) as rival:
        for ids, choice, same in zip(lists, as_ids, as_text, strict=True):
            told = logprobs_of(choice)
            assert told == logprobs_of(same)
            assert told["token_logprobs"][0] is None
            rival.truncate(0)
            for at, (before, token) in enumerate(pairwise(ids), 1):
                rival.decode(before)
                logits = rival.logits.astype(np.float64)
                own = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                assert told["token_logprobs"][at] == pytest.approx(own[token], rel=1e-5)
                best = max(told["top_logprobs"][at].values())
                assert best == pytest.approx(own.max(), rel=1e-5)


# ------------------------------------------------------------------ usage and streams


def test_usage_adds_up(tiny_server: Serving) -> None:
    long = [{"role": "user", "content": "hello " * 40}]
    for more in ({}, {"n": 3}, {"messages": long}, {"messages": long}):
        usage = ask(tiny_server, CHAT, max_tokens=5, ignore_eos=True, **more)["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] == 5 * more.get("n", 1)
        assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_streams_usage_comes_last_and_only_if_it_is_wanted(
    tiny_server: Serving, path: str
) -> None:
    wanted = chunks(tiny_server, path, max_tokens=4, n=2, stream_options={"include_usage": True})
    assert wanted[-1]["choices"] == []
    assert wanted[-1]["usage"]["total_tokens"] > 0
    assert [it["usage"] for it in wanted[:-1]] == [None] * (len(wanted) - 1)
    for options in (None, {}, {"include_usage": False}, {"include_usage": None}):
        told = chunks(tiny_server, path, max_tokens=4, stream_options=options)
        assert all("usage" not in it and it["choices"] for it in told)
    assert refused(tiny_server, path, stream_options={"include_usage": True})["param"] == (
        "stream_options"
    )


# ------------------------------------------------------------------ what cannot be had together


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"grammar": "root ::= [a]", "guided_regex": "a"}, "guided_regex"),
        (CHAT, {"json_schema": {}, "response_format": {"type": "json_object"}}, "json_schema"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (TEXT, {"json_schema": {}, "guided_json": {}}, "guided_json"),
        (TEXT, {"repeat_penalty": 1, "repetition_penalty": 1}, "repetition_penalty"),
    ],
)
def test_what_cannot_be_had_together(
    tiny_server: Serving, path: str, more: dict[str, Any], param: str
) -> None:
    assert refused(tiny_server, path, max_tokens=1, **more)["param"] == param


@pytest.mark.parametrize(
    "more",
    [
        {"guided_regex": "[A-F]{4}"},
        {"grammar": 'root ::= "AB" [C-F] "D"'},
        {"json_schema": {"enum": ["ABCD"]}},
        {"guided_json": {"enum": ["ABCD"]}},
    ],
)
def test_what_an_answer_follows(tiny_server: Serving, more: dict[str, Any]) -> None:
    for path in (TEXT, CHAT):
        choice = ask(tiny_server, path, max_tokens=30, **more)["choices"][0]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert len(text.strip('"')) == 4
        assert set(text) <= set('"ABCDEF')


def test_allowed_tools(tiny_server: Serving) -> None:
    tools = [{"type": "function", "function": {"name": it}} for it in ("one", "two")]

    def choice(mode: str, *names: str) -> Any:
        allowed = [{"type": "function", "function": {"name": it}} for it in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}

    made = ask(tiny_server, CHAT, tools=tools, tool_choice=choice("required", "two"), max_tokens=99)
    [call, *_] = made["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "two"
    error = refused(tiny_server, CHAT, tools=tools, tool_choice=choice("auto", "three"))
    assert error["param"] == "tool_choice.allowed_tools.tools"


def test_numbers_are_written_as_the_guest_reads_them() -> None:
    """The least and the greatest that JSON has are numbers of 32 bits there."""
    for number in (5e-324, 1e-300, 1.7e308):
        bias = {"5": min(number, 100.0), "6": -min(number, 100.0)}
        sampling = Sampling(temperature=number, bias=bias, presence_penalty=-min(number, 2.0))
        line = Request(prompt=[1], max_tokens=1, sampling=sampling).message()
        words = dict(it.split(b"=") for it in line[:-4].split())
        assert 1e-38 <= float(words[b"temperature"]) <= 1e38
        assert 1e-38 <= -float(words[b"presence_penalty"]) <= 2
        biases = [float(it.split(b":")[1]) for it in words[b"bias"].split(b",")]
        assert all(1e-38 <= abs(it) <= 100 for it in biases)
