"""The files that a server knows, each with its card and its state, found by name or alias."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from isthmus.config import ModelSettings
from isthmus.errors import IsthmusError, ModelError
from isthmus.model.chat.template_set import TemplateSet
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.headers import open_headers
from isthmus.paths import expanded
from isthmus.runtime import Runtime
from isthmus.server.duration import FOREVER
from isthmus.server.http.entry import in_thread
from isthmus.server.http.errors import HttpError
from isthmus.server.models.card import Card, templates_of
from isthmus.server.models.catalog import Catalog, Source
from isthmus.server.models.memory import default_n_ctx, stateless_nbytes
from isthmus.server.models.resident import Resident, State
from isthmus.server.settings import ServerSettings
from isthmus.shards import model_files

_log = logging.getLogger("isthmus.server")
_MAX_N_CTX = 131_072
"""Tokens that a body may be as long as while there are files that have not been read."""
_MAX_NAMED, _MAX_SHOWN = 20, 80
"""Names in an error, and characters of one that a client gave."""
MANY = 100
"""Files after which a list of them is long work for the event loop."""
_AGAIN_S, _READS = 60.0, 30
"""Seconds after which a file that could not be read is tried again though it is the same, or so
many times as long as that took: it is tried in a process of its own, for seconds."""


class ModelFiles:
    """See the module. Used by one event loop. `computed` is how all models are;
    `idle` is told of files that nobody uses any more."""

    def __init__(
        self,
        runtime: Runtime,
        catalog: Catalog,
        settings: ServerSettings,
        computed: ModelSettings,
        idle: Callable[[Resident], None],
    ) -> None:
        self._runtime = runtime
        self._catalog = catalog
        self._settings = settings
        self._computed = computed
        self._idle = idle
        self._agent_nbytes = stateless_nbytes(runtime) // settings.slots
        """Memory of one stateless request, of what there was before any model was loaded: contexts
        do not depend on what else is in memory."""
        self._by_name: dict[str, Resident] = {}
        self._listing: asyncio.Future[list[Resident]] | None = None
        """A listing under way, which goes on if those who wait for it leave."""
        self.scan()
        for alias, name in self.aliases.items():
            if self.real_name(alias) not in self._by_name:
                _log.warning("the alias %r stands for %r: there is no such model yet", alias, name)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names, each with the name that it stands for."""
        return self._catalog.aliases

    def all(self) -> list[Resident]:
        """All files as of the last scan."""
        return list(dict.fromkeys(self._by_name.values()))

    def names(self) -> list[str]:
        """The names of all models, as of the last scan."""
        return list(self._by_name)

    def first(self) -> str:
        """The name of the model that answers if a request may leave it out. HttpError 404."""
        for name in self._by_name:
            return name
        raise HttpError(404, "there is no model", code="model_not_found", param="model")

    def real_name(self, name: str) -> str:
        """The name that an alias stands for, or one by which a model was pulled; else the name
        itself."""
        if name in self._by_name:
            return name
        return self.aliases.get(name) or self._catalog.pulled_name(name)

    def get(self, real_name: str) -> Resident | None:
        """The file of a name, without a look at the disk."""
        return self._by_name.get(real_name)

    def find(self, name: str) -> Resident | None:
        """The file of a name or an alias; None if there is none now."""
        real = self.real_name(name)
        found = self.get(real)
        if found is not None and found.state is not State.UNLOADED:
            return found
        source = self._catalog.find(real)
        if source is None:
            self._by_name.pop(real, None)
            return None
        self._by_name[real] = self._resident(source)
        return self._by_name[real]

    def _resident(self, source: Source) -> Resident:
        """What is known of a file, or a new one."""
        known = self._by_name.get(source.name)
        if known is None or (known.source != source and known.state is State.UNLOADED):
            known = Resident(source, self._idle)
            known.keep_alive_s = self.keep_alive_s(source)
        return known

    def known(self, name: str) -> Resident:
        """As `find`. HttpError 404."""
        found = self.find(name)
        if found is None:
            said = f"there is no model {self._of(name)}; {self._told()}"
            raise HttpError(404, said, code="model_not_found", param="model")
        return found

    def _of(self, name: str) -> str:
        """A name for an error, with the alias that stands for it."""
        real = self.real_name(name)
        shown = repr(name[:_MAX_SHOWN])
        return shown if real == name else f"{real!r}, for which the alias {shown} stands"

    def _told(self) -> str:
        """All names for an error, or the first of them."""
        names = [*self.names(), *(it for it in self.aliases if self.real_name(it) in self._by_name)]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        told = ", ".join(names[:_MAX_NAMED])
        return f"this server has {told}{more}" if names else "this server has none"

    def scan(self) -> None:
        """Looks which files there are, on the disk."""
        self._know(self._catalog.sources())

    def _know(self, sources: Iterable[Source]) -> None:
        """Knows these files and no others. What is in memory is known until it has left."""
        found: dict[str, Resident] = {}
        for source in sources:
            known = self._resident(source)
            found |= dict.fromkeys(known.source.names, known)
        inside = {n: it for n, it in self._by_name.items() if it.state is not State.UNLOADED}
        self._by_name = found | inside

    def add(self, source: Source) -> None:
        """Knows one more file."""
        self._catalog.add(source)
        self.scan()

    def keep_alive_s(self, source: Source) -> float:
        """How long a model stays that nobody uses, if no request says otherwise."""
        return FOREVER if source.at_start else self._settings.keep_alive_s

    # ------------------------------------------------------------------ cards

    @property
    def n_ctx(self) -> int:
        """Tokens of the longest context of all models, as far as is known."""
        files = self._by_name.values()
        unread = any(it.card is None and it.error is None for it in files)
        return max([it.n_ctx for it in files] + [_MAX_N_CTX] * unread, default=0)

    def find_same(self, weights_sha256: str, added: Sequence[tuple[str, float]]) -> str | None:
        """The name of the model that computes what these files do: its own, and adapters with
        their scales, each by its SHA-256. Files are read for their hashes: in a thread."""
        hashes = self._runtime.file_hashes
        for it in self.all():
            with contextlib.suppress(OSError, IsthmusError):
                if hashes.sha256(model_files(it.source.path)) != weights_sha256:
                    continue
                for name, adapters in it.source.names.items():
                    own = [(hashes.sha256(expanded(path)), s) for path, s in adapters if s]
                    if own == list(added):
                        return name
        return None

    async def cards(self) -> list[tuple[Resident, Card]]:
        """All files there are, with what their headers say, but for those that cannot be read."""
        while self._listing is not None:  # all requests together take one thread
            await asyncio.wait([self._listing])
        self._listing = asyncio.ensure_future(self._look())
        found = await asyncio.shield(self._listing)
        return [(it, it.card) for it in found if it.card is not None]

    async def _look(self) -> list[Resident]:
        """All files there are, read."""
        try:
            before = self._by_name.keys() | ()
            sources = await asyncio.to_thread(self._catalog.sources)
            came = {n: it for n, it in self._by_name.items() if n not in before}
            self._know(sources)
            self._by_name = came | self._by_name
            found = self.all()
            await asyncio.to_thread(self._read, found)
            return found
        finally:
            self._listing = None

    async def card(self, resident: Resident) -> Card:
        """What a file's header says. HttpError 500 if it cannot be read."""
        if not _is_read(resident):
            await in_thread(lambda: self._read([resident]))
        if resident.card is None:
            raise failed(resident)
        return resident.card

    async def templates(self, resident: Resident) -> TemplateSet | None:
        """A file's chat templates, by its header. HttpError 500 if it cannot be read."""
        runtime, path = self._runtime, resident.source.path
        try:
            return await in_thread(lambda: templates_of(runtime.library, path, runtime.file_hashes))
        except IsthmusError as error:
            self.note(resident, error)
            raise failed(resident) from None

    def read(self, resident: Resident, header: GgufFile | None = None) -> Card:
        """What the header says of the file that is there now; it may have been read. In a thread.
        IsthmusError."""
        card = resident.card
        if card is None or not card.is_of(resident.source.path):
            runtime, path = self._runtime, resident.source.path
            hashes = runtime.file_hashes
            settings = replace(self._computed, mmproj=resident.source.mmproj)
            card = Card.read(runtime.library, path, hashes, settings, header)
            resident.card, resident.nbytes = card, card.nbytes + card.projector_nbytes
            resident.n_ctx = self._n_ctx_of(card)
        return card

    def _read(self, residents: Iterable[Resident]) -> None:
        """Reads files that are not known yet: a single one is tried whole, since it is about to be
        loaded, and many by their headers. In a thread."""
        unread = [it for it in residents if not (_is_read(it) or it.is_refused)]
        paths = [it.source.path for it in unread]
        headers = open_headers(self._runtime.library, paths) if len(paths) > 1 else [None]
        begun = time.monotonic()
        for it, header in zip(unread, headers, strict=False):
            try:
                if isinstance(header, ModelError):
                    raise header
                self.read(it, header)
            except IsthmusError as error:
                it.card = None
                self.note(it, error)
                again_s = max(_AGAIN_S, _READS * (time.monotonic() - begun))
                it.refuse(time.monotonic() + again_s)
            begun = time.monotonic()

    def _n_ctx_of(self, card: Card) -> int:
        if self._settings.n_ctx is not None:
            return min(self._settings.n_ctx, card.hparams.n_ctx_train)
        return default_n_ctx(card, self._agent_nbytes)

    def note(self, resident: Resident, error: Exception) -> None:
        """Keeps and logs why a model cannot be had. The server's folders are no caller's
        business."""
        known, folder = isinstance(error, IsthmusError), resident.source.path.parent
        _log.error("cannot load %s: %s", resident.name, error, exc_info=None if known else error)
        said = "the server's log says why"
        if known:
            said = str(error).replace(f"{folder}/", "").replace(str(folder), "its folder")
        resident.error = f"the model {resident.name} cannot be loaded: {said}"


def failed(resident: Resident) -> HttpError:
    """What is told of a model that cannot be had."""
    return HttpError(500, resident.error or "", code="model_failed", param="model")


def _is_read(resident: Resident) -> bool:
    """Whether its card is known, and is the file's."""
    if resident.card is None:
        return False
    return resident.state is not State.UNLOADED or resident.card.is_of(resident.source.path)
