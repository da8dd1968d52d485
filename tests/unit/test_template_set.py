"""Which of a file's chat templates is taken, and the special tokens that it can name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isthmus.errors import TemplateError
from isthmus.model.chat.template_set import TemplateSet

TOKENS = ["<s>", "</s>", "<pad>", "<unk>"]


def of(metadata: dict[str, Any]) -> TemplateSet | None:
    def decode(tokens: list[int], render_special: bool) -> bytes:
        assert render_special
        return TOKENS[tokens[0]].encode()

    tokenizer: Any = SimpleNamespace(bos=0, eos=1, n_tokens=len(TOKENS), decode=decode)
    file: Any = SimpleNamespace(metadata=metadata)
    return TemplateSet.of(file, tokenizer)


def rendered(metadata: dict[str, Any], *, with_tools: bool = False) -> str:
    found = of(metadata)
    assert found is not None
    template = found.chosen(with_tools=with_tools).template
    return template.render([], add_generation_prompt=False)


KEY = "tokenizer.chat_template"


def test_files_without_a_template() -> None:
    assert of({}) is None
    assert of({KEY: ""}) is None
    assert of({KEY: 7, f"{KEY}.default": b""}) is None


def test_the_usual_one_goes_before_one_that_is_called_default() -> None:
    both = {KEY: "usual", f"{KEY}.default": "other", f"{KEY}.tool_use": "tools"}
    assert rendered(both) == "usual"
    assert rendered(both, with_tools=True) == "tools"
    assert rendered({f"{KEY}.default": "other"}, with_tools=True) == "other"


def test_names_are_shown_in_bounds() -> None:
    found = of({f"{KEY}.{'x' * 999}{n}": "a" for n in range(99)})
    assert found is not None
    with pytest.raises(TemplateError, match="none called 'default'") as caught:
        found.chosen(with_tools=True)
    assert len(str(caught.value)) < 600


def test_special_tokens() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ mask_token }}"
    ids = {"padding": 2, "unknown": 3, "mask": 4}
    metadata = {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items()}
    assert rendered({KEY: source, **metadata}) == "<s></s><pad><unk>"
    asked = "{{ pad_token is defined }}{{ unk_token is defined }}"
    assert rendered({KEY: asked, "tokenizer.ggml.padding_token_id": "x"}) == "FalseFalse"
