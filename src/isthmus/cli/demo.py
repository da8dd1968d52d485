"""`isthmus demo`: a sandboxed agent talks with a real model, and a short proof of how."""

from __future__ import annotations

import argparse

from isthmus.actor import Reply
from isthmus.cli.naming import fetched_model
from isthmus.cli.options import add_device_options, open_runtime, say
from isthmus.machine import exact_resident_nbytes
from isthmus.model import Model
from isthmus.units import format_nbytes
from isthmus.verification import ModelProof, prove_model

HELP = "fetch a small model, talk with it through a sandboxed guest, and show the proof"
EXAMPLES = """\
  isthmus demo
  isthmus demo --prompt "Why is the sky blue?"
"""
_PROMPT = "What is an isthmus? Answer in two sentences."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--prompt", default=_PROMPT, metavar="TEXT", help="what to ask")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of random numbers (default: 1)"
    )
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    path = fetched_model("smollm2")
    with open_runtime(arguments) as runtime:
        model = runtime.load_model(path)
        say(f"{model.name} on {runtime.device.info.description}, {runtime.device.info.library}\n")
        actor = runtime.spawn(
            "chat",
            models={"default": model},
            args=["temperature=0.3", "max_tokens=160"],
            seed=arguments.seed,
        )
        before = exact_resident_nbytes()
        print(f"> {arguments.prompt}")
        with actor.stream(arguments.prompt) as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        growth = exact_resident_nbytes() - before
        proof = prove_model(actor, model, growth)
        used = format_nbytes(proof.kv_nbytes_used)
        print("\n\nProof")
        for what, seen in (
            ("the logits, to the guest", f"offset {proof.logits_guest_ptr:#x} of its memory"),
            ("the same, to the host", proof.logits_host_address),
            ("the same, to the device", proof.logits_device_address + _verdict(proof)),
            ("bytes copied", f"{proof.bytes_copied} between guest and device"),
            ("KV cache", f"{proof.n_tokens} tokens, {used} in the guest's memory, once"),
            ("resident memory", f"grew by {format_nbytes(growth)}, touched weights included"),
            ("speed", _speed(stream.reply, model, runtime.device.counters.kernel_ns / 1e9)),
        ):
            print(f"  {what:26}{seen}")
    return 0 if proof.holds else 1


def _verdict(proof: ModelProof) -> str:
    return "   equal" if proof.pointer_identity else "   DIFFERENT"


def _speed(reply: Reply, model: Model, kernel_s: float) -> str:
    counts = model.executor.counters
    return (
        f"{reply.n_tokens / reply.seconds:.0f} tokens/s "
        f"({counts.tokens_prefilled} read, {counts.tokens_decoded} written), "
        f"{reply.seconds - kernel_s:.2f} of {reply.seconds:.2f} s outside the kernels"
    )
