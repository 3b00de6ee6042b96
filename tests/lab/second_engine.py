"""A second BuildKit on this machine, for ``docker buildx build --builder NAME``.

As root it is another engine with nothing in it. Who may not start one gets the engine at hand
under another name, which tells no more than that the name is obeyed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NAME = "second"
_TRIES = 300


@contextmanager
def second_builder(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which ``docker buildx`` knows a builder :data:`NAME`."""
    # Sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="iz-", dir="/tmp", ignore_cleanup_errors=True) as name:
        known = {**environment, "DOCKER_CONFIG": f"{name}/config"}
        if os.geteuid() != 0:
            _know(known, environment.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
            yield known
            return
        with _engine(Path(name)) as host:
            _know(known, host)
            yield known


def _know(environment: Mapping[str, str], host: str) -> None:
    """Makes a context, which is a builder of the same name."""
    _docker(environment, "context", "create", NAME, "--docker", f"host={host}")


@contextmanager
def _engine(directory: Path) -> Iterator[str]:
    config = directory / "daemon.json"
    config.write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    host = f"unix://{directory}/docker.sock"
    command = [
        *("dockerd", "--config-file", config, "--host", host),
        *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
        *("--data-root", directory / "data", "--exec-root", directory / "exec"),
        *("--pidfile", directory / "docker.pid"),
    ]
    log = directory / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as engine,
    ):
        try:
            for _ in range(_TRIES):
                if (directory / "docker.sock").exists() and _answers(host):
                    break
                assert engine.poll() is None, log.read_text()
                time.sleep(0.1)
            else:
                raise AssertionError(f"the engine does not answer\n{log.read_text()}")
            yield host
        finally:
            engine.terminate()


def _answers(host: str) -> bool:
    command = ["docker", "--host", host, "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _docker(environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def used(environment: Mapping[str, str]) -> str:
    """How much the second builder keeps of what it built, in Docker's words."""
    lines = _docker(environment, "buildx", "du", "--builder", NAME).splitlines()
    (total,) = (line.split()[-1] for line in lines if line.startswith("Total:"))
    return total
