"""VMs of LinuxKit: what is written for it, and what people are told to type.

Golden files are in ``golden/linuxkit``; ``UPDATE_GOLDEN=1`` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.components import NAMES, Components, pin
from release.errors import ConfigurationError, ResolveError
from release.layout import Layout, saved_labels
from release.linuxkit import LOCAL, VARIANTS, Machine
from release.reference import Digest, Reference
from release.versions import parse
from release.vm import COMPONENTS
from tests.lab.setup import Setup
from tests.lab.world import LabKernel
from tests.test_cli import MISSING_HERE, SLUG, Desk

GOLDEN = Path(__file__).parent / "golden" / "linuxkit"
A = Digest("sha256:" + "a" * 64)
KERNEL = Reference.parse("linuxkit/kernel:5.4.39")
OWN = Reference.parse("127.0.0.1:5000/mine/own:1")

STRINGS = [str]
IMAGE = {
    "name": str,
    "image": str,
    "capabilities": STRINGS,
    "mounts": [{"type": str, "options": STRINGS, "source": str, "destination": str}],
    "binds": STRINGS,
    "devices": [{"path": str, "type": str, "major": int, "minor": int, "mode": str}],
    "command": STRINGS,
    "env": STRINGS,
    "net": str,
    "pid": str,
    "readonly": bool,
    "runtime": {"mkdir": STRINGS, "cgroups": STRINGS},
}
SCHEMA = {
    "kernel": {"image": str, "cmdline": str, "binary": str, "tar": str, "ucode": str},
    "init": STRINGS,
    "onboot": [IMAGE],
    "onshutdown": [IMAGE],
    "services": [IMAGE],
    "files": [
        {
            "path": str,
            "directory": bool,
            "symlink": str,
            "contents": str,
            "source": str,
            "metadata": str,
            "optional": bool,
            "mode": str,
            "uid": (str, int),
            "gid": (str, int),
        }
    ],
}
"""What ``linuxkit build`` accepts (linuxkit, ``src/cmd/linuxkit/moby/schema.go``), of an image's
keys those that are of use here. No other key may be there.
"""


def misfits(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Where a document is not what the schema allows."""
    if isinstance(schema, dict) and isinstance(value, dict):
        for key, part in value.items():
            if key in schema:
                yield from misfits(part, schema[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is unknown"
        if "image" in schema and "name" in schema and not {"name", "image"} <= value.keys():
            yield f"{where} has no name or no image"
    elif isinstance(schema, list) and isinstance(value, list):
        for number, part in enumerate(value):
            yield from misfits(part, schema[0], f"{where}[{number}]")
    elif isinstance(schema, dict | list) or not isinstance(value, schema):
        yield f"{where} is {value!r}"


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def machine(architecture: str = "amd64") -> Machine:
    return Machine(SLUG, KERNEL, KERNEL.at(A), "2.1.5", f"cache/zfs-{SLUG}.tar", architecture)


# The two files


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_linuxkit_reads(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "linuxkit.yaml"
    path.write_text(unpinned())
    text = machine().yaml(variant, Components.load(path, {}))
    assert list(misfits(yaml.safe_load(text), SCHEMA)) == []
    compare(f"{variant}.yml", text)


def test_the_check_finds_what_linuxkit_refuses() -> None:
    document = {"kernel": {"image": 1}, "services": [{"name": "x", "bind": []}], "init": "x"}
    assert list(misfits(document, SCHEMA)) == [
        ".kernel.image is 1",
        ".services[0].bind is unknown",
        ".services[0] has no name or no image",
        ".init is 'x'",
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_image_can_be_replaced(variant: str) -> None:
    text = machine().yaml(variant, Components.load(COMPONENTS, dict.fromkeys(NAMES, OWN)))
    document = yaml.safe_load(text)
    images = [*document["init"], *(one["image"] for one in document["services"])]
    assert set(images) == {str(OWN)}


def test_the_console_that_init_speaks_on_is_qemus() -> None:
    components = Components.load(COMPONENTS, {})
    for architecture, console in (("amd64", "ttyS0"), ("arm64", "ttyAMA0")):
        document = yaml.safe_load(machine(architecture).yaml("docker", components))
        assert document["kernel"]["cmdline"].endswith(f"console={console}")


def test_the_projects_images_are_pinned() -> None:
    components = Components.load(COMPONENTS, {})
    for name in NAMES:
        image = getattr(components, name.replace("-", "_"))
        assert image.tag
        assert image.tag != "latest"
        if image.repository.startswith("linuxkit/"):
            assert len(image.tag) == len(hashlib.sha1(b"").hexdigest())


def unpinned() -> str:
    return re.sub("(?m)@sha256:[0-9a-f]{64}$", "", COMPONENTS.read_text())


def test_pinning_writes_the_digests_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "linuxkit.yaml"
    before = unpinned().replace("init: linuxkit/init:", "init: 'linuxkit/init:", 1)
    before = before.replace("\nrunc:", "' # as it was\nrunc:", 1)
    path.write_text(before)
    asked: list[Reference] = []

    def find(image: Reference) -> Digest:
        asked.append(image)
        return Digest(f"sha256:{len(asked):064x}")

    pinned = pin(path, find)
    assert len(pinned) == len(asked) == len(NAMES)
    components = Components.load(path, {})
    assert components.docker == pinned[-1]
    assert components.docker.tag
    after = path.read_text()
    plain = before.replace("'linuxkit/init", "linuxkit/init").replace("' # as", " # as")
    assert re.sub("@sha256:[0-9a-f]{64}", "", after) == plain
    assert pin(path, find) == ()
    assert path.read_text() == after


def test_what_is_not_there_is_not_pinned(tmp_path: Path) -> None:
    path = tmp_path / "linuxkit.yaml"
    path.write_text(unpinned())
    with pytest.raises(ResolveError, match=r"linuxkit/init:.*is not there"):
        pin(path, lambda _: None)
    assert path.read_text() == unpinned()


# Settings


def test_images_in_versions_yaml() -> None:
    text = f"image: me/zfs\nlinuxkit:\n  ca-certificates: {OWN}\n  docker: docker@{A}\n"
    versions = parse(Path("versions.yaml"), text)
    components = Components.load(COMPONENTS, versions.linuxkit)
    assert components.ca_certificates == OWN
    assert components.docker == Reference("docker.io", "library/docker", digest=A)
    assert components.init == Components.load(COMPONENTS, {}).init


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("linuxkit:\n  kernel: a:1\n", 3, "unknown key 'kernel'"),
        ("linuxkit:\n  init: a:1\n  init: a:2\n", 4, "the key 'init' is there twice"),
        ("linuxkit:\n  init: linuxkit/init\n", 3, "docker.io/linuxkit/init is not pinned"),
        ("linuxkit:\n  init: 'a b'\n", 3, "is not an image reference"),
        ("linuxkit: [a:1]\n", 2, "expected 'key: value' lines"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_line(text: str, line: int, what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(Path("versions.yaml"), f"image: me/zfs\n{text}")
    assert caught.value.on == f"versions.yaml, line {line}"
    assert what in caught.value.what
    assert caught.value.hint


def test_a_table_that_lacks_an_image(tmp_path: Path) -> None:
    path = tmp_path / "linuxkit.yaml"
    path.write_text("init: a:1\n")
    with pytest.raises(ConfigurationError, match="the key 'runc' is missing"):
        Components.load(path, {})


# The command


def save_modules(desk: Desk, labels: Mapping[str, str]) -> None:
    """Leaves a sideload tar as ``build`` does, of an image with nothing but labels."""
    layout = desk.path.parent / "cache" / "images" / "x"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: Mapping[str, Any]) -> dict[str, Any]:
        raw = json.dumps(content).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (blobs / digest).write_bytes(raw)
        return {"digest": f"sha256:{digest}", "size": len(raw)}

    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": put({"config": {"Labels": dict(labels)}}),
            "layers": [],
        }
    )
    index = {"schemaVersion": 2, "manifests": [{**manifest, "mediaType": media_type}]}
    (layout / "index.json").write_text(json.dumps(index))
    tar = desk.path.parent / "cache" / f"zfs-{SLUG}.tar"
    Layout(layout).save(tar, (LOCAL.with_tag(SLUG),))
    assert saved_labels(tar) == labels


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def with_modules(desk: Desk) -> Desk:
    save_modules(
        desk,
        {
            "install-zfs.kernel-image": f"{desk.registry.host}/linuxkit/kernel:5.4.39",
            "install-zfs.kernel-digest": desk.digest,
            "install-zfs.zfs-version": "0.8.4",
        },
    )
    return desk


def test_files_for_a_built_kernel_need_nothing_but_its_tar(with_modules: Desk) -> None:
    desk = with_modules
    run = desk.run("linuxkit", SLUG)
    assert run.exit_code == 0, run
    assert desk.requests == 0
    for variant in VARIANTS:
        path = desk.path.parent / "cache" / f"linuxkit-{variant}-{SLUG}.yml"
        document = yaml.safe_load(path.read_text())
        assert list(misfits(document, SCHEMA)) == []
        assert document["kernel"]["image"] == f"{desk.registry.host}/linuxkit/kernel@{desk.digest}"
    again = {path: path.read_bytes() for path in (desk.path.parent / "cache").glob("*.yml")}
    assert desk.run("linuxkit", SLUG).stdout == run.stdout
    assert {path: path.read_bytes() for path in again} == again
    _, _, told = run.stdout.partition("\n\n")
    compare("written.txt", told)


def test_own_images_are_taken(with_modules: Desk) -> None:
    desk = with_modules
    desk.path.write_text(f"linuxkit:\n  getty: {OWN}\n" + desk.path.read_text())
    assert desk.run("linuxkit", "all").exit_code == 0
    text = (desk.path.parent / "cache" / f"linuxkit-boot-{SLUG}.yml").read_text()
    assert f"image: {OWN}\n" in text


def test_with_linuxkit_there_must_be_an_engine(with_modules: Desk) -> None:
    desk = with_modules
    desk.provide("linuxkit")
    run = desk.run("linuxkit", SLUG)
    assert run.exit_code == MISSING_HERE
    assert "no Docker engine answers" in run.stderr
    assert not list((desk.path.parent / "cache").glob("*.yml"))


def test_what_is_not_built_is_built_first(desk: Desk) -> None:
    run = desk.run("linuxkit", SLUG)
    assert run.exit_code == MISSING_HERE
    assert desk.left_behind == ["versions.yaml"]


def test_a_tar_of_another_zfs_is_not_taken(with_modules: Desk) -> None:
    desk = with_modules
    desk.complete()
    desk.path.write_text(desk.path.read_text().replace("zfs: 0.8.4", "zfs: 0.8.6"))
    assert desk.run("linuxkit", SLUG).exit_code == MISSING_HERE


LINUXKIT = """#!/bin/sh
echo "linuxkit $*"
[ "$1 $2 $3 $4" = "build --docker --dir cache" ] || exit 2
name=$(basename "$5" .yml)
grep -q broken versions.yaml && { echo 'Error: no such image' >&2; exit 1; }
for part in kernel initrd.img cmdline; do cp "$5" "cache/$name-$part"; done
"""


@pytest.mark.lab
def test_vms_are_built_where_linuxkit_is(
    built_in: Setup, desktop_kernel: LabKernel, tmp_path: Path
) -> None:
    """The command itself takes minutes to build: a stand-in says what it was told."""
    (tmp_path / "linuxkit").write_text(LINUXKIT)
    (tmp_path / "linuxkit").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (entry,) = built_in.load().kernels
    run = built_in.run("linuxkit", "all", environment=environment)
    assert run.exit_code == 0, run
    cache = built_in.directory / "cache"
    for variant in VARIANTS:
        vm = f"linuxkit-{variant}-{entry.slug}"
        assert (cache / f"{vm}-initrd.img").is_file()
        assert f"    linuxkit run qemu --mem 2048 cache/{vm}\n" in run.stdout
        document = yaml.safe_load((cache / f"{vm}.yml").read_text())
        assert document["kernel"]["image"].endswith(f"@{desktop_kernel.manifest}")
    assert "not installed" not in run.stdout
    before = built_in.path.read_text()
    built_in.path.write_text(f"# broken\n{before}")
    run = built_in.run("linuxkit", "all", environment=environment)
    built_in.path.write_text(before)
    assert run.exit_code == 1
    assert "Error: no such image" in run.stderr
    assert "linuxkit does not build it" in run.stdout
