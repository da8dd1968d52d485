"""The clients that people use: what is installed, and which features are run by which script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ALL = ("hello", "stream", "structured", "tools", "cancel")


@dataclass(frozen=True)
class Client:
    """A client: a script under `scripts/`, and the packages of its environment.

    Packages are npm's if the script is JavaScript, else PyPI's. `routes` has the features that the
    script has for each API.
    """

    script: str
    packages: tuple[str, ...]
    routes: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The script's name without its ending."""
        return self.script.partition(".")[0]

    @property
    def is_npm(self) -> bool:
        """Whether it runs in Node."""
        return self.script.endswith(".mjs")

    def cases(self) -> Iterator[tuple[str, str]]:
        """A route and a feature, for all of them."""
        for route, features in self.routes.items():
            for feature in features:
                yield route, feature


CLIENTS = (
    Client("openai_python.py", ("openai>=3.57",), {"chat": ALL, "responses": ALL}),
    Client("openai_npm.mjs", ("openai@^6.49", "zod@^4"), {"chat": ALL, "responses": ALL}),
    Client("anthropic_python.py", ("anthropic>=2.14",), {"messages": ALL}),
    Client("anthropic_npm.mjs", ("@anthropic-ai/sdk@^1.14",), {"messages": ALL}),
    Client(
        "ai_sdk_npm.mjs",
        ("ai@^6", "@ai-sdk/openai@^3", "@ai-sdk/anthropic@^3", "zod@^4"),
        {"chat": ALL, "responses": ALL, "messages": ALL},
    ),
    Client("openai_agents_python.py", ("openai-agents>=0.24",), {"responses": ALL}),
    Client(
        "litellm_python.py",
        ("litellm>=1.110",),
        {"chat": ALL, "responses": ("hello", "stream"), "messages": ALL, "ollama": ALL},
    ),
    Client(
        "langchain_python.py",
        ("langchain-openai>=1.7",),
        {"chat": (*ALL, "forced"), "responses": (*ALL, "forced")},
    ),
    Client(
        "pydantic_ai_python.py",
        ("pydantic-ai-slim[openai,anthropic]>=2.68",),
        {"chat": (*ALL, "native"), "responses": (*ALL, "native"), "messages": ALL},
    ),
    Client(
        "instructor_python.py",
        ("instructor>=1.17",),
        {"chat": ("structured", "schema", "stream"), "responses": ("structured", "stream")},
    ),
    Client("llm_python.py", ("llm>=0.36",), {"chat": ("stream", "structured", "tools", "cancel")}),
    Client("smolagents_python.py", ("smolagents[openai]>=1.26",), {"chat": (*ALL, "code")}),
    Client("dspy_python.py", ("dspy>=3.4",), {"chat": ("hello", "structured", "tools")}),
    Client(
        "aider_python.py", ("aider-chat>=0.86",), {"chat": ("hello", "stream", "tools", "cancel")}
    ),
    Client(
        "ollama_python.py",
        ("ollama>=0.6.3",),
        {"ollama": ("hello", "stream", "structured", "embed", "loaded", "gap", "cancel")},
    ),
    Client(
        "llamacpp_client_python.py",
        ("llamacpp_client>=0.2.3",),
        {"llamacpp": ("hello", "stream", "plain")},
    ),
    Client("codex_npm.mjs", ("@openai/codex@>=0.171",), {"responses": ("hello", "tools")}),
    Client(
        "claude_code_npm.mjs",
        ("@anthropic-ai/claude-code@^2.1",),
        {"messages": ("hello", "bare", "tools")},
    ),
)
