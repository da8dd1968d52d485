"""What a script that is run as an agent sees; `isthmus run agent.py` runs one.

The script defines `on_message(text)`, which handles a message: a str that it returns is emitted.
It may define `on_replay()`: the model is another one from now on. Sessions are open and empty, and
token ids that were kept mean nothing; texts are what they were.

The language is MicroPython's Python 3: with json, re, random, math, collections, heapq, struct and
binascii, and without files, threads, clocks and network. What is printed goes to the agent's log.
"""

from typing import Literal, TypedDict, overload

class Turn(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str

class Session:
    """One sequence of tokens, whose KV cache and logits lie in the agent's memory."""

    model: Model
    def __len__(self) -> int: ...
    def become(self, tokens: list[int]) -> None:
        """Makes it hold exactly these tokens; computes only what is new."""
    def decode(self, token: int) -> None:
        """Appends a token."""
    def keep(self, n: int) -> int:
        """Forgets all tokens after the first n. Returns how many are left."""
    def sample(self) -> int:
        """Draws the next token, by the options temperature, top_k, …, seed. Does not append it."""
    def logits(self) -> memoryview[float]:
        """The logits in place, one for each token of the vocabulary."""
    def copy_from(self, other: Session) -> None:
        """Makes it hold what another session of its model holds."""
    def generate(self, max_tokens: int = 256) -> str:
        """Draws, streams and appends up to max_tokens tokens. Returns their text."""
    def close(self) -> None: ...

class Model:
    def chat_tokens(self, turns: list[Turn]) -> list[int]:
        """A conversation as tokens, up to the assistant's turn; refuses control tokens in a
        content."""
    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """parse_special is only for text of your own."""
    def detokenize(self, tokens: list[int]) -> str: ...
    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""
    def open_session(self, n_ctx: int = 0) -> Session:
        """A session of n_ctx tokens; by default of the option n_ctx, or what the model knows."""

def emit(text: str) -> None:
    """Streams a piece of the answer."""

def log(text: str, level: Literal["debug", "info", "warning", "error"] = "info") -> None:
    """Writes a line to the agent's log."""

@overload
def option(name: str) -> str | None: ...
@overload
def option(name: str, default: str) -> str:
    """An option that the agent was spawned with, `key=value`, or the second argument."""

def tool(name: str, args: str = "") -> str | None:
    """Calls a tool of the host; None if this agent was not given it."""

def open_model(name: str | None = None) -> Model:
    """Opens a model by name; by default the one that the option `model` names, or "default"."""
