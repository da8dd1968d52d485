"""A conversation in the terminal: messages, and words that begin with a slash."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isthmus.actor import Actor, Stream
from isthmus.actor.content import with_files
from isthmus.cli.leaving import Leaving
from isthmus.cli.options import read_files, say
from isthmus.cli.restoring import restore, target
from isthmus.cli.snapshot import tell
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    AnswerPaused,
    Cancelled,
    ContextFull,
    GuestError,
    IsthmusError,
    ToolError,
)
from isthmus.model.checks import nothing
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.snapshot import Saved, Store, open_snapshot
from isthmus.spelling import suggestion
from isthmus.tools import Tool

Begin = Callable[[str | None], Actor]
"""Begins a conversation with a system prompt, or without one."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a word does. `takes` names its argument, in brackets if it may be left out."""

    takes: str
    said: str
    do: Callable[[Talk, str], None]


class Talk:
    """See the module. `hear` takes what a user typed; `is_over` says that it is to end.

    `resumed` is where the conversation is saved after each answer: the file, and how it is named
    to `Actor.snapshot`.
    """

    def __init__(
        self, runtime: Runtime, arguments: argparse.Namespace, begin: Begin, resumed: Resumed | None
    ) -> None:
        self._runtime = runtime
        self._arguments = arguments
        self._begin = begin
        self._resumed = resumed
        self._system: str | None = arguments.system
        self._waiting: list[Actor] = []
        """Conversations that `/fork` left, the last of them last."""
        self.actor: Actor | None = None
        self.tools: Mapping[str, Tool] = {}
        """Of conversations that `/load` brings back."""
        self.files: list[bytes] = []
        """What goes with the next message."""
        self.is_over = False

    def start(self, actor: Actor | None = None) -> None:
        """Begins with an actor that was restored, or with a fresh one."""
        self.actor = actor or self._begin(self._system)
        self._go_on()

    def hear(self, text: str) -> None:
        """Answers a message, or does what a word says."""
        if text.startswith("/") and not text.startswith("//"):
            self._obey(text)
        elif text:
            self._send(text.removeprefix("/") if text[0] == "/" else text)

    def _send(self, text: str) -> None:
        files, self.files = self.files, []
        message = with_files(text, *files) if files else text
        self._print(self._present.stream(message))

    def _go_on(self) -> None:
        """Prints the rest of an answer, if the conversation is in the middle of one."""
        if (said := self._present.answer_so_far) is not None:
            print(said, end="", flush=True)
            self._print(self._present.resume(), said)

    def _print(self, stream: Stream, said: str = "") -> None:
        """Prints an answer, and saves the conversation; Ctrl-Z leaves in the middle of it."""
        if self._resumed is None:
            print_answer(stream, said)
        else:
            with Leaving() as leaving:
                print_answer(stream, said, partial(self._leave, leaving))
        if self._present.state == "closed":
            self._renew()
        elif self._resumed is not None and not self.is_over:
            self._resumed.save(self._present)

    def _leave(self, leaving: Leaving) -> None:
        """Pauses the answer after Ctrl-Z was pressed."""
        if not leaving.wanted or self.is_over:
            return
        try:
            self.is_over = self._present.pause()
        except ActorBusy as error:  # a tool works for it: after the next piece, maybe
            say(f"\n{printable(str(error))}")
            leaving.wanted = False

    def end(self) -> None:
        """Saves the conversation a last time, and says where it is."""
        if self._resumed is not None and self._present.n_messages:
            tell(self._resumed.save(self._present))

    @property
    def _present(self) -> Actor:
        assert self.actor is not None, "start comes first"
        return self.actor

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        word = WORDS.get(_OTHERWISE.get(name, name))
        if word is None:
            meant = suggestion(name, WORDS) or ": /help lists what there is"
            say(f"There is no {name}{meant}. Begin with // to send a message that begins with /")
            return
        rest = rest.strip()
        if bool(rest) > bool(word.takes) or bool(rest) < (word.takes[:1] not in ("", "[")):
            say(f"Give it as: {name} {word.takes}".rstrip())
            return
        try:
            word.do(self, rest)
        except IsthmusError as error:  # nothing has changed
            say(printable(str(error), lines=True))

    def _renew(self) -> None:
        """Begins another conversation, and keeps the file of the one before."""
        for actor in (*self._waiting, self._present):
            actor.close()
        self._waiting.clear()
        say("A new conversation begins.")
        if self._resumed is not None:
            self._resumed.set_aside()
        self.actor = self._begin(self._system)

    # ------------------------------------------------------------------ words

    def _help(self, _: str) -> None:
        lines = [(f"{name} {word.takes}".rstrip(), word.said) for name, word in WORDS.items()]
        width = max(len(name) for name, _ in lines)
        said = [f"  {name:<{width}}  {what}" for name, what in lines]
        said += [f"  {chr(34) * 3:<{width}}  begins and ends a message of several lines"]
        said += [f"  {'Ctrl-C':<{width}}  stops an answer, which keeps what was said"]
        if self._resumed is not None:
            said += [f"  {'Ctrl-Z':<{width}}  leaves in the middle of an answer; --resume goes on"]
        say("\n".join(said))

    def _new(self, _: str) -> None:
        self._renew()

    def _set_system(self, text: str) -> None:
        if not text:
            say(self._system or "There is no system prompt: /system TEXT begins with one")
            return
        self._system = text
        self._renew()

    def _take_file(self, text: str) -> None:
        self.files += read_files([text])
        say("It goes with the next message.")

    def _save(self, text: str) -> None:
        place, name = target(text)
        tell(self._present.snapshot(place, name=name))

    def _load(self, text: str) -> None:
        arguments = copy.copy(self._arguments)
        arguments.verify = "full"
        before, self.actor = self._present, restore(self._runtime, text, arguments, self.tools)
        before.close()
        self._go_on()

    def _fork(self, _: str) -> None:
        (child,) = self._present.fork()
        self._waiting.append(self._present)
        self.actor = child
        say("This is a copy of the conversation: /back returns to where it was made.")

    def _back(self, _: str) -> None:
        if not self._waiting:
            say("There is nothing to go back to: /fork makes a copy first")
            return
        self._present.close()
        self.actor = self._waiting.pop()
        say("Back where the copy was made.")

    def _exit(self, _: str) -> None:
        self.is_over = True


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where `--resume` keeps a conversation."""

    file: Path
    place: Path | Store
    name: str | None

    def save(self, actor: Actor) -> Saved:
        """Saves it."""
        return actor.snapshot(self.place, name=self.name)

    def set_aside(self) -> None:
        """Keeps the conversation that a new one would replace."""
        file = self.file
        if file.exists():
            kept = file.with_name(f"{file.stem}-{open_snapshot(file).id[:8]}{file.suffix}")
            file.rename(kept)
            say(f"The one before is kept as {kept}")


def print_answer(
    stream: Stream, emitted: str = "", after_piece: Callable[[], None] = nothing
) -> None:
    """Prints one answer as it comes, of which `emitted` was printed before; Ctrl-C stops the answer
    and not the program."""
    try:
        with stream:
            for piece in stream:
                print(piece, end="", flush=True)
                emitted += piece
                after_piece()
        reply = stream.reply
        if reply.text != emitted:  # the guest's reply is in place of all that it emitted
            print(f"\n{reply.text}" if emitted else reply.text, end="")
        print()
        if reply.tool_calls:
            say(f"[{', '.join(it.name for it in reply.tool_calls)}]")
    except KeyboardInterrupt:
        print(" [stopped]")
    except AnswerPaused:
        print()
    except ContextFull as error:
        say(f"\n{printable(str(error))} (/new)")
    except (GuestError, ToolError, Cancelled, ActorClosed) as error:
        say(f"\n{printable(str(error))}")


WORDS = {
    "/help": Word("", "lists these words", Talk._help),
    "/new": Word("", "begins another conversation", Talk._new),
    "/system": Word(
        "[TEXT]", "begins another one with a system prompt; or shows it", Talk._set_system
    ),
    "/image": Word(
        "FILE", "takes a picture or a sound along with the next message", Talk._take_file
    ),
    "/save": Word("FILE|STORE/NAME", "saves the conversation whole", Talk._save),
    "/load": Word("FILE|STORE/NAME", "goes on with one that was saved", Talk._load),
    "/fork": Word("", "goes on in a copy", Talk._fork),
    "/back": Word("", "leaves the copy, and goes on where it was made", Talk._back),
    "/exit": Word("", "ends; Ctrl-D too", Talk._exit),
}
_OTHERWISE = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/clear": "/new"}
"""Words of other programs, by those that mean the same here."""
