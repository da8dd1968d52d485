"""A standing batch: the same sessions take step after step, each with one token.

Writing a batch's inputs anew takes longer than everything else that the host does for a step. While
the sessions stay the same, a step only moves all of them on by one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.model.passes.batch import Batch
from isthmus.model.passes.rows import Rows
from isthmus.model.step import Step


class Standing:
    """A batch whose inputs are those of one step, and the sessions that take it.

    ========  ==================================================================================
    state     what holds
    ========  ==================================================================================
    written   the inputs are those of a step that is not computed yet
    appended  the step is computed and its tokens are the sessions'; `try_advance` may write the
              next one
    ========  ==================================================================================
    """

    def __init__(self, batch: Batch, rows: Rows, steps: Sequence[Step]) -> None:
        """The batch was written with these rows of the steps."""
        self.batch = batch
        bindings = dict.fromkeys(step.session.binding for step in steps)
        self.memories = [binding for binding in bindings if binding.lends]
        """For `Backend.compute`; asking those that lend nothing would take 0.1 µs each."""
        self.sessions = [step.session for step in steps]
        self.n_tokens = len(rows.order)
        """Tokens of each of its steps."""
        self._is_appended = False
        self._token_lists = [session.tokens for session in self.sessions]
        self._new_tokens: list[int] = []
        """The step's token of each session, in order; empty if a session has several."""
        self._lengths: list[int] = []
        """Tokens of each session after the step."""
        self._n_left = 0
        """Steps that are left until the batch has to be written anew."""
        self._order = np.array(rows.order)
        if len(rows.order) == len(steps):
            self._new_tokens = [step.tokens[0] for step in steps]
            self._lengths = [len(tokens) + 1 for tokens in self._token_lists]
            self._n_left = batch.n_steps_left

    def try_advance(self, steps: Sequence[Step]) -> bool:
        """Writes the inputs of these steps, if they are the next ones of the same sessions.

        They are if the sessions come in the same order, each with one token, and each has appended
        the last step's token and no other one.
        """
        if not (self._is_appended and self._n_left):
            return False
        if [step.session for step in steps] != self.sessions:
            return False
        if [*map(len, self._token_lists)] != self._lengths:
            return False
        tokens = [token for step in steps for token in step.tokens]
        if len(tokens) != len(steps):
            return False
        self._new_tokens = tokens
        self._is_appended = False
        self._n_left -= 1
        self._lengths = [length + 1 for length in self._lengths]
        self.batch.advance(np.array(tokens, dtype=np.int32)[self._order])
        return True

    def append(self, steps: Sequence[Step]) -> None:
        """Appends the tokens of the step, which was computed: each session has its logits."""
        self._is_appended = True
        for session, tokens, token in zip(
            self.sessions, self._token_lists, self._new_tokens, strict=False
        ):
            tokens.append(token)
            session.has_logits = True
        if not self._new_tokens:
            for step in steps:
                step.session.tokens.extend(step.tokens)
                step.session.has_logits = True
