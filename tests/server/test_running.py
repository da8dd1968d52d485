"""What docs/operation.md tells an operator: the service, the image, backups."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli import build_parser, main
from isthmus.server.kinds import KINDS
from tests.server.conftest import Serving

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "docs" / "isthmus.service"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_service_gives_options_and_variables_that_there_are() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    _, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert build_parser().parse_args(arguments).command == "serve"
    for variable in re.findall(r"ISTHMUS_(\w+)=", UNIT.read_text()):
        assert variable.lower() in {*KINDS, "cache"}


def test_systemd_reads_the_service(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    unit = tmp_path / "isthmus.service"
    text = UNIT.read_text().replace("/opt/isthmus/bin/isthmus", sys.executable)
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert ours == []


def test_the_image_has_settings_that_there_are() -> None:
    for variable in re.findall(r"ISTHMUS_(\w+)=", DOCKERFILE):
        assert variable.lower() in {*KINDS, "cache"}
    assert "USER isthmus" in DOCKERFILE
    assert "libgomp1" in DOCKERFILE
    (command,) = re.findall(r'^ENTRYPOINT \["isthmus"\]\nCMD \["(\w+)"\]', DOCKERFILE, re.MULTILINE)
    assert command == "serve"


def test_a_copy_of_a_running_server_goes_on(
    tiny_q8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "256")
    serving = Serving(tmp_path / "data", *options)
    made = serving.post("/v1/agents", {"name": "Ada", "args": {"max_tokens": "3"}, "seed": 1})
    first = serving.post(f"/v1/agents/{made['id']}/messages", {"input": "Hello"})
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", "--sparse=always", serving.data, backup], check=True)
    second = serving.post(f"/v1/agents/{made['id']}/messages", {"input": "Again"})
    assert serving.stop() == 0

    assert main(["list", str(backup), "--json"]) == 0
    name = re.findall(r'"snapshot": "([^"]+)"', capsys.readouterr().out)[0]
    assert main(["verify-snapshot", f"{backup}/store/{name}"]) == 0
    restored = Serving(backup, *options)
    assert restored.get(f"/v1/agents/{made['id']}")["position"] == first["position"]
    again = restored.post(f"/v1/agents/{made['id']}/messages", {"input": "Again"})
    assert again["output"] == second["output"]
    assert restored.stop() == 0


def _share_network(root: Path) -> None:
    """Gives a system the names, indexes and certificates by which this one reaches the network."""
    for file in (
        "/etc/pip.conf",
        "/etc/resolv.conf",
        "/etc/hosts",
        os.environ.get("SSL_CERT_FILE"),
    ):
        if file and Path(file).is_file():
            Path(f"{root}{file}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, f"{root}{file}")
    shutil.copytree("/etc/apt", f"{root}/etc/apt", dirs_exist_ok=True)


@pytest.mark.long
def test_the_steps_of_the_image_in_a_bare_system(tmp_path: Path) -> None:
    """What the Dockerfile does, in a Debian of debootstrap's: also that the error which one gets
    without GNU's OpenMP names its package."""
    if shutil.which("debootstrap") is None:
        pytest.skip("there is no debootstrap here: apt install debootstrap")
    root = tmp_path / "root"
    packages = "--include=python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True, timeout=1200
    )
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "tests", "bench-results")
    shutil.copytree(ROOT, root / "src", ignore=ignored)
    _share_network(root)

    def within(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chroot", root, "sh", "-c", command], capture_output=True, text=True, timeout=1200,
            check=False,
        )  # fmt: skip

    made = within("python3 -m venv /venv && /venv/bin/pip install -q '/src[serve]'")
    assert made.returncode == 0, made.stderr
    bare = within("/venv/bin/isthmus devices")
    assert "apt-get install libgomp1" in bare.stdout + bare.stderr
    added = within("apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1")
    assert added.returncode == 0, added.stderr
    (user,) = re.findall(r"RUN (useradd .*)", DOCKERFILE)
    assert within(user).returncode == 0
    key = within(
        "su -s /bin/sh isthmus -c '/venv/bin/isthmus serve --keys /data/keys --new-key ada'"
    )
    assert key.returncode == 0, key.stderr
    assert "cpu" in within("su -s /bin/sh isthmus -c '/venv/bin/isthmus devices'").stdout
