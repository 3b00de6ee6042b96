"""A second BuildKit on this machine, for ``docker buildx build --builder NAME``.

It is reached by buildx's ``remote`` driver, as a ``buildkitd`` is. As root it is in another engine
with nothing in it, on the bridge of the engine at hand. Who may not start one gets the one of the
engine at hand, which tells no more than that the name is obeyed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab.steps import alone
from tests.lab.world import World

NAME = "second"
_TRIES = 300


@contextmanager
def second_builder(world: World, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which ``docker buildx`` knows a builder :data:`NAME`; one at a time."""
    # Sockets have short paths.
    with (
        alone(world.directory / "second-builder.lock"),
        tempfile.TemporaryDirectory(prefix="iz-", dir="/tmp", ignore_cleanup_errors=True) as name,
    ):
        known = {**environment, "DOCKER_CONFIG": f"{name}/config"}
        with ExitStack() as stack:
            host = environment.get("DOCKER_HOST", "unix:///var/run/docker.sock")
            if os.geteuid() == 0:
                host = stack.enter_context(
                    _engine(Path(name), _network({**known, "DOCKER_HOST": host}))
                )
            address = stack.enter_context(_buildkit(Path(name), {**known, "DOCKER_HOST": host}))
            _docker(known, "buildx", "create", "--name", NAME, "--driver", "remote", address)
            yield known


@contextmanager
def _buildkit(directory: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Gives the BuildKit in an engine an address of its own, as ``buildkitd`` has; yields that."""
    path = directory / "buildkit.sock"

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            command = ["docker", "buildx", "dial-stdio"]
            stream = self.request.fileno()
            subprocess.run(
                command,
                env=environment,
                stdin=stream,
                stdout=stream,
                stderr=subprocess.DEVNULL,  # it complains when the other side is done
                check=False,
            )

    with socketserver.ThreadingUnixStreamServer(str(path), Connection) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


def _network(environment: Mapping[str, str]) -> list[str]:
    """Options of an engine that shares another one's bridge, which the rules of the machine let
    out: its containers have the last addresses there, the other one's the first.
    """
    format_ = (
        '{{index .Options "com.docker.network.bridge.name"}} {{(index .IPAM.Config 0).Subnet}}'
    )
    bridge, subnet = _docker(
        environment, "network", "inspect", "bridge", "--format", format_
    ).split()
    network = ipaddress.ip_network(subnet)
    *_, last = network.subnets(prefixlen_diff=2)
    return ["--bridge", bridge, "--fixed-cidr", str(last)]


@contextmanager
def _engine(directory: Path, network: Sequence[str]) -> Iterator[str]:
    config = directory / "daemon.json"
    config.write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    host = f"unix://{directory}/docker.sock"
    command = [
        *("dockerd", "--config-file", config, "--host", host),
        *(*network, "--iptables=false", "--ip6tables=false"),
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
