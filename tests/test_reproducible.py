"""The same inputs give the same bytes, and nothing in them tells of the machine that made them."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import socket
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from release.build import PROJECT
from release.layout import Layout
from release.registry import OCI_MANIFEST
from tests.lab.compare import image_differences, modules, tar_differences, traces
from tests.lab.second_engine import NAME, second_builder, used
from tests.lab.setup import Setup
from tests.test_layout import put

STAGES = "base,userland,headers,alike,configured,modules,described"
"""Those that make something of an image; the tools that others come with stay."""


@dataclass(frozen=True)
class File:
    content: bytes = b"x"
    mode: int = 0o644
    mtime: int = 0


FILES = {
    "kernels/x/zfs.ko": File(b"a module" * 100),
    "kernels/x/spl.ko": File(),
}


def image(directory: Path, files: Mapping[str, File], **labels: str) -> Layout:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(file.content), file.mode, file.mtime
            tar.addfile(member, io.BytesIO(file.content))
    layer = gzip.compress(buffer.getvalue(), mtime=0)
    config: dict[str, Any] = {"config": {"Labels": labels}}
    manifest = {
        "config": put(directory, json.dumps(config).encode()),
        "layers": [put(directory, layer)],
        "mediaType": OCI_MANIFEST,
    }
    index = {"manifests": [put(directory, json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    return Layout(directory)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (FILES, []),
        (
            {**FILES, "kernels/x/spl.ko": File(b"y", 0o755, 5)},
            [
                "layer 1: kernels/x/spl.ko: 1 and 1 bytes, 2d711642b726 and a1fce4363854, from "
                "byte 0 on: b'x' and b'y'",
                "layer 1: kernels/x/spl.ko: mode is 420 and 493",
                "layer 1: kernels/x/spl.ko: mtime is 0 and 5",
            ],
        ),
        ({**FILES, "a": File()}, ["layer 1: a: only in the second"]),
        ({"kernels/x/spl.ko": File()}, ["layer 1: kernels/x/zfs.ko: only in the first"]),
        (dict(reversed(list(FILES.items()))), ["layer 1: the same files in another order"]),
    ],
)
def test_a_file_that_differs_is_named(
    tmp_path: Path, other: Mapping[str, File], says: list[str]
) -> None:
    left, right = image(tmp_path / "left", FILES), image(tmp_path / "right", other)
    assert image_differences(left, right) == says
    tars = [line.removeprefix("layer 1: ") for line in says]
    assert tar_differences(left.layers[0], right.layers[0]) == tars


def test_a_label_that_differs_is_named(tmp_path: Path) -> None:
    left, right = image(tmp_path / "left", FILES, a="1"), image(tmp_path / "right", FILES, a="2")
    assert image_differences(left, right) == ['config.config.Labels.a: "1" and "2"']


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\0/zfs/module/zfs/arc.c\0", []),
        (b"\0/usr/src/linux/include/linux/fs.h\0", []),
        (b"\0/home/me/zfs/arc.c\0", ["/home/me/zfs/arc.c"]),
        (b"\0built Nov  5 2026\0", ["Nov  5 2026"]),
        (b"\0at 12:34:56\0", ["12:34:56"]),
        (b"\0me@my-host\0", ["my-host"]),
    ],
)
def test_what_tells_of_the_machine_is_found(content: bytes, found: list[str]) -> None:
    assert traces(content, "my-host") == found


@pytest.mark.lab
def test_two_clean_builds_give_the_same_image_and_the_same_tar(
    built_in: Setup, tmp_path: Path
) -> None:
    """The second one by another BuildKit, which has nothing of the first one."""
    (entry,) = built_in.load().kernels
    cache = built_in.directory / "cache"
    layout, tar = Layout(cache / "images" / f"{entry.slug}-amd64"), cache / f"zfs-{entry.slug}.tar"
    shutil.copytree(layout.path, tmp_path / "first")
    shutil.copy(tar, tmp_path / "first.tar")
    tools = tmp_path / "bin"
    tools.mkdir()
    script = f"""\
#!/bin/sh
if [ "$1 $2" = "buildx build" ]; then
    shift 2
    exec {shutil.which("docker")} buildx build --no-cache-filter {STAGES} "$@"
fi
exec {shutil.which("docker")} "$@"
"""
    (tools / "docker").write_text(script)
    (tools / "docker").chmod(0o755)

    path = f"{tools}:{os.environ['PATH']}"
    with second_builder(
        built_in.world, {**os.environ, **built_in.environment, "PATH": path}
    ) as environment:
        before = used(environment)
        run = built_in.run("build", "all", "--builder", NAME, environment=environment)
        after = used(environment)

    assert run.exit_code == 0, run
    if os.geteuid() == 0:
        assert (before, after != before) == ("0B", True)
    log = (cache / "logs" / f"{entry.slug}-amd64.build.log").read_text()
    compiled = [line for line in log.splitlines() if "CC [M]" in line]
    assert compiled, "it was built anew"
    assert image_differences(Layout(tmp_path / "first"), layout) == []
    assert tar_differences(tmp_path / "first.tar", tar) == []


@pytest.mark.lab
def test_no_module_tells_of_the_machine_that_built_it(built_in: Setup) -> None:
    (entry,) = built_in.load().kernels
    layout = Layout(built_in.directory / "cache" / "images" / f"{entry.slug}-amd64")
    today = datetime.now(UTC).date().isoformat()
    names = (str(PROJECT), str(built_in.directory), socket.gethostname(), "buildkitsandbox", today)
    found = {name: traces(content, *names) for name, content in modules(layout).items()}
    assert found
    assert {name: told for name, told in found.items() if told} == {}
