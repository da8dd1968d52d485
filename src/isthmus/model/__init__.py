"""Language models: GGUF files, tokenizers, and their forward passes over a session's own memory."""

from isthmus.model.choosing import open_model
from isthmus.model.model import Model
from isthmus.model.own.adapter import Adapter
from isthmus.model.own.kv_cache import KvLayout
from isthmus.model.sampling.grammar import Grammar
from isthmus.model.sampling.sampler import SamplerSettings, sample
from isthmus.model.session import Session
from isthmus.model.tokens.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "Adapter",
    "Detokenizer",
    "Grammar",
    "KvLayout",
    "Model",
    "SamplerSettings",
    "Session",
    "Tokenizer",
    "open_model",
    "sample",
]
