"""Why libllama did not load a file, as an error."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import ModelError, ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.native.child import reason
from isthmus.native.loader import Library

_UNKNOWN = ("unknown model architecture", "unsupported model architecture")


def refusal(library: Library, file: GgufFile, complaints: Sequence[str], what: str) -> ModelError:
    """The error for a file, after the library has complained.

    `what` says what cannot be done, such as `has no usable vocabulary`. An architecture that the
    library does not know is ModelUnsupported, all else ModelFileError.
    """
    why = reason(complaints, "it cannot be read")
    if any(it in why for it in _UNKNOWN):
        name = file.metadata.get("general.architecture")
        return ModelUnsupported(
            f"{file.path} is of architecture {name!r}, which neither this release nor its library, "
            f"llama.cpp {library.llama_version}, knows"
        )
    return ModelFileError(f"{file.path} {what}: {why}")
