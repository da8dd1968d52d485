"""Schemas that clients send, followed by a random model at temperature 2 through the whole server.

The other tests of this folder walk the masks of a grammar by themselves. Here the guest `complete`
samples: the logits, the mask, the sampler and the end of an answer are those of every request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.schemas.types_of_clients import of_pydantic
from tests.schemas.walking import exact, validator_of
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

pytestmark = pytest.mark.long
N_OUTPUTS = 50
MAX_TOKENS = 600
"""Tokens of an output: a random model closes a text that has no bound after some 300."""
NAMES = (
    "bool",
    "bounded, strict",
    "closed, strict",
    "date",
    "described, strict",
    "dict of enum, strict",
    "int64",
    "literal",
    "options, strict",
    "pet, strict",
    "set of enum",
    "tuple",
    "uuid",
    "within",
)
SCHEMAS = {name: schema for name, schema in of_pydantic() if name in NAMES}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("sampled")
    model = TinyLlama(with_tokenizer=True, n_layer=1).write(folder / "random.gguf")
    serving = Serving(folder / "data", "--model", f"random={model}", "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


def outputs(serving: Serving, schema: Any) -> tuple[list[str], bool]:
    """The outputs that the model ended by itself, and whether a warning came with them."""
    body = {"model": "random", "prompt": "x", "guided_json": schema, "n": N_OUTPUTS}
    answer = serving.post(
        "/v1/completions", {**body, "temperature": 2, "seed": 7, "max_tokens": MAX_TOKENS}
    )
    choices = answer["choices"]
    assert len(choices) == N_OUTPUTS
    ended = [it["text"] for it in choices if it["finish_reason"] == "stop"]
    return ended, "warnings" in answer


def test_all_schemas_are_there() -> None:
    assert SCHEMAS.keys() == set(NAMES)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_a_random_model_writes_follows_the_schema(serving: Serving, name: str) -> None:
    schema = SCHEMAS[name]
    ended, is_warned = outputs(serving, schema)
    validator = validator_of(schema)
    wrong = [it for it in ended if list(validator.iter_errors(exact(it)))]
    print(f"{name}: {len(ended)} of {N_OUTPUTS} ended, {len(set(ended))} of them differ")
    assert not is_warned
    assert wrong == []
    assert len(ended) >= N_OUTPUTS // 2
