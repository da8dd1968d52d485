"""The API of llama.cpp's server: what it does, and what it says of bad requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import msgspec
import pytest

from isthmus.errors import Cancelled
from isthmus.server.http.errors import HttpError
from isthmus.server.http.support import Support, Table, as_markdown
from isthmus.server.llamacpp import fields
from isthmus.server.llamacpp.errors import PATHS
from isthmus.server.llamacpp.prompts import Reader
from isthmus.server.llamacpp.requests import (
    CompletionRequest,
    DetokenizeRequest,
    InfillRequest,
    RerankRequest,
    TemplateRequest,
    TokenizeRequest,
)
from isthmus.server.llamacpp.translate import wanted_of
from tests.server.conftest import Serving
from tests.tiny_gguf import FIRST_SPECIAL, TinyModel
from tests.tiny_vocabulary import INFILL

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
GAP = {"input_prefix": "a", "input_suffix": "b", "n_predict": 2}
ROUTES: dict[str, tuple[type, Table, dict[str, Any]]] = {
    "/completion": (CompletionRequest, fields.COMPLETION, {"prompt": "x", "n_predict": 2}),
    "/infill": (InfillRequest, fields.INFILL, GAP),
    "/tokenize": (TokenizeRequest, fields.TOKENIZE, {"content": "x"}),
    "/detokenize": (DetokenizeRequest, fields.DETOKENIZE, {"tokens": [5]}),
    "/apply-template": (
        TemplateRequest,
        fields.APPLY_TEMPLATE,
        {"messages": [{"role": "user", "content": "hi"}]},
    ),
}
NO_TOKENS = [-1, 2**31, 2**63, 2**64, 10**30, 1.5, 1.0, "5", None, True, [5], {"id": 5}]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The first of its models fills gaps, the second one does not."""
    folder = tmp_path_factory.mktemp("models")
    able = TinyModel(with_tokenizer=True, quantisation="Q8_0", more_special=INFILL)
    plain = TinyModel(with_tokenizer=True, quantisation="Q8_0")
    given = (f"able={able.write(folder / 'able.gguf')}", f"plain={plain.write(folder / 'plain')}")
    options = [it for each in given for it in ("--model", each)]
    serving = Serving(tmp_path_factory.mktemp("data"), *options, "--n-ctx", "512", "--slots", "4")
    yield serving
    assert serving.stop() == 0


