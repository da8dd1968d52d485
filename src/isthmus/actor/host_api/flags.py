"""What a guest is told that a model can do."""

from __future__ import annotations

from isthmus.abi import MediaKind, ModelFlag
from isthmus.model import Model
from isthmus.model.shape.hparams import Pooling

_EMBED = {
    None: ModelFlag(0),
    Pooling.NONE: ModelFlag.EMBED_TOKENS,
    Pooling.RANK: ModelFlag.RANK,
}
_MEDIA = {MediaKind.RGB: ModelFlag.PICTURES, MediaKind.PCM: ModelFlag.SOUNDS}


def model_flags(model: Model) -> ModelFlag:
    """The bits of `model_info.flags`."""
    flags = _EMBED.get(model.hparams.pooling, ModelFlag.EMBED)
    flags |= ModelFlag.SESSIONS if model.generates else ModelFlag(0)
    flags |= ModelFlag.STATE if model.generates and not model.truncates else ModelFlag(0)
    flags |= ModelFlag.CHAT_TEMPLATE if model.has_chat_template else ModelFlag(0)
    if model.has_tokenizer and model.tokenizer.adds_bos:
        flags |= ModelFlag.ADD_BOS
    for kind in model.media_kinds:
        flags |= _MEDIA[kind]
    return flags
