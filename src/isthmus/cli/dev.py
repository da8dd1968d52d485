"""`isthmus dev`: talk with a guest while it is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from isthmus.actor import Actor
from isthmus.cli.build import add_project_argument
from isthmus.cli.options import (
    add_device_options,
    add_guest_options,
    add_model_options,
    limits,
    open_models,
    open_runtime,
    say,
)
from isthmus.cli.talk import print_answer
from isthmus.cli.typed import typed_messages
from isthmus.errors import GuestError, ProjectError
from isthmus.model import Model
from isthmus.projects import Sources, build, open_project
from isthmus.runtime import Runtime

HELP = "talk with a guest while you write it: it is built again when its sources change"
EXAMPLES = """\
  isthmus dev hello --model smollm2
  isthmus dev --model "fake:first answer||second answer" --arg max_tokens=64

while it runs:
  a line is a message, an empty one only looks for changes; when the sources have changed, the new
  guest gets all messages again; /new forgets them, Ctrl-D ends"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_project_argument(parser)
    add_model_options(parser)
    add_guest_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    with open_runtime(arguments) as runtime:
        bench = Workbench(runtime, open_models(runtime, arguments), arguments)
        bench.renew()
        for message in typed_messages():
            if message == "/new":
                bench.forget()
            elif bench.renew_if_changed() and message:
                bench.ask(message)
    return 0


class Workbench:
    """A project, the agent that its last good build made, and what was said to it."""

    def __init__(
        self, runtime: Runtime, models: dict[str, Model], arguments: argparse.Namespace
    ) -> None:
        self._runtime = runtime
        self._models = models
        self._arguments = arguments
        self._project = open_project(Path(arguments.folder))
        self._sources = Sources(self._project)
        self._actor: Actor | None = None
        self._said: list[str] = []

    def renew_if_changed(self) -> bool:
        """Builds again if the sources have changed; whether there is an agent to talk with."""
        if self._sources.changed():
            self.renew()
        if self._actor is not None and self._actor.state == "closed":
            self.renew()
        return self._actor is not None

    def renew(self) -> None:
        """Builds, and sends the new agent what was said. An agent stays if there is no new one."""
        try:
            self._project = open_project(self._project.folder)
            path = build(self._project, debug=self._arguments.debug)
            renewed = self._spawn(path)
        except (ProjectError, GuestError) as error:
            say(str(error))
            return
        say(f"{self._project.name} is built.")
        before, self._actor = self._actor, renewed
        if before is None:
            return
        if self._said and before.state != "closed":
            with renewed.inheriting(before):
                self._tell_again()
        else:
            self._tell_again()
        before.close()

    def _tell_again(self) -> None:
        """Sends the agent what was said, and says how much of it was computed again."""
        assert self._actor is not None
        n_before = self._runtime.counters().tokens_prefilled
        for message in self._said:
            say(f"> {message}")
            print_answer(self._actor.stream(message))
        n, n_all = self._runtime.counters().tokens_prefilled - n_before, self._actor.usage.tokens_in
        if n_all:
            say(f"{n_all - n} of {n_all} tokens of prompts were kept.")

    def ask(self, message: str) -> None:
        """Prints the agent's answer, and remembers the message."""
        assert self._actor is not None
        self._said.append(message)
        print_answer(self._actor.stream(message))

    def forget(self) -> None:
        """Begins another conversation."""
        self._said.clear()
        self.renew()

    def _spawn(self, path: Path) -> Actor:
        arguments = self._arguments
        return self._runtime.spawn(
            path,
            models=self._models,
            args=arguments.arg,
            limits=limits(arguments),
            seed=arguments.seed,
        )
