"""Every function of WASI preview 1: its parameters, and what it does here.

The one list that imports, handlers and docs/commands.md are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

_STREAMS = "NOTCAPABLE for descriptors 0 to 2, BADF for all others"
_NO_FOLDER = "BADF: there is no folder to begin at"
_NO_SOCKET = "BADF: there are no sockets"


@dataclass(frozen=True, slots=True)
class WasiFunction:
    """One function."""

    name: str
    params: str
    """A letter for each: i for i32, I for i64, p for a pointer or a size, which has 64 bits if the
    memory's pointers do."""
    does: str
    """What it does here, for docs/commands.md."""

    @property
    def returns(self) -> bool:
        """Whether it has a result: WASI's errno, i32."""
        return self.name != "proc_exit"


FUNCTIONS = (
    WasiFunction(
        "args_get",
        "pp",
        "a command's name and arguments; for any other guest its name and its options, `key=value`",
    ),
    WasiFunction("args_sizes_get", "pp", "their number and size"),
    WasiFunction("clock_res_get", "ip", "1,000 ns for clocks 0 to 3; INVAL for others"),
    WasiFunction(
        "clock_time_get",
        "iIp",
        "the actor's virtual clock, which moves 1,000 ns with each reading; the same for clocks 0 "
        "to 3, INVAL for others",
    ),
    WasiFunction("environ_get", "pp", "a command's variables; none for any other guest"),
    WasiFunction("environ_sizes_get", "pp", "their number and size"),
    WasiFunction("fd_advise", "iIIi", _STREAMS),
    WasiFunction("fd_allocate", "iII", _STREAMS),
    WasiFunction(
        "fd_close", "i", "accepted for 0 to 2, and changes nothing; BADF for all other descriptors"
    ),
    WasiFunction("fd_datasync", "i", _STREAMS),
    WasiFunction(
        "fd_fdstat_get", "ip", "0 to 2 are character devices, 0 to be read, 1 and 2 to be written"
    ),
    WasiFunction(
        "fd_fdstat_set_flags",
        "ii",
        "accepted for 0 to 2, and changes nothing; BADF for all other descriptors",
    ),
    WasiFunction("fd_fdstat_set_rights", "iII", _STREAMS),
    WasiFunction("fd_filestat_get", "ip", "0 to 2 are character devices of no size"),
    WasiFunction("fd_filestat_set_size", "iI", _STREAMS),
    WasiFunction("fd_filestat_set_times", "iIIi", _STREAMS),
    WasiFunction("fd_pread", "ippIp", "SPIPE for 0 to 2: streams have no positions"),
    WasiFunction("fd_prestat_dir_name", "ipp", _STREAMS),
    WasiFunction("fd_prestat_get", "ip", "BADF: no folder is given"),
    WasiFunction("fd_pwrite", "ippIp", "as `fd_write`: the position is ignored"),
    WasiFunction(
        "fd_read",
        "ippp",
        "0 reads a command's standard input, up to 256 KiB at once, and waits for it; for any "
        "other guest it is at its end",
    ),
    WasiFunction("fd_readdir", "ippIp", _STREAMS),
    WasiFunction("fd_renumber", "ii", _STREAMS),
    WasiFunction("fd_seek", "iIip", "SPIPE for 0 to 2"),
    WasiFunction("fd_sync", "i", _STREAMS),
    WasiFunction("fd_tell", "ip", "SPIPE for 0 to 2"),
    WasiFunction(
        "fd_write",
        "ippp",
        "1 is a command's answer, 2 its log; for any other guest both are the log. Up to 256 KiB "
        "at once, in up to 1,024 parts",
    ),
    WasiFunction("path_create_directory", "ipp", _NO_FOLDER),
    WasiFunction("path_filestat_get", "iippp", _NO_FOLDER),
    WasiFunction("path_filestat_set_times", "iippIIi", _NO_FOLDER),
    WasiFunction("path_link", "iippipp", _NO_FOLDER),
    WasiFunction("path_open", "iippiIIip", _NO_FOLDER),
    WasiFunction("path_readlink", "ippppp", _NO_FOLDER),
    WasiFunction("path_remove_directory", "ipp", _NO_FOLDER),
    WasiFunction("path_rename", "ippipp", _NO_FOLDER),
    WasiFunction("path_symlink", "ppipp", _NO_FOLDER),
    WasiFunction("path_unlink_file", "ipp", _NO_FOLDER),
    WasiFunction(
        "poll_oneoff",
        "pppp",
        "answers at once. 0 to 2 are always ready; if only clocks are asked for, the virtual clock "
        "moves to the earliest of them. Up to 1,024 subscriptions",
    ),
    WasiFunction(
        "proc_exit",
        "i",
        "ends a command: 0 is success. Any other guest fails, with whatever status",
    ),
    WasiFunction("proc_raise", "i", "NOTSUP"),
    WasiFunction("random_get", "pp", "bytes made of the actor's seed, up to 256 KiB at once"),
    WasiFunction("sched_yield", "", "accepted, and does nothing"),
    WasiFunction("sock_accept", "iip", _NO_SOCKET),
    WasiFunction("sock_recv", "ippipp", _NO_SOCKET),
    WasiFunction("sock_send", "ippip", _NO_SOCKET),
    WasiFunction("sock_shutdown", "ii", _NO_SOCKET),
)
