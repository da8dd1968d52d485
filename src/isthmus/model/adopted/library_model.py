"""A model that libllama has loaded, with its weights mapped, and what it says of itself."""

from __future__ import annotations

import ctypes
import os

from isthmus.config import ModelSettings
from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.memory import FileGuard
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.refusal import refusal
from isthmus.native._llama import M_ROPES
from isthmus.native.loader import Library
from isthmus.native.owned import Owned


class LibraryModel(Owned):
    """Owns the model. Safe to use from several threads: nothing of it changes after loading."""

    def __init__(self, library: Library, file: GgufFile, settings: ModelSettings) -> None:
        """Raises ModelUnsupported if the library does not know the architecture, or knows it and
        has no way to keep its sessions; ModelFileError for all else that it refuses."""
        self.library = library
        self.path = file.path
        library.llama_backend_init()
        params = library.llama_model_default_params()
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.addressof(no_devices)
        params.n_gpu_layers = 0
        params.use_extra_bufts = settings.repack
        try:
            self._guard = FileGuard(file.files)
        except OSError as error:
            raise ModelFileError(f"cannot read {file.path} again: {error}") from None
        with library.errors() as complaints, self._guard.mapping():
            handle = library.llama_model_load_from_file(os.fsencode(file.path), params)
        if not handle:
            self._guard.close()
            raise refusal(library, file, complaints, "cannot be loaded by libllama")
        super().__init__(handle, library.llama_model_free)
        if self._guard.identities != file.identities:
            self.close()
            raise ModelFileError(
                f"{file.path} changed while it was opened: try again when it is complete"
            )
        self._read_facts(library, handle)
        if self.decodes and library.llama_model_has_encoder(handle):
            self.close()
            raise ModelUnsupported(
                f"{file.path} has an encoder before its decoder, whose result lies in no session: "
                "give a model that only decodes, or only encodes"
            )

    def _read_facts(self, library: Library, handle: int) -> None:
        self.n_vocab: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(handle))
        self.row_width: int = library.llama_model_n_embd_inp(handle)
        """Numbers of a row of embeddings that it takes in place of a token."""
        self.has_axes = library.llama_model_rope_type(handle) in M_ROPES
        """Whether rows have positions in time, height and width."""
        self.keeps_state = bool(
            library.llama_model_is_recurrent(handle) or library.llama_model_is_hybrid(handle)
        )
        """Whether a session has a state that each token rewrites, so that no token can be taken
        back."""
        self.decodes = bool(library.llama_model_has_decoder(handle))
        """Whether one token follows the other: an encoder alone makes embeddings."""

    def require_intact(self) -> None:
        """ModelFileError if a file changed under the weights that libllama reads from it."""
        if (lost := self._guard.changed) is not None:
            raise ModelFileError(
                f"{lost} was written to while it was in use, so its weights are lost: load the "
                "model again, and replace such files by renaming others"
            )

    def close(self) -> None:
        """Frees the model; the library gives back its mappings, and copies in their place."""
        self._guard.close()
        super().close()
