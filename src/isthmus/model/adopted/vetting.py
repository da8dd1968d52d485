"""What libllama's own graph of a file is, found out by opening it and decoding a few tokens.

A child process does that, `isthmus.model.files.file_trial`, before the file is opened here:
libllama relies on most numbers in a file without a look at them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import open_device
from isthmus.model.adopted.context import Context, Contexts
from isthmus.model.adopted.embedder import AdoptedEmbedder
from isthmus.model.adopted.feed import feed_of_rows
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.adopted.shape import shape_of_file
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.graph_facts import FACTS_N_CTX, GraphFacts
from isthmus.model.spans import Embeddings
from isthmus.native.loader import Library
from isthmus.units import HostAddr

_N_PROMPT = 5
"""More than one token: libllama writes another graph then, with other kernels, and a third one if
nobody asks for logits."""


def vet(library: Library, file: GgufFile) -> GraphFacts:
    """Opens the file as adopted models are opened, and computes a few tokens in each of the ways
    that the model has.

    Raises ModelUnsupported or ModelFileError. What the library does not survive ends the process.
    """
    settings = ModelSettings()
    with ExitStack() as stack:
        device = open_device("cpu", library, DeviceSettings(threads=1))
        stack.callback(device.close)
        model = stack.enter_context(LibraryModel(library, file, settings))
        contexts = Contexts(device, model, settings)
        shape = shape_of_file(file, generates=contexts.has_memory)
        tokens = np.arange(_N_PROMPT, dtype=np.int32) % model.n_vocab
        if shape.pooling is not None:
            embedder = AdoptedEmbedder(device, model, shape, settings, file.path.name, nothing)
            stack.callback(embedder.close)
            embedder.arrays([tokens.tolist()], normalised=False)
        if not contexts.has_memory:
            return GraphFacts(model.keeps_state, (), (), model.n_vocab)
        layout = contexts.layout(FACTS_N_CTX)
        _decode(contexts, layout, tokens)
        return GraphFacts(model.keeps_state, layout.memories, contexts.states, model.n_vocab)


def feed(library: Library, file: GgufFile) -> None:
    """Computes embeddings in place of tokens, in each of the ways that a guest can have it.

    Raises ModelUnsupported or ModelFileError; DeviceFailed if the library refuses. What it does not
    survive ends the process.
    """
    settings = ModelSettings()
    with ExitStack() as stack:
        device = open_device("cpu", library, DeviceSettings(threads=1))
        stack.callback(device.close)
        model = stack.enter_context(LibraryModel(library, file, settings))
        contexts = Contexts(device, model, settings)
        with _opened(contexts, contexts.layout(FACTS_N_CTX)) as context:
            rows = np.zeros((_N_PROMPT, model.row_width), dtype=np.float32)
            for first, causal in ((0, True), (_N_PROMPT, False)):
                given = Embeddings(HostAddr(rows.ctypes.data), *rows.shape, None, causal)
                context.append(feed_of_rows(given, first, model.has_axes), with_logits=True)
            given = Embeddings(HostAddr(rows.ctypes.data), 1, model.row_width)
            context.append(feed_of_rows(given, 2 * _N_PROMPT, model.has_axes), with_logits=False)
            context.append_one(0)


@contextmanager
def _opened(contexts: Contexts, layout: AdoptedLayout) -> Iterator[Context]:
    """A context over a session that is thrown away."""
    span = mmap.mmap(-1, layout.nbytes)
    base = HostAddr(ctypes.addressof(ctypes.c_char.from_buffer(span)))
    with contexts.open(base, layout) as context:
        yield context


def _decode(contexts: Contexts, layout: AdoptedLayout, tokens: npt.NDArray[np.int32]) -> None:
    """Each kind of pass, in a session that is thrown away."""
    with _opened(contexts, layout) as context:
        context.append(tokens, with_logits=False)
        context.append(tokens, with_logits=True)
        context.append_one(0)
