"""The plays of the scripted model: what clients ask, and what it says to that."""

from __future__ import annotations

from tests.clients.scripted import Play, Step, call

ANSWER = "Paris is sunny, and Rome is rainy."
EDITED = "It says isthmus now."


def weather() -> Play:
    """Two calls of `weather`, then the answer, which is a call where calls are forced."""
    return Play(
        "How is the weather in Paris and in Rome?",
        (
            Step(call("weather", {"city": "Paris"}), "sunny"),
            Step(call("weather", {"city": "Rome"}), "rainy"),
            Step((ANSWER, *call("final_answer", {"answer": ANSWER}))),
        ),
    )


def code() -> Play:
    """The same in Python, for an agent that runs what the model writes."""
    return Play(
        "Write code that tells the weather of Paris and of Rome.",
        (
            Step((_code('print(weather("Paris"))'),), "sunny"),
            Step((_code('print(weather("Rome"))'),), "rainy"),
            Step((_code(f'final_answer("{ANSWER}")'),)),
        ),
    )


def react() -> Play:
    """The same as texts with fields, as dspy asks for them."""
    return Play(
        "Find out the weather of Paris, then that of Rome.",
        (
            Step((_thought("weather", '{"city": "Paris"}'),), "sunny"),
            Step((_thought("weather", '{"city": "Rome"}'),), "rainy"),
            Step((_thought("finish", "{}"),), "Completed."),
            Step((_fields(reasoning="Both are known.", answer=ANSWER),)),
        ),
    )


def person() -> Play:
    """A JSON object as text."""
    return Play("Bob is 30.", (Step(('{"name": "Bob", "age": 30}',)),))


def greeting() -> Play:
    """An answer without tools."""
    return Play("Greet me.", (Step(("Hello, isthmus.",)),))


def shell() -> Play:
    """An edit by two shell commands, as Codex runs them."""
    look = "cat hello.txt"
    change = "sed -i s/world/isthmus/ hello.txt && cat hello.txt"
    return Play(
        "Change world to isthmus in hello.txt by a shell command.",
        (
            Step(call("exec_command", {"cmd": look}), "hello world"),
            Step(call("exec_command", {"cmd": change}), "hello isthmus"),
            Step((EDITED,)),
        ),
    )


def edit() -> Play:
    """An edit by tools that read and edit, as Claude Code has them."""
    change = {"file_path": "hello.txt", "old_string": "world", "new_string": "isthmus"}
    return Play(
        "Change world to isthmus in hello.txt by an edit.",
        (
            Step(call("Read", {"file_path": "hello.txt"}), "hello world"),
            Step(call("Edit", change), "has been updated successfully"),
            Step((EDITED,)),
        ),
    )


def whole_file() -> Play:
    """An edit as a text that has the whole file, as aider asks for it."""
    return Play(
        "Change world to isthmus in hello.txt: write the file.",
        (Step(("hello.txt\n```\nhello isthmus\n```\n",)),),
    )


def endless() -> Play:
    """An answer that ends when its caller leaves."""
    return Play("Count forever.", (Step(("and one more, ",), repeats=True),))


def plays() -> tuple[Play, ...]:
    """All plays."""
    return (
        weather(),
        code(),
        react(),
        person(),
        greeting(),
        shell(),
        edit(),
        whole_file(),
        endless(),
    )


def _code(source: str) -> str:
    return f"Thought: I run this.\n<code>\n{source}\n</code>"


def _thought(tool: str, arguments: str) -> str:
    return _fields(next_thought="I go on.", next_tool_name=tool, next_tool_args=arguments)


def _fields(**fields: str) -> str:
    texts = [f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in fields.items()]
    return "".join([*texts, "[[ ## completed ## ]]"])
