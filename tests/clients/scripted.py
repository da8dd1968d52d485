"""A model that follows a script: a tiny GGUF whose answers are known beforehand.

Clients decide by what a model says whether they call a tool, edit a file or stop, and a small model
says anything. This one says what its plays tell, by the ways of every other model: its template is
rendered, its tokens are decoded, grammars mask its logits.

1. The template looks for each play's `task` in the conversation, and for the `result` of each of
   its steps. The first result that is missing tells the step, and the prompt ends with that step's
   control token, `<|say:N|>`. Of long messages only the beginning is in the prompt: clients for
   coding send 80,000 characters of instructions, which would be computed for minutes.
2. An embedding is the unit vector of the token's state. The only head of attention finds the
   control token, and writes its state into the upper half of the stream. So the logits are the sum
   of two rows of a table: one of the last token, one of the step.
3. In the step's row its texts, each of which is one token, stand highest, in their order: the next
   one is said where a grammar forbids those before it. After a text the model ends; if a grammar
   forbids that too, it closes the string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END = 2
_N_STATES = 64
_N_EMBD, _HEAD_DIM, _N_FF = 2 * _N_STATES, _N_STATES, 32
_SAID, _FIRST_STEP = 1, 2
"""States: 0 of all tokens that are neither a step's text nor its control token."""
_ENDS, _CLOSES, _HIGHEST, _BELOW = 60.0, 50.0, 40.0, 4.0
"""Weights after a text, of a step's first text, and between its texts. A logit is eight times as
much, which leaves nothing to chance."""
_TEMPLATE = """\
{%- set found = namespace(text='', say='') -%}
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role not in ('system', 'developer', 'assistant') -%}
{%- set found.text = found.text ~ (m.content | string) -%}
{%- endif -%}
<|im_start|>{{ m.role }}
{{ (m.content | string)[:400] }}
{%- for call in m.tool_calls or () %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
<|im_start|>assistant
PLAYS"""


@dataclass(frozen=True)
class Step:
    """What the model says next: the first of `texts` that the request's grammar allows.

    The step is done once a message that is neither the model's nor an instruction has `result`.
    """

    texts: tuple[str, ...]
    result: str | None = None
    repeats: bool = False
    """The model says the first text again and again."""


@dataclass(frozen=True)
class Play:
    """The steps of one task, which is recognised by a text of the user's."""

    task: str
    steps: tuple[Step, ...]


def call(name: str, arguments: dict[str, str]) -> tuple[str, ...]:
    """A tool's call as a model writes it, and what is free in it if its form is forced."""
    whole = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{whole}\n</tool_call>", *arguments.values(), name


