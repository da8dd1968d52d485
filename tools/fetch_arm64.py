"""Fetches an emulated arm64 machine into `.arm64/`, without installing anything.

* Debian's Python for arm64 with the libraries that it needs, out of Debian's packages
* QEMU's emulator of processes, out of the same (this machine's architecture)
* the arm64 wheels of what Isthmus and its tests need, from the package index

Writes `.arm64/python` and `.arm64/python16`: Python on arm64, with pages of 4 KiB, and of 16 KiB by
`tests/device/fake_pages.c`. Needs `apt-get`, `dpkg`, and the package `ziglang`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent
ROOT = SOURCES / ".arm64"
PYTHON = "python3.11"
PACKAGES = (PYTHON, "libgomp1", "libstdc++6")
GLIBC = 36
"""Of Debian 12: 2.36."""
TESTS = ("pytest", "hypothesis", "gguf==0.19.0", "jsonschema")
APT = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "";
Dir::State "{root}/apt";
Dir::State::status "{root}/apt/status";
Dir::Cache "{root}/apt/cache";
Dir::Etc::SourceList "{root}/apt/sources.list";
Dir::Etc::SourceParts "-";
"""
BOOKWORM = "deb http://deb.debian.org/debian bookworm main\n"
WRAPPER = """\
#!/bin/sh
export PYTHONPATH={sources}/src:{root}/packages:{sources}
exec {emulator} -0 {here} -L {root}/root {options} {root}/root/usr/bin/{python} "$@"
"""
"""`-0`: what Python starts as `sys.executable` is emulated as well."""


def main() -> None:
    """Fetches what is not there yet."""
    if missing := [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]:
        sys.exit(f"the emulated machine is fetched with {', '.join(missing)}, not found here")
    if (ROOT / "python16").exists():
        return
    _fetch_system()
    emulator = _fetch_emulator()
    _fetch_wheels()
    pages = ROOT / "libpages.so"
    target = f"aarch64-linux-gnu.2.{GLIBC}"
    compiler = (sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared", "-fPIC", "-O1")
    _run(*compiler, "-o", str(pages), str(SOURCES / "tests/device/fake_pages.c"))
    for name, options in (("python", ""), ("python16", f"-E LD_PRELOAD={pages}")):
        here = ROOT / name
        here.write_text(
            WRAPPER.format(
                sources=SOURCES,
                root=ROOT,
                emulator=emulator,
                here=here,
                options=options,
                python=PYTHON,
            )
        )
        here.chmod(0o755)


def _fetch_system() -> None:
    for folder in ("apt/lists/partial", "apt/cache/archives/partial"):
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / "apt/status").touch()
    (ROOT / "apt/sources.list").write_text(BOOKWORM)
    (ROOT / "apt/apt.conf").write_text(APT.format(root=ROOT))
    os.environ["APT_CONFIG"] = str(ROOT / "apt/apt.conf")
    _run("apt-get", "-qq", "update")
    options = ("--yes", "--no-install-recommends", "--download-only")
    _run("apt-get", "-qq", "install", *options, *PACKAGES)
    del os.environ["APT_CONFIG"]
    for package in sorted((ROOT / "apt/cache/archives").glob("*.deb")):
        _run("dpkg", "-x", str(package), str(ROOT / "root"))


def _fetch_emulator() -> Path:
    target = ROOT / "emulator"
    target.mkdir(exist_ok=True)
    _run("apt-get", "-qq", "-oAPT::Sandbox::User=", "download", "qemu-user-static", cwd=target)
    _run("dpkg", "-x", str(next(target.glob("*.deb"))), str(target))
    names = ("qemu-aarch64-static", "qemu-aarch64")
    return next(it for name in names if (it := target / "usr/bin" / name).exists())


def _fetch_wheels() -> None:
    needed = [it for it in requires("isthmus") or () if "extra ==" not in it]
    systems = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)]
    kinds = [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    options = ("--python-version=3.11", "--implementation=cp", "--only-binary=:all:", *systems)
    target = f"--target={ROOT / 'packages'}"
    _run(*pip, target, "--platform=manylinux2014_aarch64", *options, *kinds, *needed, *TESTS)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        sys.exit(f"{' '.join(command[:4])} failed: {said[-2000:]}")


if __name__ == "__main__":
    main()
