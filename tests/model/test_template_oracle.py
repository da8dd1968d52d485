"""The goldens of chat templates are what the installed Transformers makes of them."""

from __future__ import annotations

import json

import pytest

from tests.templates import huggingface

pytestmark = pytest.mark.long


def test_transformers_renders_the_goldens() -> None:
    pytest.importorskip("transformers", reason="make test-templates installs it")
    texts = json.loads(huggingface.GOLDENS.read_text())
    found = {(template, name): text for template, name, text in huggingface.render_all()}
    assert len(found) == sum(len(it) for it in texts.values()) > 600
    for (template, name), text in found.items():
        assert text == texts[template][name], (template, name)
