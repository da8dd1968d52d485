"""llama.cpp's own server, as the wheel has it: `python native_server.py MODEL N_CTX` tells its
address, and ends with its standard input."""

from __future__ import annotations

import sys
from typing import Any

import xllamacpp

native: Any = xllamacpp
params = native.CommonParams()
params.model.path, params.n_ctx = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.port, params.warmup = 1, 0, False
params.cpuparams.n_threads = 1
server = native.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
