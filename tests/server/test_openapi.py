"""`/openapi.json` against the routes, and the server against `/openapi.json`."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from isthmus import Runtime
from isthmus.server.app import create_app
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving
from tests.server.process import no_models
from tests.server.test_agents import new_agent, tell
from tests.tiny_gguf import TinyLlama
from tests.tiny_vocabulary import INFILL

Answers: TypeAlias = "Counter[tuple[str, int]]"
"""How often each operation was answered with each status."""
KEYLESS = {
    *("/", "/healthz", "/readyz", "/health", "/v1/health", "/openapi.json", "/page/{name}"),
}
_ALIAS = re.compile(r"-\d+\Z")
"""Ends the id of an operation whose handler has another path too: that one is called."""
NOT_SAID = ("positive_data_acceptance",)
"""What is well-formed may be refused all the same: a schema names no guests, models, positions."""
BODIES = {
    "max_tokens": st.integers(1, 8),
    "max_completion_tokens": st.integers(1, 8),
    "max_output_tokens": st.integers(1, 8),
    "tools": st.sampled_from([None, [], [{"type": "function", "name": "f"}], [{"type": "x"}]]),
    "include": st.sampled_from([None, [], ["reasoning.encrypted_content"], ["x"]]),
    "items": st.sampled_from([[{"role": "user", "content": "hello"}], [{"type": "x"}], []]),
    "conversation": st.none(),
    "previous_response_id": st.sampled_from([None, None, None, "resp_x"]),
    "n_predict": st.integers(0, 8),
    "n": st.integers(1, 2),
    "best_of": st.integers(1, 2),
    "n_cmpl": st.integers(1, 2),
    "grammar": st.sampled_from([None, None, 'root ::= "a"', "root ::= ("]),
    "json_schema": st.sampled_from([None, None, {"enum": [1]}, {"type": "odd"}]),
    "logit_bias": st.sampled_from([None, {}, {"5": 1}, {"x": 1}]),
    "stop": st.sampled_from([None, "x", ["a", "b"], []]),
    "prompt": st.sampled_from(
        ["", "hello", [1, 2], ["a", "b"], [[1], [5, 6]], [-1], [2**40], ["a", 1]]
    ),
    "limits": st.sampled_from([{}, {"tokens_out": 3}, {"weight": "x"}, {"deadline_s": 0.001}]),
    "models": st.sampled_from([{}, {"default": "tiny"}, {"default": "none"}]),
    "args": st.sampled_from([{}, {"max_tokens": "3"}, {"max_tokens": "x"}]),
    "position": st.integers(0, 3),
    "previous": st.sampled_from([None, 0, 2, 3]),
    "guest": st.sampled_from(["chat", "complete", "summarise"]),
}
"""What gets requests past the door, and keeps them short."""


def test_every_route_is_in_the_document_and_conversely(
    null_runtime: Runtime, tmp_path: Path, tiny_server: Serving
) -> None:
    app = create_app(no_models(null_runtime), ServerSettings(data=tmp_path))

    async def started() -> list[Any]:
        async with app.router.lifespan_context(app):
            return list(app.routes)

    routes = asyncio.run(started())
    assert all(isinstance(it, Endpoint) for it in routes)
    said = tiny_server.get("/openapi.json")
    documented = {(path, it.upper()) for path, found in said["paths"].items() for it in found}
    assert documented == {(it.path_format, it.method) for it in routes}
    assert len(documented) == len(routes)
    operations = [it for found in said["paths"].values() for it in found.values()]
    assert all(it["summary"].endswith(".") for it in operations)
    assert len({it["operationId"] for it in operations}) == len(operations)


def test_it_is_an_openapi_document(tiny_server: Serving) -> None:
    said = tiny_server.get("/openapi.json")
    validate(said)
    assert "security" not in str(said["paths"])
    body = said["paths"]["/v1/agents/{id}/messages"]["post"]["requestBody"]
    assert body["required"]
    assert not said["paths"]["/v1/agents"]["post"]["requestBody"]["required"]
    (name,) = body["content"]["application/json"]["schema"].values()
    fields = said["components"]["schemas"][name.rpartition("/")[2]]
    assert fields["required"] == ["input"]
    assert fields["additionalProperties"] is False
    query = said["paths"]["/v1/agents/{id}/diff"]["get"]["parameters"]
    assert {it["name"]: it["in"] for it in query} == {
        "id": "path",
        "at": "query",
        "other": "query",
        "other_at": "query",
    }


def test_it_is_served_without_a_key(tiny_q8: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    command = [sys.executable, "-m", "isthmus", "serve", "--keys", str(keys), "--new-key", "ada"]
    subprocess.run(command, capture_output=True, check=True)
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--keys", str(keys))
    said = serving.get("/openapi.json")
    for path, found in said["paths"].items():
        for operation in found.values():
            assert operation.get("security") == (None if path in KEYLESS else [{"key": []}])
    assert serving.stop() == 0


# ------------------------------------------------------------------ what is generated


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """With a model that makes text and embeddings, and fills gaps."""
    data = tmp_path_factory.mktemp("data")
    more: Any = {"overrides": {"pooling_type": 3}, "more_special": INFILL}
    able = TinyLlama(with_tokenizer=True, quantisation="Q8_0", **more)
    path = able.write(tmp_path_factory.mktemp("able") / "tiny.gguf")
    serving = Serving(data, "--model", f"tiny={path}", "--n-ctx", "128")
    yield serving
    assert serving.stop() == 0


def fuzz(serving: Serving, n_examples: int, fit: Callable[[Any, Any], None] | None) -> Answers:
    """Calls every operation with what schemathesis makes of the document, and checks the answers.
    With `fit`, only with what is well-formed, after `fit` has changed it."""
    schema = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    excluded = [CHECKS.get_one(name) for name in NOT_SAID]
    answers: Answers = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if _ALIAS.search(operation.definition.raw["operationId"]):
            continue
        json = [it for it in operation.body if it.media_type == "application/json"]
        can_be_wrong = fit is None and (json or operation.query)
        for mode in GenerationMode if can_be_wrong else [GenerationMode.POSITIVE]:

            @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
            @settings(
                max_examples=n_examples,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            def check(case: Any, data: Any) -> None:
                if fit is not None:
                    fit(case, data)
                response = case.call_and_validate(excluded_checks=excluded, timeout=60)
                answers[(case.operation.label, response.status_code)] += 1

            check()
    return answers


def fitting(
    ids: list[str], models: list[str], named: dict[str, list[str]]
) -> Callable[[Any, Any], None]:
    """Changes requests so that they name what there is: agents, models, and other things by a part
    of their path."""

    def fit(case: Any, data: Any) -> None:
        for name, value in case.path_parameters.items() if case.method != "DELETE" else ():
            known = next((it for path, it in named.items() if path in case.path), ids)
            known = {"model": models, "item": named["items"]}.get(name, known)
            case.path_parameters[name] = data.draw(st.sampled_from([*known, value]))
        for name in ("at", "other_at"):
            if name in case.query:
                case.query[name] = data.draw(st.integers(0, 3))
        if "other" in case.query:
            case.query["other"] = data.draw(st.sampled_from(ids))
        if isinstance(case.body, dict):
            for name, values in BODIES.items():
                if name in case.body:
                    case.body[name] = data.draw(values)
            if "model" in case.body:
                case.body["model"] = models[0]
                if "input" in case.body:
                    case.body["input"] = data.draw(BODIES["prompt"])
            counts = case.operation.path.endswith("/count_tokens")
            if {"messages", "prompt"} & case.body.keys() and not counts:
                case.body["max_tokens"] = data.draw(BODIES["max_tokens"])

    return fit


def test_whatever_is_sent_is_answered_as_the_document_says(small_server: Serving) -> None:
    answers = fuzz(small_server, 8, None)
    assert answers.total() > 300
    assert answers[("POST /v1/agents", 400)] >= 4
    assert small_server.get("/healthz")["status"] == "ok"


def others(serving: Serving) -> dict[str, list[str]]:
    """Ids of a response of the background, a conversation and its item."""
    asked = {"model": "tiny", "input": "hi", "max_output_tokens": 4, "background": True}
    item = {"role": "user", "content": "hi", "id": "mine"}
    return {
        "responses": [serving.post("/v1/responses", asked)["id"]],
        "conversations": [serving.post("/v1/conversations", {"items": [item]})["id"]],
        "items": ["mine"],
    }


@pytest.mark.long
def test_what_names_models_and_agents_too(small_server: Serving) -> None:
    ids = [new_agent(small_server, seed=n) for n in range(2)]
    for id_ in ids * 2:
        tell(small_server, id_, "hello")
    answers = fuzz(small_server, 20, fitting(ids, ["tiny"], others(small_server)))
    done = {label for label, status in answers if status < 300}
    assert {label for label, _ in answers} - done == {
        "DELETE /v1/agents/{id}",  # of those that are not there
        "DELETE /v1/conversations/{id}",
        "DELETE /v1/conversations/{id}/items/{item}",
        "DELETE /v1/responses/{id}",
        "DELETE /v1/guests/{id}",
        "POST /v1/guests",  # of bytes that are no WebAssembly
        "POST /v1/agents/restore",  # of bytes that are no snapshot
        "POST /v1/models/pull",  # of names that the catalogue does not have
        "POST /api/pull",
    }
    assert small_server.get("/healthz")["status"] == "ok"


@pytest.mark.long
def test_a_thousand_of_each(small_server: Serving) -> None:
    ids = [new_agent(small_server, seed=n) for n in range(2)]
    fuzz(small_server, 1000, None)
    fuzz(small_server, 300, fitting(ids, ["tiny"], others(small_server)))
    assert small_server.get("/healthz")["status"] == "ok"
