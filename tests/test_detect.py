"""``detect``: what is told of machines. Golden files are in ``golden/detect``."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release import desktop
from release.desktop import DesktopMap, Grade, Row
from release.detect import (
    Certainty,
    Found,
    answer,
    as_data,
    candidates,
    desktop_of,
    host_platform,
    look_up,
    show,
)
from release.engine import Engine
from release.errors import PreflightError, UpstreamError
from release.http import Http
from release.notes import HOSTS, Host
from release.probe import Machine, look
from release.reference import DOCKER_HUB, Digest, Platform, Reference
from release.registry import OCI_MANIFEST, Registry
from release.versions import Entry
from tests.lab.debian import BOOKWORM
from tests.lab.registry import LABEL
from tests.lab.small_registry import SmallRegistry
from tests.lab.world import World

GOLDEN = Path(__file__).parent / "golden" / "detect"
ROOT = Path(__file__).parent.parent
OURS = Reference(DOCKER_HUB, "myname/install-zfs")
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)


def kernel(tag: str, repository: str = "docker/for-desktop-kernel") -> Entry:
    return Entry(Reference(DOCKER_HUB, repository, tag), zfs="2.1.5")


K_5_15 = kernel("5.15.49-13422a825f833d125942948cf8a8688cef721ead")
K_PR = kernel("5.15.49-pr-704f10d9d090a85069f63d0cad4dc557a64e8cc7")
K_OLD = kernel("5.10.104-379cadd2e08e8b25f932380e9fdaab97755357b3")
SKIPPED = Entry(
    Reference(DOCKER_HUB, "linuxkit/kernel", "4.9.1"), skip="the kernel image has no kernel-dev.tar"
)
ENTRIES = (K_5_15, K_PR, K_OLD, SKIPPED)
BANNER = (
    "Linux version 5.15.49-linuxkit (root@buildkitsandbox) (gcc (Alpine 10.2.1_pre1) 10.2.1"
    " 20201203, GNU ld (GNU Binutils) 2.35.2) #1 SMP Tue Sep 13 07:51:46 UTC 2022"
)
NEWER = BANNER.replace("5.15.49", "6.10.14").replace("2022", "2024")
YML = (
    f"kernel:\n  image: {str(K_5_15.image).removeprefix('docker.io/')}\n  cmdline: page_poison=1\n"
)
KNOWN = DesktopMap(
    Path("desktop.yaml"),
    (
        Row("4.6.0", "5.10.104", Grade.LINKED, "https://notes", "…", image=K_OLD.image),
        Row("4.13.0", "5.15.49", Grade.LINKED, "https://notes", "…", image=K_5_15.image),
        Row("4.30.0", "6.6.26", Grade.STATED, "https://notes", "…"),
        Row("4.38.0", "6.12.5", Grade.STATED, "https://notes", "…"),
        Row("4.39.0", "6.12.5", Grade.STATED, "https://notes", "…"),
    ),
)


def machine(version: str | None = "4.13.0", **changes: str | None) -> Machine:
    facts: dict[str, str | None] = {
        "release": "5.15.49-linuxkit",
        "banner": BANNER,
        "architecture": "x86_64",
        "operating_system": "Docker Desktop",
        "platform": f"Docker Desktop {version} (89412)" if version else "",
        "linuxkit": YML,
    }
    return Machine(**{**facts, **changes})  # type: ignore[arg-type]


NEW_DESKTOP = machine("4.37.1", release="6.10.14-linuxkit", banner=NEWER, linuxkit="")
MACHINES: dict[str, tuple[Machine, dict[str, Found]]] = {
    "published": (machine(), {K_5_15.slug: Found(BANNER)}),
    "not-published": (machine(), {K_5_15.slug: Found()}),
    "named-by-the-map": (machine(linuxkit=""), {K_5_15.slug: Found(BANNER)}),
    "told-by-the-banner": (
        machine(None, linuxkit=None, unseen="the root cannot be read"),
        {K_5_15.slug: Found(BANNER + " other"), K_PR.slug: Found(BANNER)},
    ),
    "another-build": (
        machine("4.13.1", linuxkit=""),
        {K_5_15.slug: Found(BANNER + " other"), K_PR.slug: Found(BANNER + " third")},
    ),
    "several-unpublished": (machine("4.13.1", linuxkit=""), {}),
    "without-a-container": (
        machine(banner="", linuxkit=None, unseen="busybox: the engine cannot pull it"),
        {K_5_15.slug: Found(BANNER)},
    ),
    "registry-unreachable": (
        machine(),
        {K_5_15.slug: Found(failure=UpstreamError("no answer", on="registry-1.docker.io"))},
    ),
    "unknown-kernel-image": (
        machine(linuxkit="kernel: {image: 'linuxkit/kernel:5.15.49-builder'}"),
        {},
    ),
    "another-kernel-image": (machine(linuxkit="kernel: {image: 'linuxkit/kernel:6.6.1'}"), {}),
    "named-but-another-build": (machine(), {K_5_15.slug: Found(BANNER + " other")}),
    "wsl2": (
        machine("4.26.1", release="5.15.133.1-microsoft-standard-WSL2", banner="Linux …"),
        {},
    ),
    "new-desktop": (NEW_DESKTOP, {}),
    "desktop-without-headers": (
        machine("4.30.0", release="6.6.26-linuxkit", banner=NEWER, linuxkit=""),
        {},
    ),
    "linuxkit-alone": (
        machine(
            None, release="6.12.5-linuxkit", banner=NEWER, operating_system="Alpine", linuxkit=""
        ),
        {},
    ),
    "distribution": (
        machine(
            None,
            release="6.1.0-49-amd64",
            banner="Linux version 6.1.0-49-amd64 …",
            operating_system="Debian GNU/Linux 12 (bookworm)",
            linuxkit="",
        ),
        {},
    ),
    "skipped": (machine("4.0.0", release="4.9.1-linuxkit", linuxkit=""), {}),
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_told(name: str) -> None:
    seen, found = MACHINES[name]
    told = answer(seen, KNOWN, ENTRIES, OURS, found, hosts=(Host.MAC,))
    text = show(told)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
    json.dumps(as_data(told))


def test_the_row_that_is_offered_can_be_added(tmp_path: Path) -> None:
    told = answer(NEW_DESKTOP, KNOWN, ENTRIES, OURS, {}, hosts=(Host.MAC,))
    assert told.row
    text = f"rows:\n{desktop.as_yaml(told.row)}\n"
    assert desktop.parse(tmp_path / "desktop.yaml", text).rows == (told.row,)


def test_a_pair_that_is_on_record_is_not_offered() -> None:
    assert answer(machine(), KNOWN, ENTRIES, OURS, {}).row is None
    assert answer(machine(linuxkit=""), KNOWN, ENTRIES, OURS, {}).row is None
    other = answer(machine("4.14.0"), KNOWN, ENTRIES, OURS, {}).row
    assert other is not None
    assert other.image == K_5_15.image


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Docker Desktop 4.13.0 (89412)", "4.13.0"),
        ("Docker Desktop for Linux 4.37.1", "4.37.1"),
        ("Docker Engine - Community", None),
        ("", None),
    ],
)
def test_the_version_in_the_engines_name(text: str, version: str | None) -> None:
    assert machine(platform=text).desktop == version


@pytest.mark.parametrize(
    "text", ["", "kernel", "kernel: []", "kernel: {image: 7}", "\t{", "kernel: {image: 'A b'}"]
)
def test_a_linuxkit_yml_that_names_no_image(text: str) -> None:
    assert machine(linuxkit=text).kernel_image is None


def test_the_version_of_a_distributions_kernel_is_in_its_banner() -> None:
    debian = machine(
        release="6.1.0-49-cloud-amd64",
        banner="Linux version 6.1.0-49-cloud-amd64 (…) #1 SMP Debian 6.1.192-1 (2026-01-01)",
        linuxkit="kernel: {image: 'linuxkit/kernel:6.1.192-abc'}",
    )
    assert debian.kernel_image == Reference(DOCKER_HUB, "linuxkit/kernel", "6.1.192-abc")
    other = machine(linuxkit="kernel: {image: 'linuxkit/kernel:5.15.4'}")
    assert other.named_image
    assert other.kernel_image is None
    compiler = machine(linuxkit="kernel: {image: 'linuxkit/kernel:10.2.1'}")
    assert compiler.kernel_image is None


@given(st.text())
def test_any_linuxkit_yml_gives_an_answer(text: str) -> None:
    assert show(answer(machine(linuxkit=text), KNOWN, ENTRIES, OURS, {}))


@given(st.text(), st.text(), st.text())
def test_any_machine_gives_an_answer(release: str, banner: str, platform: str) -> None:
    seen = machine(release=release, banner=banner, platform=platform, linuxkit=None)
    told = answer(seen, KNOWN, ENTRIES, OURS, {})
    assert told.image is None
    assert told.why
    assert show(told)


def test_a_moved_tag_is_not_certain() -> None:
    twins = tuple(
        Entry(K_5_15.image, digest, MappingProxyType({}), moved=digest == B) for digest in (A, B)
    )
    found = candidates(machine(), KNOWN, twins)
    assert [one.certainty for one in found] == [Certainty.LIKELY, Certainty.LIKELY]
    told = answer(
        machine(), KNOWN, twins, OURS, {twins[0].slug: Found("other"), twins[1].slug: Found(BANNER)}
    )
    assert told.image
    assert told.image.value == f"{OURS}:{twins[1].slug}"
    assert told.image.certainty is Certainty.CERTAIN


def test_what_a_version_alone_says_of_the_desktop_is_a_guess() -> None:
    several = desktop_of(machine(None, release="6.12.5-linuxkit", linuxkit=""), KNOWN)
    assert several
    assert (several.value, several.certainty) == ("4.38.0 or 4.39.0", Certainty.GUESS)
    one = desktop_of(machine(None, release="6.6.26-linuxkit", linuxkit=""), KNOWN)
    assert one
    assert (one.value, one.certainty) == ("4.30.0", Certainty.LIKELY)


def test_hosts() -> None:
    assert host_platform("darwin") == (Host.MAC,)
    assert host_platform("plan9") == HOSTS


def test_what_is_published_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    probable = candidates(machine("4.13.0", linuxkit=""), KNOWN, ENTRIES)
    assert [one.entry for one in probable] == [K_5_15, K_PR]
    amd64, arm64 = Platform("linux/amd64"), Platform("linux/arm64")
    registry = Registry(Http(), {})
    with SmallRegistry() as server:
        labels = {"Labels": {"install-zfs.kernel-banner": BANNER}}
        server.put_image("myname/install-zfs", K_5_15.slug, labels)
        ours = Reference.parse(f"{server.host}/myname/install-zfs")
        assert look_up(registry, ours, probable, amd64) == {
            K_5_15.slug: Found(BANNER),
            K_PR.slug: Found(),
        }
        assert look_up(registry, ours, probable, arm64)[K_5_15.slug] == Found()
        assert look_up(registry, ours, (), amd64) == {}
        server.manifests["myname/install-zfs"][K_5_15.slug] = (OCI_MANIFEST, b"[]")
        assert look_up(registry, ours, probable, amd64)[K_5_15.slug].failure
    seen = machine("4.13.0", linuxkit="")
    lost = {one.entry.slug: Found(failure=UpstreamError("no answer")) for one in probable}
    assert "could not be found out" in answer(seen, KNOWN, ENTRIES, OURS, lost).why


# The engine at hand


@pytest.mark.lab
def test_a_real_engine_and_its_machine() -> None:
    with World() as world:
        image = world.base(BOOKWORM)
        seen = look(Engine(os.environ), image)
        assert seen.release == world.client.info()["KernelVersion"]
        assert seen.banner.startswith(f"Linux version {seen.release} ")
        assert (seen.linuxkit is None) == bool(seen.unseen)
        told = answer(seen, KNOWN, ENTRIES, OURS, {})
        assert told.kernel.certainty is Certainty.CERTAIN
        there = world.client.containers.list(all=True, sparse=True, filters={"ancestor": image})
        left = [one.attrs for one in there if one.attrs["Command"].startswith("sleep")]
        # Tests beside this one label theirs.
        assert [one for one in left if LABEL not in one["Labels"]] == []


@pytest.mark.lab
def test_an_image_that_cannot_be_pulled_leaves_the_engines_word() -> None:
    seen = look(Engine(os.environ), "127.0.0.1:1/nobody/nothing:1")
    assert seen.release
    assert seen.banner == ""
    assert "the engine cannot pull it" in seen.unseen


@pytest.mark.lab
def test_a_command_in_a_container_and_what_it_ended_with() -> None:
    with World() as world:
        image = world.base(BOOKWORM)
    engine = Engine(os.environ)
    ran = engine.run(image, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ran.exit_code, sorted(ran.output.split())) == (3, ["err", "out"])
    with engine.session(image, ["sleep"]) as session:
        assert session.run("cat", "/no/such/file").exit_code == 1
        written = io.BytesIO()
        assert session.write(written, "head", "-c", "100000", "/dev/zero") == 0
        assert written.getvalue() == bytes(100000)
    with pytest.raises(PreflightError, match="cannot start"), engine.session(image, ["/none"]):
        pass
