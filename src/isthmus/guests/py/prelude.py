# The module `isthmus` of scripts, over `_isthmus`: see isthmus.pyi. Compiled into the guest as prelude.h.
import _isthmus as native

_ROLES = ("system", "user", "assistant")
_LEVELS = ("debug", "info", "warning", "error")


class Session:
    def __init__(self, model, at):
        self.model = model
        self._at = at

    def __len__(self):
        return native.length(self._at)

    def __bool__(self):
        return True

    def become(self, tokens):
        native.become(self._at, tokens)

    def decode(self, token):
        native.decode(self._at, token)

    def keep(self, n):
        return native.keep(self._at, n)

    def sample(self):
        return native.sample(self._at)

    def logits(self):
        return native.logits(self._at)

    def copy_from(self, other):
        native.copy(self._at, other._at)

    def generate(self, max_tokens=256):
        return native.generate(self._at, max_tokens)

    def close(self):
        native.close(self._at)


class Model:
    def __init__(self, handle):
        self._handle = handle

    def chat_tokens(self, turns):
        flat = []
        for turn in turns:
            if turn["role"] not in _ROLES:
                raise ValueError("a role is one of %s, not %r" % (", ".join(_ROLES), turn["role"]))
            flat.append(_ROLES.index(turn["role"]))
            flat.append(turn["content"])
        return native.chat_tokens(self._handle, flat)

    def tokenize(self, text, *, add_special=False, parse_special=False):
        return native.tokenize(
            self._handle, text, (1 if add_special else 0) | (2 if parse_special else 0)
        )

    def detokenize(self, tokens):
        return native.detokenize(self._handle, tokens)

    def is_end(self, token):
        return native.is_end(self._handle, token)

    def open_session(self, n_ctx=0):
        return Session(self, native.open_session(self._handle, n_ctx))


def emit(text):
    native.emit(str(text))


def log(text, level="info"):
    if level not in _LEVELS:
        raise ValueError("a level is one of %s, not %r" % (", ".join(_LEVELS), level))
    native.log(_LEVELS.index(level), str(text))


def option(name, default=None):
    value = native.option(name)
    return default if value is None else value


def tool(name, args=""):
    return native.tool(name, args)


def open_model(name=None):
    return Model(native.open_model(name or option("model", "default")))
