"""libllama, called natively from the same library: the rival that benchmarks run against."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelFileError
from isthmus.model.own.kv_cache import KV_TYPES
from isthmus.native._llama import Batch
from isthmus.native.owned import Owned

_FLASH_ATTENTION_ON = 1
_ALL_LAYERS = 999
_NO_SPLIT = 0


class Libllama(Owned):
    """Owns one context of libllama: same device, threads and flash attention.

    `n_ctx` is the context of each of its `n_sequences`.
    """

    def __init__(
        self,
        device: Device,
        path: Path,
        n_ctx: int,
        settings: ModelSettings,
        n_sequences: int = 1,
        *,
        swa_full: bool = True,
        embeddings: bool = False,
    ) -> None:
        """`swa_full`: layers with a sliding window keep all rows of the cache, as ours do.
        `embeddings`: for `embed`, whose texts have at most `n_ctx` tokens, each one chunk."""
        self._library = library = device.library
        library.llama_backend_init()
        model_params = library.llama_model_default_params()
        self._devices = (ctypes.c_void_p * 2)(device.ggml_device if device.has_own_memory else None)
        model_params.devices = ctypes.addressof(self._devices)  # ended by a null pointer
        model_params.n_gpu_layers = _ALL_LAYERS if device.has_own_memory else 0
        model_params.split_mode = _NO_SPLIT
        model_params.use_extra_bufts = settings.repack
        model = library.llama_model_load_from_file(str(path).encode(), model_params)
        if not model:
            raise ModelFileError(f"libllama cannot load {path}")
        self._model = Owned(model, library.llama_model_free)
        params = library.llama_context_default_params()
        params.n_ctx = n_ctx * n_sequences
        params.n_seq_max = n_sequences
        params.n_batch = max(2048, settings.prefill_chunk)
        params.n_ubatch = n_ctx if embeddings else settings.prefill_chunk
        params.embeddings = embeddings
        params.n_threads = params.n_threads_batch = device.settings.n_threads
        params.flash_attn_type = _FLASH_ATTENTION_ON
        params.type_k = params.type_v = KV_TYPES[settings.kv_type]
        params.swa_full = swa_full
        self._params = params
        context = library.llama_init_from_model(model, params)
        if not context:
            raise ModelFileError(f"libllama cannot open a context for {path}")
        super().__init__(context, library.llama_free)
        if device.threadpool:
            library.llama_attach_threadpool(context, device.threadpool, device.threadpool)
        self.n_vocab: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._n_embd: int = library.llama_model_n_embd(model)
        self._memory = library.llama_get_memory(context)
        self._one = (ctypes.c_int32 * 1)()
        self._step = _Step(n_sequences)

    def open_context(self) -> None:
        """Opens one more context, as its own, and closes it."""
        context = self._library.llama_init_from_model(self._model.handle, self._params)
        self._library.llama_free(context)

    def adapt(self, *adapters: tuple[Path, float]) -> None:
        """Has the next passes add LoRA adapters, which are freed with the model. Raises
        ModelFileError if libllama refuses one."""
        handles = (ctypes.c_void_p * len(adapters))()
        for i, (path, _) in enumerate(adapters):
            handle = self._library.llama_adapter_lora_init(self._model.handle, str(path).encode())
            if not handle:
                raise ModelFileError(f"libllama cannot load the adapter {path}")
            handles[i] = handle
        scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
        self._library.llama_set_adapters_lora(self.handle, handles, len(adapters), scales)

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """f32 [n_vocab] after the last token, in libllama's own memory."""
        address = self._library.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array((ctypes.c_float * self.n_vocab).from_address(address))

    def logits_of(self, sequence: int) -> npt.NDArray[np.float32]:
        """f32 [n_vocab] of one sequence after `decode_all`, in libllama's own memory."""
        address = self._library.llama_get_logits_ith(self.handle, sequence)
        return np.ctypeslib.as_array((ctypes.c_float * self.n_vocab).from_address(address))

    def embed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """f32 [n_embd] as the file pools it, or [n, n_embd]; not normalised, copied."""
        if self._memory:
            self.truncate(0)
        self.prefill_one(0, tokens)
        whole, n_embd = self._library.llama_get_embeddings_seq(self.handle, 0), self._n_embd
        if whole:
            return np.ctypeslib.as_array((ctypes.c_float * n_embd).from_address(whole)).copy()
        each = self._library.llama_get_embeddings(self.handle)
        rows = np.ctypeslib.as_array((ctypes.c_float * (len(tokens) * n_embd)).from_address(each))
        return rows.reshape(len(tokens), n_embd).copy()

    def prefill(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""
        for start in range(0, len(tokens), 2048):
            part = tokens[start : start + 2048]
            self._decode((ctypes.c_int32 * len(part))(*part), len(part))

    def decode(self, token: int) -> None:
        """Appends one token."""
        self._one[0] = token
        self._decode(self._one, 1)

    def append(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends one token or more, as `decode` and `prefill` do, and gives the logits after."""
        self.prefill(tokens)
        return self.logits

    def logits_of_all(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """f32 [n, n_vocab] after each of at most 2,048 tokens of a new sequence, copied."""
        self.truncate(0)
        self.prefill_one(0, tokens)
        return np.stack([self.logits_of(place) for place in range(len(tokens))])

    def prefill_one(self, sequence: int, tokens: Sequence[int]) -> None:
        """Appends at most 2,048 tokens to one of several sequences, from its beginning."""
        step = _Step(len(tokens))
        self._submit(step.set(tokens, range(len(tokens)), [sequence] * len(tokens)))

    def decode_all(self, tokens: Sequence[int], position: int) -> None:
        """Appends one token to each sequence, all of which hold `position` tokens."""
        n = len(tokens)
        self._submit(self._step.set(tokens, [position] * n, range(n)))

    def truncate(self, n_tokens: int, sequence: int = 0) -> None:
        """Forgets all tokens of a sequence after the first `n_tokens`."""
        self._library.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1)

    def state(self) -> ctypes.Array[ctypes.c_char]:
        """The sequence's state, copied out with `llama_state_seq_get_data`. Raises ModelFileError
        if there is none."""
        library, nbytes = self._library, self._library.llama_state_seq_get_size(self.handle, 0)
        data = ctypes.create_string_buffer(nbytes)
        if library.llama_state_seq_get_data(self.handle, data, nbytes, 0) != nbytes:
            raise ModelFileError("libllama gave no state")
        return data

    def set_state(self, data: ctypes.Array[ctypes.c_char]) -> None:
        """Makes the sequence the one that `state` copied out. Raises ModelFileError if libllama
        refuses it."""
        if not self._library.llama_state_seq_set_data(self.handle, data, len(data), 0):
            raise ModelFileError("libllama took no state")

    def save(self, path: Path, tokens: Sequence[int]) -> None:
        """Writes the sequence to a file, with its tokens; libllama does not sync it. Raises
        ModelFileError if it cannot."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        save = self._library.llama_state_seq_save_file
        if not save(self.handle, str(path).encode(), 0, ids, len(ids)):
            raise ModelFileError(f"libllama cannot write {path}")

    def load(self, path: Path, n_tokens: int) -> None:
        """Reads what `save` wrote of `n_tokens` tokens. Raises ModelFileError if it cannot."""
        ids, n = (ctypes.c_int32 * n_tokens)(), ctypes.c_size_t()
        load = self._library.llama_state_seq_load_file
        if not load(self.handle, str(path).encode(), 0, ids, n_tokens, ctypes.byref(n)):
            raise ModelFileError(f"libllama cannot read {path}")

    def close(self) -> None:
        """Frees context and model."""
        super().close()
        self._model.close()

    def _decode(self, tokens: ctypes.Array[ctypes.c_int32], count: int) -> None:
        self._submit(self._library.llama_batch_get_one(tokens, count))

    def _submit(self, batch: Batch) -> None:
        status = self._library.llama_decode(self.handle, batch)
        if status != 0:
            raise ModelFileError(f"libllama failed with status {status}")


class _Step:
    """The arrays of a batch of `n` tokens, each in one sequence, with logits after each."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._tokens, self._positions, self._sequences, self._counts = (
            np.ones(n, dtype=np.int32) for _ in range(4)
        )
        each = self._sequences.ctypes.data + 4 * np.arange(n, dtype=np.uint64)
        self._lists, self._wanted = each.astype(np.uint64), np.ones(n, dtype=np.int8)

    def set(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]
    ) -> Batch:
        """A batch that is valid until the next call."""
        self._tokens[:], self._positions[:], self._sequences[:] = tokens, positions, sequences
        order = (self._positions, self._counts, self._lists, self._wanted)
        return Batch(self._n, self._tokens.ctypes.data, None, *(it.ctypes.data for it in order))
