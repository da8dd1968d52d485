"""Builds ggml and llama.cpp with CUDA for the card at hand, out of the sdist of llama-cpp-python.

    python tools/build_cuda.py --sdist llama_cpp_python-0.3.36.tar.gz --out ggml-cuda
    isthmus devices --ggml ggml-cuda

Needs CMAKE, a C++ compiler and the CUDA toolkit. One architecture takes minutes; the wheels that
hold all of them take an hour.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_CUDA=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_CURL=OFF",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",  # the libraries find each other wherever the folder goes
)


def main() -> None:
    """Builds, and copies the libraries to one folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sdist", type=Path, help="(default: downloaded by pip)")
    parser.add_argument("--arch", default="native", help="such as 90 for Hopper (default: native)")
    parser.add_argument("--out", type=Path, default=Path("ggml-cuda"), help="(default: ggml-cuda)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    for tool in ("cmake", "nvcc"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not on the PATH; install CMake and the CUDA toolkit")
    with tempfile.TemporaryDirectory(prefix="ggml-cuda-") as folder:
        sdist = arguments.sdist or _download(Path(folder))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        source = next(Path(folder).glob("llama_cpp_python-*/vendor/llama.cpp"))
        build = Path(folder) / "build"
        architecture = f"-DCMAKE_CUDA_ARCHITECTURES={arguments.arch}"
        _run("cmake", "-S", str(source), "-B", str(build), *OPTIONS, architecture)
        _run("cmake", "--build", str(build), "--target", "llama", "-j", str(arguments.jobs))
        arguments.out.mkdir(parents=True, exist_ok=True)
        for library in build.rglob("lib*.so"):
            shutil.copy(library.resolve(), arguments.out / library.name)
            for alias in library.parent.glob(f"{library.name}.*"):
                shutil.copy(library.resolve(), arguments.out / alias.name)
    print(f"built; try: isthmus devices --ggml {arguments.out}")


def _download(folder: Path) -> Path:
    requirement = f"llama-cpp-python=={VERSION}"
    options = ("--no-deps", "--no-binary", ":all:", "--dest", str(folder))
    _run(sys.executable, "-m", "pip", "download", *options, requirement)
    return next(folder.glob("*.tar.gz"))


def _run(*command: str) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