@dataclass(frozen=True)
class ScriptedModel:
    """A GGUF file of architecture `llama` with the states and tokens of some plays."""

    plays: tuple[Play, ...]
    n_ctx: int = 131072

    def write(self, path: Path) -> Path:
        """Writes the file."""
        steps = [step for play in self.plays for step in play.steps]
        assert _FIRST_STEP + len(steps) <= _N_STATES, "too many steps"
        says = [f"<|say:{number}|>" for number in range(len(steps))]
        texts = list(dict.fromkeys(text for step in steps for text in step.texts))
        w = gguf.GGUFWriter(path, "llama")
        self._write_metadata(w)
        byte_texts = _bytes()
        tokens = [*_CONTROLS, *says, *byte_texts, *(_encoded(it, byte_texts) for it in texts)]
        w.add_token_list(tokens)
        n_control = len(_CONTROLS) + len(says)
        control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
        w.add_token_types([control] * n_control + [normal] * (len(tokens) - n_control))
        w.add_token_merges([f"{byte_texts[64]} {byte_texts[65]}"])
        w.add_chat_template(_TEMPLATE.replace("PLAYS", "".join(self._template())))
        ids = {text: n_control + 256 + at for at, text in enumerate(texts)}
        quote = n_control + byte_texts.index('"')
        for name, values in _tensors(*_tables(steps, ids, quote)).items():
            w.add_tensor(f"{name}.weight", values)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return path

    def _write_metadata(self, w: gguf.GGUFWriter) -> None:
        w.add_name("scripted")
        w.add_context_length(self.n_ctx)
        w.add_embedding_length(_N_EMBD)
        w.add_block_count(1)
        w.add_feed_forward_length(_N_FF)
        w.add_head_count(1)
        w.add_head_count_kv(1)
        w.add_key_length(_HEAD_DIM)
        w.add_value_length(_HEAD_DIM)
        w.add_rope_dimension_count(_HEAD_DIM)
        w.add_rope_freq_base(1e12)  # the last pair of dimensions hardly turns
        w.add_layer_norm_rms_eps(1e-6)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_bos_token_id(0)
        w.add_eos_token_id(_END)

    def _template(self) -> Iterable[str]:
        """The part of the template that writes which step is next."""
        number = 0
        for play in self.plays:
            yield f"{{%- if {json.dumps(play.task)} in found.text -%}}"
            for step in play.steps:
                missing = f"{json.dumps(step.result)} not in found.text" if step.result else "true"
                yield f"{{%- if not found.say and {missing} -%}}"
                yield f"{{%- set found.say = '<|say:{number}|>' -%}}{{%- endif -%}}"
                number += 1
            yield "{%- endif -%}"
        yield "{{- found.say -}}"


def _bytes() -> list[str]:
    from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

    return list(bytes_to_unicode().values())


def _encoded(text: str, byte_texts: list[str]) -> str:
    """A text as a byte-level vocabulary writes it."""
    from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

    letters = bytes_to_unicode()
    assert len(letters) == len(byte_texts)
    return "".join(letters[it] for it in text.encode())


def _tables(steps: list[Step], ids: dict[str, int], quote: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and output, of shape [n_vocab, _N_EMBD]; `quote` is the id of `"`."""
    n_vocab = max(ids.values()) + 1
    states = np.zeros(n_vocab, np.int64)
    states[list(ids.values())] = _SAID
    weights = np.zeros((n_vocab, _N_EMBD), np.float32)
    weights[[_END, quote], _SAID] = _ENDS, _CLOSES
    weights[_END, 0] = _BELOW  # without a step there is nothing to say
    for number, step in enumerate(steps):
        state = _FIRST_STEP + number
        states[len(_CONTROLS) + number] = state
        for rank, text in enumerate(dict.fromkeys(step.texts)):
            weights[ids[text], _N_STATES + state] = _HIGHEST - _BELOW * rank
        if step.repeats:
            states[ids[step.texts[0]]] = 0
    return np.eye(_N_EMBD, dtype=np.float32)[states], weights


def _tensors(embeddings: np.ndarray, output: np.ndarray) -> dict[str, np.ndarray]:
    """All matrices, of shape [n_out, n_in], of a model with one block."""
    query, key, value, back = (np.zeros((_HEAD_DIM, _N_EMBD), np.float32) for _ in range(4))
    query[-1, :_N_STATES] = 8.0  # every token asks for
    key[-1, _FIRST_STEP:_N_STATES] = 8.0  # the tokens of steps,
    value[:, :_N_STATES] = np.eye(_N_STATES) / np.sqrt(_N_EMBD)  # and learns which it is
    back[:, _N_STATES:] = np.eye(_N_STATES)
    ones, empty = np.ones(_N_EMBD, np.float32), np.zeros((_N_FF, _N_EMBD), np.float32)
    block = {
        "attn_norm": ones,
        "attn_q": query,
        "attn_k": key,
        "attn_v": value,
        "attn_output": back.T.copy(),
        "ffn_norm": ones,
        "ffn_gate": empty,
        "ffn_up": empty,
        "ffn_down": empty.T.copy(),
    }
    named = {f"blk.0.{name}": it for name, it in block.items()}
    return {"token_embd": embeddings, "output": output, "output_norm": ones, **named}
