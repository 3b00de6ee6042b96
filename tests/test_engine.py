"""What is told when the engine fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.engine import Engine
from release.errors import BuildError
from tests.lab.server import Drop, Fault, Response
from tests.recorded_engine import RecordedEngine

FULL = Response(500, {"Content-Type": "application/json"}, b'{"message": "no space left"}')


@pytest.mark.parametrize(("fault", "says"), [(FULL, "no space left"), (Drop(), "onnection")])
def test_a_tar_that_the_engine_does_not_load_is_named(
    tmp_path: Path, fault: Fault, says: str
) -> None:
    tar = tmp_path / "zfs-build.tar"
    tar.write_bytes(b"tar")
    with RecordedEngine() as server:
        server.fail("POST .*/images/load", fault)
        with pytest.raises(BuildError, match="the engine does not load it") as raised:
            Engine({"DOCKER_HOST": server.host}).load(tar)
    assert raised.value.on == str(tar)
    assert says in raised.value.detail
