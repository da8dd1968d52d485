"""What docs/operation.md tells an operator: the service, the image, backups."""

from __future__ import annotations

import configparser
import json
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


BASE = "docker.io/library/python:3.12-slim"
PACKAGES = "python3-pip,python-is-python3,ca-certificates"


def buildah(store: Path, *arguments: str | Path, timeout: float = 1800) -> str:
    """What buildah prints, which needs no daemon, no privilege of mounting and no namespaces."""
    command = ["buildah", "--storage-driver", "vfs", "--root", store, "--runroot", f"{store}.run"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_the_image_is_built_and_its_server_answers(tmp_path: Path) -> None:
    """The Dockerfile as it stands, by buildah. Its base is a Debian of debootstrap's under the name
    of Python's image; there the error which one gets without GNU's OpenMP names its package."""
    for program in ("debootstrap", "buildah"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here: apt install {program}")
    root, store = tmp_path / "root", tmp_path / "store"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root],
        check=True, timeout=1800,
    )  # fmt: skip
    _share_network(root)
    base = buildah(store, "from", "scratch").strip()
    buildah(store, "add", "-q", base, root, "/")
    buildah(store, "config", "--env", "PIP_BREAK_SYSTEM_PACKAGES=1", base)
    buildah(store, "commit", "-q", base, BASE)
    chroot = ("--isolation", "chroot")
    buildah(store, "bud", *chroot, "--format", "docker", "--pull-never", "-t", "isthmus", ROOT)

    made = buildah(store, "from", "--pull-never", "isthmus").strip()
    run = ("run", *chroot, made, "--")
    key = buildah(store, *run, "isthmus", "serve", "--new-key", "ada").strip()
    assert key.startswith("isk-")
    assert "cpu" in buildah(store, *run, "isthmus", "devices")
    told = buildah(store, *run, "sh", "-c", SERVED, "sh", key)
    assert json.loads(told)["data"][0]["id"] == "fake"
    config = json.loads(buildah(store, "inspect", "isthmus"))["Docker"]["config"]
    assert config["Entrypoint"] + config["Cmd"] == ["isthmus", "serve"]
    assert config["User"] == "isthmus"
    assert "readyz" in config["Healthcheck"]["Test"][-1]
    remove = ("apt-get", "remove", "-qq", "-y", "libgomp1")
    buildah(store, "run", *chroot, "--user", "root", made, "--", *remove)
    bare = buildah(store, *run, "sh", "-c", "isthmus devices 2>&1 || true")
    assert "apt-get install libgomp1" in bare


SERVED = """
isthmus serve --model fake:hello >/tmp/log 2>&1 &
for _ in $(seq 300); do
  python -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8080/readyz")' \\
    2>/dev/null && break
  sleep 0.2
done
python - "$1" <<'EOF'
import sys, urllib.request as r
headers = {"Authorization": "Bearer " + sys.argv[1]}
print(r.urlopen(r.Request("http://127.0.0.1:8080/v1/models", headers=headers)).read().decode())
EOF
kill $!
"""
"""A server in the image, and what a client with the key in $1 sees of its models."""
