"""Fetches what the Vulkan tests need into `.vulkan/`, without installing anything.

* the software driver lavapipe and the Vulkan loader, out of Debian's or Ubuntu's packages; on
  Debian 12 out of its backports, as lavapipe 22.3 crashes when buffers are freed
* a ggml library with a Vulkan backend, out of the npm package `@node-llama-cpp/linux-x64-vulkan`

Writes `.vulkan/env`, lines for a shell to source. Needs `apt-get`, `dpkg` and `npm`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / ".vulkan"
LIBRARY = "@node-llama-cpp/linux-x64-vulkan@3.22.1"
DRIVER = "mesa-vulkan-drivers"
BOOKWORM = """\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian \
bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian \
bookworm-backports main
"""
_NO_OTHER_SOURCES = "-oDir::Etc::SourceParts=-"
APT = (
    "apt-get",
    f"-oDir::State::Lists={ROOT / 'apt/lists'}",
    f"-oDir::Cache={ROOT / 'apt/cache'}",
    "-oAPT::Sandbox::User=",
)


def main() -> None:
    """Fetches what is not there yet."""
    missing = [tool for tool in ("apt-get", "dpkg", "npm") if not shutil.which(tool)]
    if missing:
        sys.exit(
            f"the Vulkan tests fetch their driver with {', '.join(missing)}, not found here; with "
            "a driver and a ggml library of your own, set ISTHMUS_GGML and run: pytest -m gpu"
        )
    if (ROOT / "env").exists():
        return
    driver, library = ROOT / "driver", ROOT / "library"
    _fetch_driver(driver)
    _fetch_library(library)
    found = next(library.glob("package/bins/*"))
    variables = {
        "VK_DRIVER_FILES": str(_driver_file(driver)),
        "LD_LIBRARY_PATH": ":".join(sorted({str(it.parent) for it in driver.rglob("*.so.*")})),
        "GGML_VK_VISIBLE_DEVICES": "0",  # ggml hides drivers that compute on the processor
        "LP_NATIVE_VECTOR_WIDTH": "128",  # halves the minutes that compiling its shaders takes
        "MESA_SHADER_CACHE_DIR": str(ROOT / "shaders"),
        "ISTHMUS_GGML": str(found),
    }
    lines = [f"export {name}='{value}'\n" for name, value in variables.items()]
    (ROOT / "env").write_text("".join(lines))


def _fetch_driver(target: Path) -> None:
    for folder in ("lists", "cache/archives/partial"):
        (ROOT / "apt" / folder).mkdir(parents=True, exist_ok=True)
    apt: tuple[str, ...] = APT
    release: tuple[str, ...] = ()
    if "VERSION_CODENAME=bookworm" in Path("/etc/os-release").read_text():
        (ROOT / "apt/sources.list").write_text(BOOKWORM)
        apt = (*APT, f"-oDir::Etc::SourceList={ROOT / 'apt/sources.list'}", _NO_OTHER_SOURCES)
        release = ("--target-release", "bookworm-backports")
    _run(*apt, "-qq", "update")
    plan = _run(*apt, *release, "--simulate", "--no-install-recommends", "install", DRIVER)
    wanted = re.findall(r"^Inst (lib(?:drm|llvm|vulkan|xcb|wayland)\S*) ", plan, re.MULTILINE)
    names = sorted({*wanted, DRIVER, "libvulkan1"})  # installed ones are fetched all the same
    with tempfile.TemporaryDirectory() as folder:
        _run(*apt, *release, "download", *names, cwd=folder)
        for package in sorted(Path(folder).glob("*.deb")):
            _run("dpkg", "-x", str(package), str(target))


def _driver_file(driver: Path) -> Path:
    """What tells the loader where lavapipe lies: the package's own says where it is installed."""
    found = next((driver / "usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    contents = json.loads(found.read_text())
    name = Path(contents["ICD"]["library_path"]).name
    contents["ICD"]["library_path"] = str(next(driver.rglob(name)))
    here = ROOT / "lavapipe.json"
    here.write_text(json.dumps(contents))
    return here


def _fetch_library(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", "pack", "--silent", LIBRARY, cwd=folder)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(target, filter="data")


def _run(*command: str, cwd: str | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:1])} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
