"""The host functions of the group `grammar` in `abi/host.toml`, in its order."""

from __future__ import annotations

import logging
from functools import partial

from isthmus.abi import Errno, GrammarKind
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import LOG_RECORD_NBYTES, Context, require_logits, signed
from isthmus.config import MAX_GRAMMAR_NBYTES
from isthmus.errors import GrammarError, GuestFault
from isthmus.model import Grammar, Model

_KINDS = frozenset(kind.value for kind in GrammarKind)


class GrammarFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def grammar_open(self, model: int, kind: int, source_ptr: int, source_nbytes: int) -> int:
        c = self._c
        opened = c.model(model)
        if kind not in _KINDS:
            raise GuestFault(Errno.EINVAL)
        source = c.memory.read_text(source_ptr, source_nbytes, MAX_GRAMMAR_NBYTES)
        c.limit("grammars", len(c.handles.all(Grammar)) + 1, c.limits.grammars)
        c.handles.require_room()
        check = c.message.check_going_on
        try:
            grammar = await Aside(
                c.message, partial(opened.grammars.open, GrammarKind(kind), source, check=check)
            )
        except GrammarError as error:
            text = str(error)
            c.message.explained[Errno.EINVAL] = GrammarError(text)
            c.spend_output(LOG_RECORD_NBYTES + len(text))
            c.log(logging.WARNING, text)
            raise
        return c.handles.add(grammar, c.handles.model_of(model))

    def grammar_mask(self, grammar: int, session: int) -> int:
        opened, masked = self._grammar(grammar), self._c.session(session)
        if Model.of(masked) is not opened.model:
            raise GuestFault(Errno.EINVAL)
        require_logits(masked)
        return opened.mask(masked.logits)

    def grammar_accept(self, grammar: int, token: int) -> int:
        opened = self._grammar(grammar)
        opened.model.require_token(signed(token))
        opened.accept(token)
        return 0

    def grammar_close(self, grammar: int) -> int:
        self._c.handles.remove(grammar, Grammar)
        return 0

    def _grammar(self, handle: int) -> Grammar:
        return self._c.handles.get(handle, Grammar)
