"""Fetches emulated arm64 machines into `.arm64/`, without installing anything.

* Debian's Python for arm64 with the libraries that it needs, out of Debian's packages
* Debian's kernels for arm64, with pages of 4 KiB and of 16 KiB, out of the same
* QEMU's emulators of processes and of whole machines, out of the same (this machine's architecture)
* the arm64 wheels of what Isthmus and its tests need, from the package index

Writes `.arm64/python` and `.arm64/python16`: Python as an emulated process, with pages of 4 KiB,
and of 16 KiB by `tests/device/fake_pages.c`. Writes `.arm64/machine4` and `.arm64/machine16` too:
whole machines with kernels of such pages. They take a folder, and run the commands that lie in it
(`tests/device/arm64_inside.py`). Needs `apt-get`, `dpkg`, and the package `ziglang`.
"""

from __future__ import annotations

import lzma
import platform
import shutil
import sys
from importlib.metadata import requires
from pathlib import Path

from debian import Debian, run

SOURCES = Path(__file__).resolve().parent.parent
ROOT = SOURCES / ".arm64"
PYTHON = "python3.11"
PACKAGES = (PYTHON, "libgomp1", "libstdc++6")
GLIBC = 36
"""Of Debian 12: 2.36."""
TESTS = ("pytest", "hypothesis", "gguf==0.19.0", "jsonschema")
KERNELS = {"machine4": "linux-image-arm64", "machine16": "linux-image-arm64-16k"}
MODULES = ("fs/netfs/netfs", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p")
"""Of the kernel, in this order: folders of this machine as the emulated one's (9P)."""
WRAPPER = """\
#!/bin/sh
export PYTHONPATH={sources}/src:{root}/packages:{sources}
exec {emulator} -0 {here} -L {root}/root {options} {root}/root/usr/bin/{python} "$@"
"""
"""`-0`: what Python starts as `sys.executable` is emulated as well."""
MACHINE = """\
#!/bin/sh
shared() {{
  echo "-fsdev local,id=$1,path=$2,security_model=none$3"
  echo "-device virtio-9p-pci,fsdev=$1,mount_tag=$1"
}}
exec {loader} --library-path {libraries} {emulator} -L {data} \\
  -M virt,gic-version=3 -cpu max,pauth-impdef=on -smp 2 -m 4096 -accel tcg,thread=multi \\
  -nographic -no-reboot -nic none \\
  -kernel {folder}/vmlinuz -initrd {folder}/initramfs -append "console=ttyAMA0 quiet panic=-1" \\
  $(shared root {root}/root ,readonly=on) $(shared packages {root}/packages ,readonly=on) \\
  $(shared sources {sources} ,readonly=on) $(shared exchange "$1")
"""
INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in {modules}; do $b insmod /modules/$module.ko; done
shared="$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576"
$shared,ro,cache=loose root /root
for folder in packages sources; do $shared,ro,cache=loose $folder /root/$folder; done
$shared,cache=mmap exchange /root/exchange
$b mount -t proc proc /root/proc
$b mount -t sysfs sysfs /root/sys
$b mount -t devtmpfs dev /root/dev
$b mount -t tmpfs tmp /root/tmp
export PYTHONPATH=/sources/src:/packages:/sources PYTHONDONTWRITEBYTECODE=1
export HOME=/tmp PATH=/usr/bin:/bin
$b chroot /root /usr/bin/{python} /sources/tests/device/arm64_inside.py /exchange
$b poweroff -f
"""


def main() -> None:
    """Fetches what is not there yet."""
    if missing := [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]:
        sys.exit(f"the emulated machine is fetched with {', '.join(missing)}, not found here")
    if not (ROOT / "python16").exists():
        _fetch_processes()
    if not (ROOT / "machine16").exists():
        _fetch_machines()


def _fetch_processes() -> None:
    system = Debian(ROOT / "apt/system", "bookworm", "arm64")
    system.update()
    system.unpack_with_all_needed(*PACKAGES, to=ROOT / "root")
    _fetch_wheels()
    emulator = ROOT / "emulator"
    _here().unpack("qemu-user-static", emulator)
    pages = ROOT / "libpages.so"
    target = f"aarch64-linux-gnu.2.{GLIBC}"
    compiler = (sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared", "-fPIC", "-O1")
    run(*compiler, "-o", str(pages), str(SOURCES / "tests/device/fake_pages.c"))
    for name, options in (("python", ""), ("python16", f"-E LD_PRELOAD={pages}")):
        here = ROOT / name
        found = next(emulator.glob("usr/bin/qemu-aarch64-static"))
        names = {"sources": SOURCES, "root": ROOT, "python": PYTHON, "here": here}
        _write_program(here, WRAPPER.format(emulator=found, options=options, **names))


def _fetch_machines() -> None:
    emulator = ROOT / "machine_emulator"
    _here().unpack_with_all_needed("qemu-system-arm", to=emulator)
    kernels = Debian(ROOT / "apt/kernels", "trixie", "arm64")
    kernels.update()
    kernels.unpack("busybox-static", ROOT / "busybox")
    for folder in ("proc", "sys", "dev", "tmp", "packages", "sources", "exchange"):
        (ROOT / "root" / folder).mkdir(exist_ok=True)
    libraries = sorted({str(it.parent) for it in emulator.glob("**/*.so*")})
    for name, package in KERNELS.items():
        kernel = ROOT / "kernels" / name
        kernels.unpack(kernels.first_dependency(package), kernel)
        shutil.copy(next(kernel.glob("boot/vmlinuz-*")), kernel / "vmlinuz")
        (kernel / "initramfs").write_bytes(
            _initramfs(next(kernel.glob("usr/lib/modules/*/kernel")))
        )
        script = MACHINE.format(
            loader=next(emulator.glob("lib64/ld-linux-*")),
            libraries=":".join(libraries),
            emulator=emulator / "usr/bin/qemu-system-aarch64",
            data=emulator / "usr/share/qemu",
            folder=kernel,
            root=ROOT,
            sources=SOURCES,
        )
        _write_program(ROOT / name, script)


def _here() -> Debian:
    """Debian's packages for this machine's architecture."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    packages = Debian(ROOT / "apt/here", "bookworm", architecture)
    packages.update()
    return packages


def _initramfs(modules: Path) -> bytes:
    """Bytes of the first file system of a machine: busybox, modules, and what is run first."""
    names = " ".join(Path(it).name for it in MODULES)
    entries = [(it, 0o40755, b"") for it in ("bin", "modules", "proc", "dev", "root")]
    busybox = (ROOT / "busybox/usr/bin/busybox").read_bytes()
    entries.append(("bin/busybox", 0o100755, busybox))
    entries.append(("init", 0o100755, INIT.format(modules=names, python=PYTHON).encode()))
    for it in MODULES:
        contents = lzma.decompress((modules / f"{it}.ko.xz").read_bytes())
        entries.append((f"modules/{Path(it).name}.ko", 0o100644, contents))
    return b"".join(_cpio(*it, number) for number, it in enumerate([*entries, _LAST], start=1))


_LAST = ("TRAILER!!!", 0, b"")


def _cpio(name: str, mode: int, contents: bytes, number: int) -> bytes:
    """Bytes of one file in the format `newc` of cpio (cpio(5)), each part to 4 bytes."""
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(path), 0]
    head = b"070701" + b"".join(b"%08x" % it for it in fields) + path
    return b"".join(it + b"\0" * (-len(it) % 4) for it in (head, contents))


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _fetch_wheels() -> None:
    needed = [it for it in requires("isthmus") or () if "extra ==" not in it]
    systems = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)]
    kinds = [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    options = ("--python-version=3.11", "--implementation=cp", "--only-binary=:all:", *systems)
    target = f"--target={ROOT / 'packages'}"
    run(*pip, target, "--platform=manylinux2014_aarch64", *options, *kinds, *needed, *TESTS)


if __name__ == "__main__":
    main()
