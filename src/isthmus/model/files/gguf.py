"""The files of one model, as their headers describe them.

A model may be split into several files: `shards` finds them, `split` compares what they say.
"""

from __future__ import annotations

from pathlib import Path

from isthmus.errors import ModelFileError, ModelNotFound
from isthmus.file_hash import file_identity, joined_identity
from isthmus.model.files.header import Header, file_status
from isthmus.model.files.split import require_one_model
from isthmus.native.loader import Library
from isthmus.shards import model_files


class GgufFile:
    """The headers of a model's files, read whole; holds nothing open.

    The path may name a file, any shard of a model, or the folder of a single model. A file from a
    stranger may end the process here: `open_gguf` tries it in another one first. Raises
    ModelNotFound for a missing file or shard, or a folder without a single model; ModelFileError
    for a file that is not GGUF, truncated or malformed, and for shards that are not one model;
    ModelUnsupported for a weight type that this release does not know.
    """

    def __init__(self, library: Library, path: Path) -> None:
        self.files = model_files(path)
        """All files of the model, in order."""
        headers = [Header(library, it, n) for n, it in enumerate(self.files)]
        require_one_model(headers)
        first = headers[0]
        self.path = first.path
        """The file that has the metadata, and by whose name libllama finds the others."""
        self.identities = tuple(it.identity for it in headers)
        """Which files were read, as `file_hash` tells one from another."""
        self.version, self.metadata, self.arrays = first.version, first.metadata, first.arrays
        self.tensors = {info.name: info for it in headers for info in it.tensors}
        """By name. `arrays` has every array of the metadata, those that are not read as well."""
        if not self.tensors:
            raise ModelFileError(f"{self.path} has no tensors")

    @property
    def identity(self) -> str:
        """That of all files together."""
        return joined_identity(self.identities)

    def require_unchanged(self) -> None:
        """ModelFileError if another file is at one of the paths: what is read of it later must be
        what was opened."""
        for path, identity in zip(self.files, self.identities, strict=True):
            try:
                found = file_status(path)
            except ModelNotFound as error:
                raise ModelFileError(f"cannot read {path} again: {error}") from None
            if file_identity(found) != identity:
                raise ModelFileError(
                    f"{path} was replaced or written to since it was opened, so what the model "
                    "computes with cannot be told from it: put the file back, or load the new one"
                )
