"""An S3 server in a process of its own, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import httpx

from tests.server.network import Machine

NAME = "agents"


class Wire:
    """Passes bytes between a port of its own and another one, until it is cut."""

    def __init__(self, port: int = 0) -> None:
        self.to = port
        """The other port."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._whole = True
        self._open: set[socket.socket] = set()
        self.delay_s = 0.0
        """Seconds for which each answer waits."""
        self.spoil: Callable[[bytes], bytes] | None = None
        """What is made of the bytes that pass; None leaves them as they are."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """What passes now is torn, and nothing new passes."""
        self._whole = False
        for it in list(self._open):
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                here, _ = self._server.accept()
                if not self._whole:
                    here.close()
                    continue
                threading.Thread(target=self._carry, args=(here,), daemon=True).start()

    def _carry(self, here: socket.socket) -> None:
        with (
            here,
            contextlib.suppress(ConnectionRefusedError),  # whoever listened there has ended
            socket.create_connection(("127.0.0.1", self.to)) as there,
        ):
            asked = threading.Event()
            out = threading.Thread(target=self._pump, args=(here, there, asked.set), daemon=True)
            out.start()
            self._pump(there, here, lambda: self._wait(asked))
            out.join()

    def _wait(self, asked: threading.Event) -> None:
        """Delays the beginning of an answer, and not what comes after that."""
        if self.delay_s and asked.is_set():
            asked.clear()
            time.sleep(self.delay_s)

    def _pump(
        self, source: socket.socket, target: socket.socket, before: Callable[[], None]
    ) -> None:
        self._open.add(source)
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                before()
                target.sendall(self.spoil(data) if self.spoil else data)
            target.shutdown(socket.SHUT_WR)
        self._open.discard(source)


class Bucket:
    """See the module. `wire` is what servers are told to use."""

    def __init__(self, machine: Machine | None = None) -> None:
        """On a machine with an address of its own, if one is given; then there is no wire."""
        self.machine = machine
        host, port = "127.0.0.1", 9000
        prefix: tuple[str, ...] = ()
        if machine is None:
            with socket.create_server((host, 0)) as free:
                port = free.getsockname()[1]
        else:
            host, prefix = machine.address, machine.prefix
        command = [*prefix, os.path.join(os.path.dirname(sys.executable), "moto_server")]
        self._process = subprocess.Popen(
            [*command, "-H", host, "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            assert self._process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection((host, port)):
                break
            time.sleep(0.05)
        self.port = port
        self.wire = Wire(port)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{self.wire.port if machine is None else port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        made = httpx.put(f"http://{host}:{port}/{NAME}", timeout=120)
        assert made.status_code == 200, made.text

    def close(self) -> None:
        self.wire.close()
        self._process.kill()
        self._process.wait()
