"""An agent that is saved, and restored, by whichever machine runs this.

    arm64_exercise save MODEL FILE       spawns one, saves it, prints what it is
    arm64_exercise restore MODEL FILE    restores it, prints what it is and how exactly

Prints JSON: the digest of the state, the level of a restore, why it is not exact, the machine.
"""

from __future__ import annotations

import json
import mmap
import platform
import sys
from pathlib import Path

from isthmus import Runtime
from isthmus.errors import SnapshotMismatch
from tests.exact.digest import digest


def main(what: str, path: Path, file: Path) -> None:
    """Saves or restores."""
    said: dict[str, object] = {"machine": platform.machine(), "os_page": mmap.PAGESIZE}
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(path)
        models = {"default": model}
        if what == "save":
            actor = runtime.spawn("bench", models=models, args=["n_ctx=256"], seed=1)
            actor.send("prefill 24 24")
            actor.snapshot(file)
        else:
            actor = runtime.restore(file, models=models)
            said["level"] = actor.restored.level
            try:
                runtime.restore(file, models=models, require="exact").close()
            except SnapshotMismatch as error:
                said["not_exact"] = str(error)
        said["digest"] = digest(actor)
        said["text"] = actor.send("sequence 8").text
        actor.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
