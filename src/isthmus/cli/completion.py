"""`isthmus completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

HELP = "print the completion of commands and options for a shell"
EXAMPLES = """\
  source <(isthmus completion bash)                 (in ~/.bashrc)
  source <(isthmus completion zsh)                  (in ~/.zshrc, after compinit)
  isthmus completion fish > ~/.config/fish/completions/isthmus.fish"""
_SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class _Option:
    names: tuple[str, ...]
    said: str
    takes: bool
    """Whether a value follows it."""
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    said: str
    options: tuple[_Option, ...]
    words: tuple[str, ...]
    """What its arguments may be, where that is a closed set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("shell", choices=_SHELLS, help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    from isthmus.cli import build_parser  # noqa: PLC0415 - it imports this command

    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    print(write(_commands(build_parser())))
    return 0


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    """All commands, as the parser has them."""
    (found,) = (it for it in parser._actions if isinstance(it, argparse._SubParsersAction))
    return [_command(name, it) for name, it in found.choices.items()]


def _command(name: str, parser: argparse.ArgumentParser) -> _Command:
    options: list[_Option] = []
    words: list[str] = []
    for action in parser._actions:
        choices = tuple(map(str, action.choices or ()))
        if action.option_strings:
            said = (action.help or "").partition(" (")[0].partition("; ")[0]
            takes = action.nargs != 0
            options.append(_Option(tuple(action.option_strings), said, takes, choices))
        else:
            words += choices
    return _Command(name, parser.description or "", tuple(options), tuple(words))


def _bash(commands: list[_Command]) -> str:
    """A function that knows the command, and what its options take; files are bash's own."""
    cases = "\n".join(
        f"    {it.name}) words={_quoted(' '.join([*_names(it), *it.words]))};;" for it in commands
    )
    values = "\n".join(
        f"    {command.name},{name}) words={_quoted(' '.join(option.choices))};;"
        for command in commands
        for option in command.options
        for name in option.names
        if option.choices
    )
    return f"""\
_isthmus() {{
  if [ -n "$ZSH_VERSION" ]; then emulate -L ksh; fi
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={_quoted(" ".join(it.name for it in commands))}
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "${{COMP_WORDS[1]}},$before" in
{values}
    esac
  fi
  local word
  for word in $words; do
    case "$word" in "$current"*) COMPREPLY+=("$word");; esac
  done
}}
complete -o default -F _isthmus isthmus"""


def _zsh(commands: list[_Command]) -> str:
    """bash's function, which `bashcompinit` of zsh calls."""
    return f"autoload -Uz bashcompinit && bashcompinit\n{_bash(commands)}"


def _fish(commands: list[_Command]) -> str:
    lines = []
    for it in commands:
        lines.append(
            f"complete -c isthmus -n __fish_use_subcommand -f -a {it.name} -d {_quoted(it.said)}"
        )
        within = f"complete -c isthmus -n '__fish_seen_subcommand_from {it.name}'"
        lines += [f"{within} -f -a {_quoted(' '.join(it.words))}"] if it.words else []
        lines += [f"{within} {_fish_option(option)}" for option in it.options]
    return "\n".join(lines)


def _fish_option(it: _Option) -> str:
    named = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in it.names]
    values = [f"-x -a {_quoted(' '.join(it.choices))}"] if it.choices else ["-r"] * it.takes
    return " ".join([*named, *values, f"-d {_quoted(it.said)}"])


def _names(it: _Command) -> list[str]:
    return [name for option in it.options for name in option.names]


def _quoted(text: str) -> str:
    """A text in single quotes, as all three shells read them."""
    return "'" + text.replace("'", "") + "'"
