"""Tools as people name them, and what is wrong with names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isthmus.errors import SettingsError
from isthmus.tools import CommandTool, FetchTool, FunctionTool, ToolLimits
from isthmus.tools.spec import Toolbox, spec_of, specs_of_table, specs_of_texts

MODULE = '''
from isthmus.tools import function_tool

def weather(city: str) -> str:
    """The weather."""
    return f"sunny in {city}"

class Sky:
    @staticmethod
    def colour(_: bytes) -> str:
        return "blue"

made = function_tool(weather, description="made")
number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the folder that the process runs in."""
    name = f"tools_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [it for it in sys.path if it])
    return name


def run(box: Toolbox, name: str, arguments: bytes = b"{}") -> bytes:
    return box.tools[name].run(arguments, lambda: None)


def test_texts(module: str) -> None:
    texts = (
        "shout=tr a-z A-Z",
        f"weather={module}:weather",
        f"colour={module}:Sky.colour",
        f"made={module}:made",
    )
    with Toolbox(specs_of_texts(texts)) as box:
        assert run(box, "shout", b"abc") == b"ABC"
        assert run(box, "weather", b'{"city": "Rome"}') == b"sunny in Rome"
        assert run(box, "colour") == b"blue"
        assert box.tools["made"].description == "made"
        kinds = [type(it) for it in box.tools.values()]
        assert kinds == [CommandTool, FunctionTool, FunctionTool, FunctionTool]


def test_tables(module: str, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    said = {
        "plain": "cat",
        "where": {"command": ["pwd"], "folder": str(tmp_path)},
        "env": {"command": "printenv WHO", "environment": {"WHO": "Ada"}, "keys": ["ada"]},
        "weather": {
            "function": f"{module}:weather",
            "description": "Says it.",
            "parameters": schema,
            "deadline_s": 3,
            "output_nbytes": 100,
        },
        "http_fetch": {"hosts": ["example.org"]},
    }
    with Toolbox(specs_of_table(said, "server.toml")) as box:
        assert run(box, "where").decode() == str(tmp_path)
        assert run(box, "env") == b"Ada"
        tool = box.tools["weather"]
        assert tool.limits == ToolLimits(3, 100)
        assert tool.described("w")["function"] == {
            "name": "w",
            "description": "Says it.",
            "parameters": schema,
        }
        assert isinstance(box.tools["http_fetch"], FetchTool)
        assert box.keys == {**dict.fromkeys(said), "env": ["ada"]}


def test_servers(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("liar.py")), "good"]
    with Toolbox({"liar": spec_of("liar", {"mcp": program})}) as box:
        assert "liar_echo" in box.tools
        assert run(box, "liar_echo", b'{"a": 1}') == b'{"a": 1}'
    box.close()


@pytest.mark.parametrize("text", ["", "x", "x=", "x= ", "=cat", "a b=cat"])
def test_texts_that_name_no_tool(text: str) -> None:
    with pytest.raises(SettingsError, match=r"give NAME=COMMAND|no tool can be called"):
        specs_of_texts([text])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (3, "Expected `object`"),
        ({}, "exactly one of command, function, mcp, hosts"),
        ({"command": "a", "hosts": ["b"]}, "exactly one of"),
        ({"command": "a", "colour": "b"}, "unknown field `colour`"),
        ({"command": 3}, r"Expected `str \| array"),
        ({"command": "a", "keys": "ada"}, "Expected `array"),
    ],
)
def test_tables_that_are_none(said: object, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        spec_of("it", said)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("no-such-program-here", "tools.it: there is no program no-such-program-here"),
        ("no_such_module_here:f", "no_such_module_here cannot be imported: ModuleNotFoundError"),
        ("json:no_such", "the module json has no no_such"),
        ("MODULE:number", "is a int, and neither function nor Tool"),
        ({"hosts": []}, "no host may be asked"),
        ({"hosts": ["a b"]}, "'a b' is no host"),
        ({"command": "cat", "deadline_s": 0}, "deadline_s is 0"),
        ({"command": "cat", "folder": "/no/such"}, "there is no folder /no/such"),
        ({"mcp": "no-such-program-here"}, "there is no program"),
    ],
)
def test_tools_that_cannot_be_opened(module: str, said: object, expected: str) -> None:
    said = said.replace("MODULE", module) if isinstance(said, str) else said
    with pytest.raises(SettingsError, match=expected):
        Toolbox({"it": spec_of("it", said)})


def test_names_are_used_once() -> None:
    with pytest.raises(SettingsError, match="two tools named x"):
        specs_of_texts(["x=cat", "x=tac"])
    program = [sys.executable, str(Path(__file__).with_name("liar.py")), "good"]
    specs = {"a_echo": spec_of("a_echo", "cat"), "a": spec_of("a", {"mcp": program})}
    with pytest.raises(SettingsError, match="two tools named a_echo"):
        Toolbox(specs)
    with pytest.raises(SettingsError, match=r"x.toml: tools is \[1\]: give a table"):
        specs_of_table([1], "x.toml")


def test_without_the_package_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isthmus.tools.mcp", None)
    with pytest.raises(SettingsError, match=r"pip install 'isthmus\[mcp\]'"):
        Toolbox({"it": spec_of("it", {"mcp": "cat"})})
