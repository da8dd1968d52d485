"""`isthmus serve --ray`, and the Serve application to deploy in other ways."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.errors import SettingsError
from isthmus.ray.extra import require_ray

NAME = "isthmus"
"""The application's name in Serve."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_STORE_NBYTES = 128 << 20
"""Bytes of a local cluster's store of objects, of which a request needs hardly any."""


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each has."""

    least: int = 1
    most: int = 1
    messages: int = 8
    """Requests that are being answered, for each replica: with more there are more replicas."""
    cpus: float = 1.0
    gpus: float = 0.0
    """Processors and graphics cards that Ray sets aside for each replica."""
    waits_s: float = 5.0
    """Seconds for which there must be more before a replica is added; ten times as long for fewer
    before one is ended."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise SettingsError(f"replicas are {self.least} to {self.most}: give 1-3, for instance")

    @staticmethod
    def parse(text: str, **more: Any) -> Scale:
        """`3`, or `1-3`. SettingsError."""
        least, dash, most = text.partition("-")
        most = most if dash else least
        if not least.isdecimal() or not most.isdecimal():
            raise SettingsError(f"--replicas {text}: give a number, or a range such as 1-3")
        return Scale(int(least), int(most), **more)


def application(
    settings: Mapping[str, Any], scale: Scale | None = None, folder: str | None = None
) -> Any:
    """A Serve application for `serve.run`: replicas, each a server by `settings`.

    `settings` are the keys of a server's TOML file, such as `data` and `model`. Several replicas
    need a URL as `data`. `folder` is where relative paths begin. SettingsError.
    """
    require_ray()
    from ray import serve  # noqa: PLC0415 - an optional dependency
    from ray.serve.config import RequestRouterConfig  # noqa: PLC0415

    from isthmus.ray.replica import Replica  # noqa: PLC0415

    scale = scale or Scale()
    if scale.most > 1 and "://" not in str(settings.get("data", "")):
        raise SettingsError(
            "a folder has one server at a time: for several replicas give --data s3://bucket/agents"
        )
    deployment = serve.deployment(Replica)
    bound = deployment.options(
        name=NAME,
        max_ongoing_requests=int(settings.get("live", 64)) + int(settings.get("slots", 16)),
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="isthmus.ray.router.AgentRouter"
        ),
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=30,
        **_many(scale),
    )
    return bound.bind(dict(settings), folder)


def build(args: Mapping[str, Any]) -> Any:
    """The application by `args` of Serve's configuration, as its `import_path` names this function:
    `settings`, `replicas` (`1-3`), `messages`, `cpus` and `gpus`. SettingsError for others."""
    left = dict(args)
    settings, replicas = left.pop("settings", {}), str(left.pop("replicas", "1"))
    if unknown := sorted(left.keys() - {"messages", "cpus", "gpus"}):
        raise SettingsError(f"there is no argument {unknown[0]} of isthmus.ray.serving:build")
    return application(settings, Scale.parse(replicas, **left))


def _many(scale: Scale) -> dict[str, Any]:
    if scale.least == scale.most:
        return {"num_replicas": scale.most}
    return {
        "autoscaling_config": {
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.messages,
            "upscale_delay_s": scale.waits_s,
            "downscale_delay_s": 10 * scale.waits_s,
            "look_back_period_s": max(1.0, scale.waits_s),
            "metrics_interval_s": max(0.5, scale.waits_s / 4),
        }
    }


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A Ray cluster: `local` begins one in this machine's processes, and ends it. SettingsError."""
    require_ray()
    import ray  # noqa: PLC0415

    how: dict[str, Any] = {"log_to_driver": True, "logging_level": "warning"}
    if address == "local":
        how |= {
            "include_dashboard": False,
            "object_store_memory": _STORE_NBYTES,
            "address": address,
        }
    else:
        how["address"] = address
    try:
        ray.init(**how)
    except Exception as error:  # Ray has many kinds of them, and no base of all
        said = " ".join(str(error).split())
        raise SettingsError(f"--ray {address}: no Ray cluster there: {said}") from None
    try:
        yield
    finally:
        ray.shutdown()


def serve_until_told(
    address: str, settings: Mapping[str, Any], scale: Scale, say: Callable[[str], None]
) -> int:
    """Deploys the application, and takes it away once SIGINT or SIGTERM comes. An exit code. Raises
    SettingsError if Ray does not deploy it."""
    require_ray()
    from ray import serve  # noqa: PLC0415

    host, port = str(settings.get("host", "127.0.0.1")), int(settings.get("port", 8080))
    with connected(address):
        _require_reach(host)
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 30},
        )
        try:
            serve.run(application(settings, scale, os.getcwd()), name=NAME, route_prefix="/")
            say(f"serving on http://{host}:{port}, by {scale.least} to {scale.most} replicas")
            _wait()
        except RuntimeError as error:
            raise SettingsError(f"the application was not deployed: {error}") from None
        finally:
            serve.delete(NAME)
            if address == "local":
                serve.shutdown()
    return 0


def _require_reach(host: str) -> None:
    """SettingsError if replicas on several nodes could not reach each other."""
    import ray  # noqa: PLC0415

    n_nodes = sum(bool(it["Alive"]) for it in ray.nodes())
    if n_nodes > 1 and host in _LOOPBACK:
        raise SettingsError(
            f"the cluster has {n_nodes} nodes, and replicas on {host} reach none of the others: "
            "give --host 0.0.0.0 and --keys FILE"
        )


def _wait() -> None:
    told = threading.Event()
    before = {
        it: signal.signal(it, lambda *_: told.set()) for it in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not told.wait(0.5):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