def refused(serving: Serving, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    done = serving.client.post(path, content=raw)
    assert done.status_code == status, done.text
    error: dict[str, Any] = done.json()["error"]
    assert set(error) == {"code", "message", "type", "param"}
    assert error["code"] == status
    return error


def events(done: httpx.Response) -> list[dict[str, Any]]:
    assert done.status_code == 200, done.text
    lines = [it for it in done.text.split("\n\n") if it]
    assert all(it.startswith("data: ") for it in lines)
    return [json.loads(it.removeprefix("data: ")) for it in lines]


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("path", ROUTES)
def test_tables_are_those_of_the_types(path: str) -> None:
    kind, table, _ = ROUTES[path]
    done = {name for name, row in table.items() if not row.is_refused}
    assert {it.encode_name for it in msgspec.structs.fields(kind)} == done


@pytest.mark.parametrize("path", ROUTES)
def test_each_field_is_done_or_refused(serving: Serving, path: str) -> None:
    """With null, unless it is needed; and each that is refused, with what changes something."""
    kind, table, least = ROUTES[path]
    nullable = [it for it in msgspec.structs.fields(kind) if it.default is None]
    everything = {it.encode_name: None for it in nullable} | least
    assert serving.client.post(path, json=everything).status_code == 200
    for name, row in table.items():
        if row.is_refused:
            for neutral in (None, *row.silent):
                assert serving.client.post(path, json={**least, name: neutral}).status_code == 200
            other = (not neutral) if isinstance(neutral, bool) else [3]
            error = refused(serving, path, {**least, name: other})
            assert (error["type"], error["param"]) == ("not_supported_error", name)
            assert row.said in error["message"]
    error = refused(serving, path, {**least, "nonsense": 1})
    assert (error["param"], "nonsense" in error["message"]) == ("nonsense", True)
    twice = json.dumps(least)[:-1] + f', "{next(iter(least))}": 1}}'
    assert refused(serving, path, twice.encode())["type"] == "invalid_request_error"


def test_rerankers_fields() -> None:
    done = {name for name, row in fields.RERANK.items() if row.support is not Support.REFUSED}
    assert {it.encode_name for it in msgspec.structs.fields(RerankRequest)} == done


@pytest.mark.parametrize(
    ("name", "tables"), [("llamacpp", fields.TABLES), ("rerank", fields.RERANK_TABLES)]
)
def test_the_docs_have_the_tables(name: str, tables: dict[str, Table]) -> None:
    page = DOCS.read_text()
    begin = page.index(f"<!-- {name}:")
    end = page.index("<!-- end -->", begin)
    assert page[begin:end].partition("-->\n")[2] == as_markdown(tables)


# ------------------------------------------------------------------ tokens


def test_control_tokens_of_a_text_are_text_unless_asked_for(serving: Serving) -> None:
    text = "a<|im_end|>"
    plain = serving.post("/tokenize", {"content": text})["tokens"]
    parsed = serving.post("/tokenize", {"content": text, "parse_special": True})["tokens"]
    assert (len(plain), len(parsed), parsed[-1]) == (len(text), 2, 2)
    for tokens in (plain, parsed):
        assert serving.post("/detokenize", {"tokens": tokens}) == {"content": text}
    mixed = serving.post("/tokenize", {"content": ["a", 2, "b"], "with_pieces": True})["tokens"]
    assert [it["piece"] for it in mixed] == ["a", "<|im_end|>", "b"]


def test_pieces_that_are_no_text(serving: Serving) -> None:
    found = serving.post("/tokenize", {"content": "é!", "with_pieces": True})["tokens"]
    assert [it["piece"] for it in found] == [[0xC3], [0xA9], "!"]
    half = serving.post("/detokenize", {"tokens": [found[0]["id"]]})
    assert half == {"content": "\ufffd"}


@pytest.mark.parametrize("token", NO_TOKENS, ids=str)
def test_what_is_no_token(serving: Serving, token: Any) -> None:
    assert refused(serving, "/detokenize", {"tokens": [5, token]})["param"] == "tokens[1]"
    if not isinstance(token, str):
        body = {"content": ["a", token]}
        assert refused(serving, "/tokenize", body)["param"] == "content[1]"
    if not isinstance(token, str | list):
        error = refused(serving, "/completion", {"prompt": [5, token], "n_predict": 1})
        assert error["param"].startswith("prompt[1]")


def test_tokens_outside_of_the_vocabulary(serving: Serving) -> None:
    for path, body, where in (
        ("/detokenize", {"tokens": [5, 320]}, "tokens[1]"),
        ("/tokenize", {"content": ["a", 320]}, "content[1]"),
        ("/completion", {"prompt": [[5], ["a", 5, 320]]}, "prompt[1][2]"),
        ("/completion", {"prompt": "a", "logit_bias": [[320, 1]]}, "logit_bias[0]"),
        ("/infill", {"input_prefix": [320], "input_suffix": ""}, "input_prefix[0]"),
    ):
        error = refused(serving, path, body)
        assert error["param"] == where
        assert "320 is not in the vocabulary of 320" in error["message"]


def test_texts_with_a_bias_have_a_bound_too() -> None:
    """The guest reads all biases for each token."""
    tokenizer = Mock(encode=lambda text, **_: [ord(it) for it in text])
    tokenizer.controls.cut.return_value = []
    reader = Reader(tokenizer, lambda: None, 1000)
    given = [["".join(map(chr, range(begin, begin + 100))), 1.0] for begin in (0, 200, 400, 400)]

    def asked(*more: Any) -> CompletionRequest:
        return CompletionRequest(prompt="x", logit_bias=[*given, *more])

    assert len(wanted_of(asked(), reader).sampling.bias) == 300
    with pytest.raises(HttpError, match="more than 300 tokens") as caught:
        wanted_of(asked(["\x00", 1.0], ["\u1234", 1.0]), reader)
    assert caught.value.param == "logit_bias[5]"


def test_a_caller_who_leaves_ends_the_work_between_two_texts() -> None:
    """There may be 300,000 of them, each too short to be interrupted."""
    left = [3]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise Cancelled("left")

    tokenizer = Mock(encode=Mock(return_value=[1]), controls=Mock(cut=Mock(return_value=[])))
    with pytest.raises(Cancelled):
        Reader(tokenizer, check, 100).mixed(["a"] * 5, "content")
    assert tokenizer.encode.call_count == 2


def test_texts_of_megabytes(serving: Serving) -> None:
    """Each is refused before much is done, and nobody else waits for it."""
    long = "ab " * 600_000
    error = refused(serving, "/tokenize", {"content": long})
    assert error["type"] == "exceed_context_size_error"
    error = refused(serving, "/detokenize", {"tokens": [5] * 300_001})
    assert error["param"] == "tokens"
    assert refused(serving, "/completion", {"prompt": long})["type"] == error["type"]
    assert refused(serving, "/apply-template", {"messages": [{"role": "user", "content": long}]})
    near = {"input_prefix": f"{long}x", "input_suffix": "y", "n_predict": 1}
    extra = [{"filename": "a", "text": "a"}, {"filename": "b", "text": long}]
    for body in (near, {**near, "input_prefix": "x", "input_extra": extra}):
        told = serving.post("/infill", body)
        assert told["truncated"]
        assert told["prompt"].endswith("x<fim_suffix>y<fim_middle>")
        assert told["tokens_evaluated"] == 511
    body = {"input_prefix": long, "input_suffix": long}
    assert refused(serving, "/infill", body)["type"] == "exceed_context_size_error"
    fitting = serving.post("/tokenize", {"content": "xy" * 30_000, "with_pieces": True})
    assert len(fitting["tokens"]) == 60_000


@pytest.mark.parametrize("path", ROUTES)
def test_bodies_that_are_none(serving: Serving, path: str) -> None:
    for body in (b"", b"[]", b"5", b"{", b'{"prompt": NaN}', b"[" * 100_000, b'{"x": "\xff"}'):
        refused(serving, path, body)
    name = next(iter(ROUTES[path][2]))
    refused(serving, path, f'{{"{name}": {"[" * 900}1{"]" * 900}}}'.encode())
    assert refused(serving, path, {**ROUTES[path][2], "model": "x"}, 404)["type"] == (
        "not_found_error"
    )


# ------------------------------------------------------------------ conversations


def test_a_conversation_as_a_prompt(serving: Serving) -> None:
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    asked = {"messages": messages, "temperature": 0.5, "max_tokens": 3, "model": "plain"}
    told = serving.post("/apply-template", asked)
    text = "<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert told == {"prompt": text}
    tool = {"type": "function", "function": {"name": "f"}}
    told = serving.post("/apply-template", {"messages": messages, "tools": [tool]})
    assert told["prompt"] == text
    assert told["warnings"]
    refused(serving, "/apply-template", {"messages": []})
    body = {"messages": messages, "add_generation_prompt": False}
    assert refused(serving, "/apply-template", body)["param"] == "add_generation_prompt"


# ------------------------------------------------------------------ completions


def test_a_stream_is_the_whole_in_events(serving: Serving) -> None:
    asked = {"prompt": "hello", "n_predict": 8, "seed": 1, "n_probs": 2, "return_tokens": True}
    whole = serving.post("/completion", asked)
    *parts, last = events(serving.client.post("/completions", json={**asked, "stream": True}))
    assert "".join(it["content"] for it in parts) == whole["content"]
    assert [token for it in parts for token in it["tokens"]] == whole["tokens"]
    probabilities = [it for part in parts for it in part["completion_probabilities"]]
    assert probabilities == whole["completion_probabilities"]
    assert [it["id"] for it in probabilities] == whole["tokens"]
    assert all(len(it["top_logprobs"]) == 2 for it in probabilities)
    assert [it["stop"] for it in (*parts, last)] == [False] * len(parts) + [True]
    assert (last["content"], last["tokens"]) == ("", [])
    assert last["tokens_predicted"] == whole["tokens_predicted"] == len(whole["tokens"])
    assert whole["tokens_evaluated"] == 5
    assert whole["generation_settings"]["n_predict"] == 8


def test_several_prompts_and_answers(serving: Serving) -> None:
    asked = {"prompt": ["ab", [5, 6]], "n_cmpl": 2, "n_predict": 4, "seed": 1, "temperature": 2}
    told = serving.post("/completion", asked)
    assert [it["index"] for it in told] == [0, 1, 2, 3]
    assert [it["tokens_evaluated"] for it in told] == [2, 2, 2, 2]
    alone = serving.post("/completion", {**asked, "prompt": [5, 6], "n_cmpl": 1})
    assert told[2]["content"] == alone["content"]
    parts = events(serving.client.post("/completion", json={**asked, "stream": True}))
    for n, whole in enumerate(told):
        assert "".join(it["content"] for it in parts if it["index"] == n) == whole["content"]


def test_how_an_answer_ends(serving: Serving) -> None:
    asked = {"prompt": "hello", "n_predict": 30, "temperature": 0, "ignore_eos": True}
    whole = serving.post("/completion", asked)
    assert (whole["stop_type"], whole["truncated"]) == ("limit", False)
    found = next(it for it in whole["content"] if it.isascii())
    ended = serving.post("/completion", {**asked, "stop": ["", found]})
    assert (ended["stop_type"], ended["stopping_word"]) == ("word", found)
    assert ended["content"] == whole["content"][: whole["content"].index(found)]
    full = serving.post("/completion", {**asked, "prompt": "x" * 500, "n_predict": -1})
    assert (full["stop_type"], full["truncated"]) == ("limit", True)
    nothing = serving.post("/completion", {**asked, "n_predict": 0})
    assert (nothing["content"], nothing["tokens_predicted"]) == ("", 0)
    assert nothing["tokens_evaluated"] == 5


def test_what_an_answer_follows(serving: Serving) -> None:
    asked = {"prompt": "x", "n_predict": 200, "seed": 1}
    assert serving.post("/completion", {**asked, "grammar": 'root ::= "yes"'})["content"] == "yes"
    schema = {"enum": [1, 2]}
    told = serving.post("/completion", {**asked, "json_schema": schema})
    assert json.loads(told["content"]) in (1, 2)
    refused(serving, "/completion", {**asked, "grammar": "root ::= ("})
    refused(serving, "/completion", {**asked, "grammar": 'root ::= "a"', "json_schema": schema})


def test_sampling(serving: Serving) -> None:
    asked = {"prompt": "x", "n_predict": 3, "return_tokens": True, "ignore_eos": True}

    def tokens(**more: Any) -> list[int]:
        return serving.post("/completion", {**asked, **more})["tokens"]

    most_probable = tokens(temperature=0)
    assert tokens(temperature=-1) == most_probable
    assert tokens(top_p=0, temperature=2) == most_probable
    assert tokens(samplers=["top_k"], top_k=1, temperature=99) == most_probable
    wanted = {"temperature": 0, "n_predict": 1}
    for bias in ([[70, 100]], {"70": 100}, [[chr(100), 100]], {chr(100): 100}):
        [found] = tokens(logit_bias=bias, **wanted)
        assert found == serving.post("/tokenize", {"content": "d"})["tokens"][0] or found == 70
    assert most_probable[0] != tokens(logit_bias=[[most_probable[0], False]], **wanted)[0]


@pytest.mark.parametrize(
    ("more", "where"),
    [
        *(({"logit_bias": it}, "logit_bias[0]") for it in (
            [[5]], [[5, 1, 2]], [[5, True]], [[5, "x"]], [[None, 1]], [[5, 101]], [[-1, 1]],
            [[1.5, 1]], {"5": None}, {"99999": 1},
        )),
        ({"logit_bias": [[5, 1]] * 301}, "logit_bias"),
        ({"n_predict": 2**31}, "n_predict"),
        ({"n_predict": 1.5}, "n_predict"),
        ({"n_cmpl": 33}, "n_cmpl"),
        ({"n_probs": 21}, "n_probs"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"prompt": []}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": ""}, None),
        ({"prompt": ["a"] * 33}, None),
        ({"prompt": [5, ["a"]]}, "prompt[1]"),
        ({"prompt": [5, {"prompt_string": "a"}]}, "prompt[1]"),
        ({"prompt": [[["a"]]]}, "prompt[0][0]"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "prompt.multimodal_data"),
        ({"stop": ["x"] * 17}, None),
        ({"json_schema": {"type": "odd"}}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(serving: Serving, more: dict[str, Any], where: str | None) -> None:
    error = refused(serving, "/completion", {"prompt": "x", "n_predict": 1, **more})
    assert error["param"] == where
    assert error["message"]


def test_control_tokens_in_a_prompt(serving: Serving) -> None:
    text = "<|im_start|>user"
    told = serving.post("/completion", {"prompt": text, "n_predict": 1})
    assert told["tokens_evaluated"] == len(text)
    assert told["prompt"] == text
    assert "<|im_start|> in a prompt is text" in told["warnings"][0]
    asked = {"prompt": text, "n_predict": 1, "parse_special": True}
    parsed = serving.post("/completion", asked)
    assert parsed["tokens_evaluated"] == 5
    assert "warnings" not in parsed
    by_id = serving.post("/completion", {"prompt": [1, "user"], "n_predict": 1})
    assert by_id["prompt"] == parsed["prompt"] == text
    assert by_id["tokens_evaluated"] == 5


def test_fields_that_are_wanted(serving: Serving) -> None:
    names = ["content", "timings/prompt_n", "timings/nothing", "stop/x", "nothing", ""]
    asked = {"prompt": "hello", "n_predict": 1, "response_fields": names}
    told = serving.post("/completion", asked)
    assert told.keys() == {"content", "prompt_n"}
    for each in events(serving.client.post("/completion", json={**asked, "stream": True})):
        assert each.keys() <= {"content", "prompt_n"}


# ------------------------------------------------------------------ gaps


def test_a_gap_in_every_api(serving: Serving) -> None:
    """The prompt has the control tokens, and the texts are text, whatever they say."""
    before, after = "def f(<fim_suffix>", ") <|im_end|>"
    n_prompt = len(before) + len(after) + 3
    common = {"model": "able", "prompt": before, "suffix": after}
    few = {"temperature": 0, "max_tokens": 4}
    done = serving.post("/v1/completions", {**common, **few})
    assert done["usage"]["prompt_tokens"] == n_prompt
    told = serving.post("/api/generate", {
        **common, "stream": False, "options": {"num_predict": 4, "temperature": 0,
                                               "repeat_penalty": 1},
    })  # fmt: skip
    assert told["prompt_eval_count"] == n_prompt
    ids = [serving.post("/tokenize", {"content": it})["tokens"] for it in (before, after)]
    prefix, suffix, middle = range(FIRST_SPECIAL, FIRST_SPECIAL + 3)
    raw = [prefix, *ids[0], suffix, *ids[1], middle]
    same = serving.post("/v1/completions", {
        "model": "able", "prompt": raw, "temperature": 0, "max_tokens": 4,
    })  # fmt: skip
    assert done["choices"][0]["text"] == same["choices"][0]["text"] == told["response"]
    as_ids = {**common, **few, "prompt": [ids[0], ids[0]]}
    both = serving.post("/v1/completions", as_ids)
    assert [it["text"] for it in both["choices"]] == [done["choices"][0]["text"]] * 2


def test_suffixes_that_are_none(serving: Serving) -> None:
    asked = {"model": "plain", "prompt": "abc", "max_tokens": 4, "temperature": 0}
    plain = serving.post("/v1/completions", asked)["choices"][0]["text"]
    for nothing in (None, ""):
        done = serving.post("/v1/completions", {**asked, "suffix": nothing})
        assert done["choices"][0]["text"] == plain


def test_a_model_that_fills_no_gaps(serving: Serving) -> None:
    asked = {"model": "plain", "prompt": "a", "suffix": "b"}
    done = serving.client.post("/v1/completions", json=asked)
    assert done.status_code == 400
    error = done.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported", "suffix")
    assert "no token for prefix, suffix, middle" in error["message"]
    done = serving.client.post("/api/generate", json=asked)
    assert done.status_code == 400
    assert "no token for prefix" in done.json()["error"]
    body = {"input_prefix": "a", "input_suffix": "b", "model": "plain"}
    assert refused(serving, "/infill", body)["type"] == "not_supported_error"
    done = serving.client.post("/api/generate", json={**asked, "model": "able", "system": "x"})
    assert (done.status_code, "suffix" in done.json()["error"]) == (400, True)


def test_a_gap_that_does_not_fit(serving: Serving) -> None:
    """Other APIs refuse it; `/infill` leaves out what is farthest, as llama.cpp's server does."""
    asked = {"model": "able", "prompt": "x" * 600, "suffix": "b"}
    for path in ("/v1/completions", "/api/generate"):
        assert serving.client.post(path, json=asked).status_code == 400
    extra = [{"filename": "a.py", "text": "y" * 600}]
    body = {"input_prefix": "a" * 300 + "c" * 300, "input_suffix": "d" * 300 + "e" * 300}
    told = serving.post("/infill", {**body, "input_extra": extra, "n_predict": 12})
    assert told["truncated"]
    assert told["tokens_evaluated"] == 500
    before, after = f"{'a' * 73}{'c' * 300}", "d" * 124
    assert told["prompt"] == f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>"
    small = {"input_prefix": "a", "input_suffix": "d", "input_extra": extra, "n_predict": 12}
    told = serving.post("/infill", small)
    assert told["truncated"]
    assert "yyy<|file_sep|>filename\n<fim_prefix>a" in told["prompt"]


def test_the_suffix_first(serving: Serving) -> None:
    body = {"input_prefix": "a", "input_suffix": "d", "spm_infill": True, "n_predict": 2}
    told = serving.post("/infill", {**body, "prompt": "b"})
    assert told["prompt"].endswith("<fim_suffix>d<fim_prefix>ab<fim_middle>")


# ------------------------------------------------------------------ the server


def test_what_is_told_of_the_server(serving: Serving) -> None:
    assert serving.get("/health") == serving.get("/v1/health") == {"status": "ok"}
    first, second = serving.get("/props"), serving.get("/props?model=plain")
    assert (first["model_alias"], second["model_alias"]) == ("able", "plain")
    assert (first["model_path"], second["model_path"]) == ("able.gguf", "plain")
    assert first["total_slots"] == 4
    for query, status in (("model=x", 404), ("modle=x", 400)):
        done = serving.client.get(f"/props?{query}")
        assert done.status_code == status
        assert done.json()["error"]["code"] == status
    assert serving.client.post("/props", json={}).status_code == 405


def test_errors_are_told_in_one_shape(serving: Serving) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "PUT"):
            done = serving.client.request(method, path, content=b"{}")
            if done.status_code >= 400:
                assert done.json()["error"]["code"] == done.status_code
