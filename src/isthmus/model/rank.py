"""Rerankers: models that read a query and a document together, and score how they go together.

Their last part is a small classifier over one token: an encoder's first one, a decoder's last one.
A file says by pooling_type 4 that it is such a model, and how the two texts are put together:

1. `tokenizer.chat_template.rerank`, a text with `{query}` and `{document}` in it
2. otherwise the query and the document, with the tokens around them that the vocabulary adds
"""

from __future__ import annotations

from isthmus.errors import ModelUnsupported
from isthmus.model.chat.chat_guard import ChatGuard, unused
from isthmus.model.files.gguf import GgufFile
from isthmus.model.tokens.tokenizer import Tokenizer

TEMPLATE_KEY = "tokenizer.chat_template.rerank"
_QUERY, _DOCUMENT = "{query}", "{document}"


def rank_ids(file: GgufFile, tokenizer: Tokenizer, query: str, document: str) -> list[int]:
    """The token ids of a query and a document as a reranker reads them.

    Only the file's template gives control tokens. TokenError; ModelUnsupported for a template
    without places for both.
    """
    template = file.metadata.get(TEMPLATE_KEY)
    if not isinstance(template, str):
        return tokenizer.encode_pair(query, document)
    if _QUERY not in template or _DOCUMENT not in template:
        raise ModelUnsupported(f"{file.path} has a rerank template without {_QUERY} or {_DOCUMENT}")
    seam = unused((template, query, document))
    guard = ChatGuard(tokenizer.controls)
    text = _filled(template, guard.guarded_text(query, seam), guard.guarded_text(document, seam))
    return tokenizer.encode(text, parse_special=True, seam=seam)


def _filled(template: str, query: str, document: str) -> str:
    """The template with both texts in it, neither of which is looked at for places."""
    parts = [part.split(_DOCUMENT) for part in template.split(_QUERY)]
    return query.join(document.join(part) for part in parts)
