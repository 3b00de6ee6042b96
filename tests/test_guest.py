"""``detect`` and ``capture`` on a machine of their own: a guest with a real Docker engine.

The guest boots a kernel of the lab, has its headers in Debian's three parts and Debian's own Docker
engine, and ``/etc/linuxkit.yml`` as Docker Desktop's virtual machine has it. Slow, so it is a
target of its own: ``make test-guest``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from release import initramfs
from release.boot import Boot
from release.kernel import read_banner
from tests.lab.debian import BOOKWORM
from tests.lab.machine import Machine, Result, machine
from tests.lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.guest]

REGISTRY = "127.0.0.1:5000"
IMAGE = f"{REGISTRY}/me/kernel"
HASH = "d" * 40
SERVE = f"""\
import time
from pathlib import Path
from tests.lab.small_registry import SmallRegistry

banner = Path("/proc/version").read_text().strip()
slug = Path("slug").read_text().strip()
with SmallRegistry(port={REGISTRY.partition(":")[2]}) as registry:
    labels = {{"Labels": {{"install-zfs.kernel-banner": banner}}}}
    registry.put_image("myname/install-zfs", slug, labels)
    Path("serving").touch()
    time.sleep(3600)
"""
RUN = "cd /project && export PYTHONPATH=/project DOCKER_CONFIG=/tmp PYTHONDONTWRITEBYTECODE=1;"
RELEASE = f"{RUN} python3 -m release"
JSON = "--json /tmp/json; code=$?; echo; cat /tmp/json; exit $code"
COMMANDS = {
    "serve": f"{RUN} (python3 serve.py >/tmp/serve.log 2>&1 &)\n"
    "for try in $(seq 100); do [ -e serving ] && break; sleep 0.2; done; cat /tmp/serve.log;"
    " docker version --format '{{.Server.Version}}'",
    "detect": f"{RELEASE} detect {JSON}",
    "capture": f"{RELEASE} capture {IMAGE}:one --push {JSON}",
    "loaded": f"docker image inspect {IMAGE}:one --format '{{{{json .Config.Labels}}}}'",
    "capture-again": f"{RELEASE} capture {IMAGE}:two {JSON}",
    "capture-without-kernel": f"rm /boot/vmlinuz-*; {RELEASE} capture {IMAGE}:6.1.1 {JSON}",
    "capture-without-headers": f"rm /lib/modules/*/build; mv /usr/src /src;"
    f" {RELEASE} capture {IMAGE}:three",
    "detect-elsewhere": f"rm /etc/linuxkit.yml; {RELEASE} detect",
    "detect-without-image": f"{RELEASE} detect --probe-image nobody/nothing:1",
    "left-behind": "docker ps --all --quiet",
}


@dataclass(frozen=True)
class Guest:
    results: dict[str, Result]
    boot: Boot
    machine: Machine

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def json(self, name: str) -> Any:
        """What a command wrote for programs."""
        return json.loads(self[name].output[self[name].output.rindex('{\n  "outcomes"') :])


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with World() as world:
        guest = machine(world, BOOKWORM)
        banner = read_banner(guest.kernel)
        version = re.search(r" Debian (\d+\.\d+\.\d+)-", banner.partition(" #")[2])
        assert version
        kernel = f"docker/for-desktop-kernel:{version[1]}-{HASH}"
        texts = {
            "project/serve.py": SERVE,
            "project/slug": kernel.replace("/", "-").replace(":", "-"),
            "project/versions.yaml": f"image: {REGISTRY}/myname/install-zfs\nprobe: probe:lab\n"
            f"kernels:\n  - image: {kernel}\n",
            "etc/linuxkit.yml": f"kernel:\n  image: {kernel}\n  cmdline: console=ttyS0\n",
        }
        log = world.directory / "logs" / "guest.log"
        files = [initramfs.regular_file(path, text.encode()) for path, text in texts.items()]
        results, boot = guest.run(COMMANDS, log, files=files)
        for name, result in results.items():
            print(f"{name}: {result.seconds:.1f} s, exit code {result.exit_code}")
            print(result.output)
        print(f"guest: {boot.seconds:.1f} s under {boot.accelerator}")
        yield Guest(results, boot, guest)


def test_detect_tells_the_kernel_and_the_image(guest: Guest) -> None:
    assert guest["detect"].exit_code == 0
    detected = guest.json("detect")["detected"]
    assert detected["kernel"]["value"] == guest.machine.release
    assert detected["kernel_banner"] == read_banner(guest.machine.kernel)
    assert detected["kernel_image"]["certainty"] == "certain"
    assert detected["image"]["certainty"] == "certain"
    assert "is the running kernel's banner" in detected["image"]["reason"]
    assert detected["commands"][0].startswith("docker run --rm --privileged 127.0.0.1:5000/myname")
    assert detected["notes"] == []


def test_capture_packs_and_pushes_the_running_kernel(guest: Guest) -> None:
    assert guest["capture"].exit_code == 0
    (outcome,) = guest.json("capture")["outcomes"]
    assert outcome["status"] == "published"
    labels = json.loads(guest["loaded"].output)
    assert labels["install-zfs.kernel-banner"] == read_banner(guest.machine.kernel)
    assert f"/boot/vmlinuz-{guest.machine.release}" in guest["capture"].output
    assert "smoke: host" not in guest["capture"].output


def test_the_same_machine_gives_the_same_image(guest: Guest) -> None:
    one, two = (guest.json(name)["outcomes"][0] for name in ("capture", "capture-again"))
    assert one["digest"] == two["digest"]


def test_without_a_bootable_kernel_it_is_to_be_tested_here(guest: Guest) -> None:
    assert guest["capture-without-kernel"].exit_code == 0
    assert "smoke: host" in guest["capture-without-kernel"].output
    outcome = guest.json("capture-without-kernel")["outcomes"][0]
    assert outcome["digest"] != guest.json("capture")["outcomes"][0]["digest"]


def test_without_headers_it_says_what_is_missing(guest: Guest) -> None:
    assert guest["capture-without-headers"].exit_code == 4
    assert "has no headers of its kernel" in guest["capture-without-headers"].output


def test_detect_where_little_can_be_known(guest: Guest) -> None:
    assert guest["detect-elsewhere"].exit_code == 0
    assert "neither Docker Desktop's nor LinuxKit's" in guest["detect-elsewhere"].output
    assert guest["detect-without-image"].exit_code == 0
    assert "the engine cannot pull it" in guest["detect-without-image"].output


def test_no_container_is_left_behind(guest: Guest) -> None:
    assert guest["left-behind"].output.strip() == ""
