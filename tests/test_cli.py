"""The command line as a process of its own: exit codes, messages, and what is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from release import onthespot, versions
from release.attest import PROVENANCE
from release.drift import LOOKS
from release.http import bytes_digest
from release.receipt import File, Part, Receipt
from release.record import Record
from release.reference import Digest, Reference, parse_digest, platform_fields
from release.versions import Entry
from release.world import World, native_platform
from tests.lab.docs import Docs
from tests.lab.github import Attestation, GitHub, Repository
from tests.lab.hub import Hub
from tests.lab.server import (
    Drop,
    Fault,
    LabServer,
    Request,
    Response,
    Truncate,
    html_page,
    retry_after,
)
from tests.lab.small_registry import INDEX, SmallRegistry

PROJECT = Path(__file__).resolve().parents[1]
DAY = datetime(2024, 5, 1, tzinfo=UTC)
MISSING_HERE = 4
SLUG = "linuxkit-kernel-5.4.39"
OPENZFS = {"0.8.4": "2.6.32 5.6", "0.8.6": "2.6.32 5.9", "2.1.16": "3.10 6.7"}


@dataclass(frozen=True)
class Run:
    """A finished ``python -m release``."""

    exit_code: int
    stdout: str
    stderr: str


class Desk:
    """A maintainer's desk: a directory, Docker Hub, a registry and GitHub; no engine, no QEMU.

    One source is listed by the Hub and holds ``linuxkit/kernel:5.4.39``, the other one by its
    registry and holds ``mirror/kernel:5.10.1``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.hub, self.registry, self.github = Hub(), SmallRegistry(), GitHub()
        self.path = directory / "work" / "versions.yaml"
        self.releases = self.github.add(Repository("me", "install-zfs"))
        self.github.add_token("writer", push=["me/install-zfs"])
        self.openzfs = self.github.add(Repository("openzfs", "zfs"))
        for version, kernels in OPENZFS.items():
            low, high = kernels.split()
            self.openzfs.add_release(f"zfs-{version}")
            meta = f"Linux-Maximum: {high}\nLinux-Minimum: {low}\n"
            self.openzfs.contents[f"zfs-{version}", "META"] = meta.encode()
        for new in (self.bin, self.path.parent, directory / "home"):
            new.mkdir(parents=True)
        host = self.registry.host
        self.digest = self.registry.put("linuxkit/kernel", "5.4.39", {})
        self.mirrored = self.registry.put("mirror/kernel", "5.10.1", {})
        self.hub.repository("linuxkit", "kernel").push(
            "5.4.39", self.digest, [("linux", "amd64", None, self.digest, 1)], DAY
        )
        self.entry = f"- image: {host}/linuxkit/kernel:5.4.39\n  digest: {self.digest}\n"
        self.new = f"- image: {host}/mirror/kernel:5.10.1\n  digest: {self.mirrored}\n"
        self.head = (
            f"# our kernels\nimage: {host}/me/zfs\nsources:\n"
            f"- repository: {host}/linuxkit/kernel\n  hub: {self.hub.url}\n"
            f"- repository: {host}/mirror/kernel\n"
            f"openzfs:\n  api: {self.github.url}\nlatest: {{kernels: 0}}\n"
            "on_the_spot: false\nkernels:\n"
        )
        self.path.write_text(self.head + self.entry)

    def complete(self) -> None:
        """Makes both kernels known, the one built and published, the other for elsewhere only."""
        arch = native_platform().partition("/")[2]
        facts = (
            f"  platforms: {{linux/{arch}: {self.digest}}}\n"
            "  builder: linuxkit/alpine:1\n  zfs: 0.8.4\n  desktop: [4.13.0]\n"
        )
        elsewhere = f"  platforms: {{plan9/mips: {self.mirrored}}}\n"
        self.path.write_text(self.head + self.entry + facts + self.new + elsewhere)
        for tag in (SLUG, "desktop-4.13.0"):
            self.registry.put("me/zfs", tag, {})
        assets = {f"zfs-{SLUG}-{arch}.tar.xz": b"x", "SHA256SUMS": b"x"}
        self.releases.add_release(f"{SLUG}-zfs-0.8.4", assets)

    def provide(self, *programs: str, script: str = "exit 0") -> None:
        """Puts programs on the PATH, which is empty otherwise."""
        for program in programs:
            (self.bin / program).write_text(f"#!/bin/sh\n{script}\n")
            (self.bin / program).chmod(0o755)

    def run(self, *arguments: str, **environment: str | None) -> Run:
        """Runs it; None takes a variable away."""
        merged = {
            "PATH": str(self.bin),
            "HOME": str(self.directory / "home"),
            "PYTHONPATH": str(PROJECT),
            "DOCKER_HOST": f"unix://{self.directory}/no.sock",
            "GITHUB_API_URL": self.github.url,
            "GITHUB_REPOSITORY": "me/install-zfs",
            "GITHUB_TOKEN": "writer",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-m", "release", *arguments],
            cwd=self.path.parent,
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Run(done.returncode, done.stdout, done.stderr)

    @property
    def requests(self) -> int:
        return self.hub.count() + self.registry.count() + self.github.count()

    @property
    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())

    def __enter__(self) -> Desk:
        with ExitStack() as stack:
            for server in (self.hub, self.registry, self.github):
                stack.enter_context(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        yield desk
        for server in (desk.hub, desk.registry, desk.github):
            assert server.violations == []


def side_by_side(runs: Sequence[tuple[Desk, Sequence[str]]]) -> list[Run]:
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(lambda run: run[0].run(*run[1]), runs))


# Polling


def test_poll_appends_what_is_new_and_nothing_the_second_time(desk: Desk) -> None:
    desk.path.write_text(desk.head)
    first = desk.run("poll")
    assert first.exit_code == 0
    assert first.stdout.splitlines() == [
        f"new: {desk.registry.host}/linuxkit/kernel:5.4.39 {desk.digest}",
        f"new: {desk.registry.host}/mirror/kernel:5.10.1 {desk.mirrored}",
        "2 new kernels, 2 in versions.yaml",
    ]
    content = desk.path.read_text()
    platforms = f"  platforms: {{linux/amd64: {desk.digest}}}\n"
    indented = (desk.entry + platforms + desk.new).replace("\n", "\n  ").rstrip(" ")
    assert content == f"{desk.head}  {indented}"
    asked = desk.requests
    second = desk.run("poll")
    assert second.exit_code == 0
    assert second.stdout == "0 new kernels, 2 in versions.yaml\n"
    assert desk.path.read_text() == content
    assert desk.requests - asked == 2
    hosts = sorted((f"127.0.0.1:{desk.hub.port}", desk.registry.host))
    assert second.stderr == f"requests: 2 (1 to {hosts[0]}, 1 to {hosts[1]})\n"
    assert desk.left_behind == ["versions.yaml"]


def empty(desk: Desk) -> None:
    desk.hub.repositories.clear()


def past_the_offset(desk: Desk) -> None:
    for number in range(150):
        desk.hub.repository("linuxkit", "kernel").push(f"6.1.{number}", f"sha256:{number:064x}")
    desk.hub.anonymous_offset = 100


def short_page(desk: Desk) -> None:
    past_the_offset(desk)
    body = {"count": 150, "next": f"{desk.hub.url}/2", "results": [{"name": "6.1.1"}]}
    desk.hub.fail("tags", Response(200, {}, json.dumps(body).encode()))


def always(fault: Fault) -> Callable[[Desk], None]:
    return lambda desk: desk.hub.fail("", fault, times=None)


FAULTS: dict[str, tuple[Callable[[Desk], None], str]] = {
    "unreachable": (lambda desk: desk.hub.__exit__(), "could not be reached"),
    "drops": (always(Drop()), "could not be reached"),
    "403 past the offset": (past_the_offset, "answered 403"),
    "429 with seconds": (always(retry_after(3600)), "asks to wait 3600 seconds"),
    "429 with a date": (
        always(retry_after(datetime.now(UTC) + timedelta(hours=1))),
        "asks to wait",
    ),
    "500": (always(Response(500)), "answered 500"),
    "half a page": (always(Truncate(100)), "could not be reached"),
    "a short page": (short_page, "listed 1 of 150 tags"),
    "HTML": (always(html_page()), "not JSON"),
    "count 0": (empty, "lists no tags at all"),
}


@pytest.fixture(scope="module")
def polls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Desk, Run]]]:
    """A poll under each fault, all side by side, because some wait for a better answer."""
    with ExitStack() as stack:
        desks = {}
        for name, (break_it, _) in FAULTS.items():
            desks[name] = stack.enter_context(Desk(tmp_path_factory.mktemp("poll")))
            break_it(desks[name])
        runs = side_by_side([(desk, ["poll"]) for desk in desks.values()])
        yield {name: (desks[name], run) for name, run in zip(desks, runs, strict=True)}


@pytest.mark.parametrize("name", FAULTS)
def test_a_source_that_fails_loses_nothing_and_keeps_no_other_from_being_read(
    polls: Mapping[str, tuple[Desk, Run]], name: str
) -> None:
    desk, run = polls[name]
    assert run.exit_code == 3
    assert FAULTS[name][1] in run.stderr
    assert run.stderr.startswith("error: ")
    assert "  next: " in run.stderr
    assert desk.path.read_text() == desk.head + desk.entry + desk.new
    assert run.stdout.endswith("1 new kernels, 2 in versions.yaml\n")


# Looking without touching


def test_plan_writes_nothing_and_needs_no_engine(desk: Desk) -> None:
    desk.hub.repository("linuxkit", "kernel").push("5.4.39-builder", None)
    content = desk.path.read_bytes()
    run = desk.run("plan", "--limit", "1")
    assert run.exit_code == 0
    header, newest, other, *rest = run.stdout.splitlines()
    assert header.split() == ["ACTION", "KERNEL", "PLATFORMS", "REASON"]
    assert newest.split()[:2] == ["publish", f"{desk.registry.host}/mirror/kernel:5.10.1"]
    assert "new upstream; missing: image, release" in newest
    assert other.split()[0] == "skip"
    assert "--limit 1" in other
    assert rest[-1] == "  5.4.39-builder: is the compiler's image, not a kernel"
    assert desk.path.read_bytes() == content
    assert desk.left_behind == ["versions.yaml"]


def test_plan_tells_of_a_source_that_fails(desk: Desk) -> None:
    desk.hub.fail("", html_page(), times=None)
    run = desk.run("plan")
    assert run.exit_code == 3
    assert "not JSON" in run.stderr
    assert "mirror/kernel:5.10.1" in run.stdout


# Which Desktop runs which kernel

HASH = "0123456789abcdef0123456789abcdef01234567"
HUB = "https://hub.docker.com/layers/docker/for-desktop-kernel"
NOTES = f"""\
# Docker Desktop release notes

## 4.31.0
2024-06-06

- Linux kernel `v6.6.31`
- Linux kernel 6.7 or later

## 4.13.0
2022-10-19

- [Linux kernel 5.15.49]({HUB}/5.15.49-{HASH}/images/sha256-0?context=repo)

## 3.3.0
2021-04-08

- [Linux kernel 5.10.25]({HUB}/5.15.49-{HASH}/images/sha256-0?context=repo)
"""


@pytest.fixture
def noted(desk: Desk) -> Iterator[tuple[Desk, Docs]]:
    """A desk with one kernel of a Docker Desktop, known by hand, and the release notes."""
    with Docs() as docs:
        docs.pages["/notes.md"] = NOTES
        top = desk.head.replace(
            "kernels:\n", f"desktop:\n  release_notes: [{docs.url}/notes.md]\nkernels:\n"
        )
        desk.path.write_text(
            f"{top}{desk.entry}- image: docker/for-desktop-kernel:5.15.49-{HASH}\n"
        )
        yield desk, docs


def test_a_desktop_version_is_published_for_what_the_notes_link(noted: tuple[Desk, Docs]) -> None:
    desk, _ = noted
    plan = desk.run("plan")
    (line,) = [line for line in plan.stdout.splitlines() if "for-desktop-kernel" in line]
    assert "desktop-4.13.0" in line
    assert "3.3.0" not in plan.stdout, "the notes contradict themselves"
    assert desk.left_behind == ["versions.yaml"]

    poll = desk.run("poll")
    assert "new: Docker Desktop 4.13.0 runs Linux 5.15.49 (linked)" in poll.stdout
    written = desk.path.with_name("desktop.yaml").read_bytes()
    assert desk.run("poll").exit_code == poll.exit_code == 0
    assert desk.path.with_name("desktop.yaml").read_bytes() == written

    status = desk.run("status").stdout.splitlines()
    assert [line.split(":")[:2] for line in status[-2:]] == [
        ["Docker Desktop 3.3.0", " contradictory"],
        ["Docker Desktop 4.31.0", " no-headers"],
    ]
    assert "python -m release capture" in status[-1]

    chosen = desk.run("plan", "--only", "desktop-4.13.0")
    assert chosen.exit_code == 0
    assert "not chosen in this run" in chosen.stdout
    assert desk.run("plan", "--only", "desktop-3.3.0").exit_code == 2


def test_status_of_desktops(noted: tuple[Desk, Docs]) -> None:
    desk, _ = noted
    run = desk.run("status", "--desktop")
    assert run.exit_code == 0
    table, sentences = run.stdout.split("\nSentences of the release notes")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert "publishable" in rows["4.13.0"]
    assert "contradictory" in rows["3.3.0"]
    assert "decided: IMAGE" in rows["3.3.0"]
    assert "no-headers" in rows["4.31.0"]
    assert "python -m release capture" in run.stdout
    assert "Linux kernel 6.7 or later" in sentences
    assert desk.left_behind == ["versions.yaml"]


@pytest.mark.parametrize("command", [["poll"], ["plan"], ["status", "--desktop"]])
def test_an_error_page_in_place_of_the_notes_changes_nothing(
    noted: tuple[Desk, Docs], command: list[str]
) -> None:
    desk, docs = noted
    desk.run("poll")
    before = desk.path.with_name("desktop.yaml").read_bytes()
    docs.fail("notes.md", html_page(), times=None)
    run = desk.run(*command)
    assert run.exit_code == 3
    assert "notes.md" in run.stderr
    assert desk.path.with_name("desktop.yaml").read_bytes() == before


def test_status_lists_what_is_left_out_when_asked(desk: Desk) -> None:
    desk.complete()
    desk.hub.repository("linuxkit", "kernel").push("5.4.39-builder", None)
    assert "5.4.39-builder" not in desk.run("status").stdout
    run = desk.run("status", "--all")
    assert run.exit_code == 0
    last = run.stdout.splitlines()[-1]
    assert last == "  5.4.39-builder: is the compiler's image, not a kernel"


def test_a_second_tag_is_told_recorded_and_to_be_published(desk: Desk) -> None:
    desk.complete()
    desk.hub.repository("linuxkit", "kernel").push("5.4.39-amd64", desk.digest)
    run = desk.run("plan")
    assert "note: " in run.stderr
    assert "is another tag of" in run.stderr
    (line,) = [line for line in run.stdout.splitlines() if "/linuxkit/kernel:5.4.39 " in line]
    assert f"missing: {SLUG}-amd64" in line
    assert desk.run("poll").exit_code == 0
    assert f"aliases: [{desk.registry.host}/linuxkit/kernel:5.4.39-amd64]" in desk.path.read_text()


def test_status(desk: Desk) -> None:
    desk.complete()
    run = desk.run("status")
    assert run.exit_code == 0
    host = desk.registry.host
    *rows, age = run.stdout.splitlines()
    assert age == "no complete look at upstream is recorded yet"
    header, listed, mirrored = (line.split() for line in rows)
    assert header == ["KERNEL", "DESKTOP", "ZFS", "PLATFORMS", "STATE", "REASON"]
    assert mirrored[:5] == [f"{host}/mirror/kernel:5.10.1", "-", "-", "plan9/mips", "skipped"]
    assert " ".join(mirrored[5:]).startswith("upstream has it for plan9/mips only")
    assert listed[0] == f"{host}/linuxkit/kernel:5.4.39"
    assert listed[1:] == ["4.13.0", "0.8.4", native_platform(), "published"]
    assert desk.hub.count() == 0


def test_a_sync_with_nothing_to_do(desk: Desk) -> None:
    desk.complete()
    content = desk.path.read_bytes()
    run = desk.run("sync", "--json", "outcomes.json")
    assert (run.exit_code, run.stderr.count("error")) == (0, 0)
    outcomes = json.loads((desk.path.parent / "outcomes.json").read_text())["outcomes"]
    assert [outcome["status"] for outcome in outcomes] == ["unchanged", "skipped"]
    assert outcomes[0]["github_release"] == f"{SLUG}-zfs-0.8.4"
    assert desk.requests == 4
    assert desk.registry.count("/manifests/") == desk.registry.count("/blobs/") == 0
    assert desk.path.read_bytes() == content
    # A source that fails is told of, though there is nothing to do either.
    desk.hub.fail("", html_page(), times=None)
    assert desk.run("sync").exit_code == 3
    assert desk.path.read_bytes() == content


def put_latest(desk: Desk) -> Digest:
    """Publishes a ``latest`` that was made from the releases that there are; returns what is to be
    signed of it.
    """
    environment = {
        "GITHUB_API_URL": desk.github.url,
        "GITHUB_REPOSITORY": "me/install-zfs",
        "GITHUB_TOKEN": "writer",
    }
    world = World(versions.load(desk.path), environment)
    wanted = world.wanted_latest(world.versions.kernels, world.observe())
    digest = parse_digest(desk.registry.put("me/zfs", "latest", {}))
    record = Record(digest, wanted.fingerprint).document
    desk.registry.put("me/zfs", record.digest, record.raw)
    return digest


def put_receipt(desk: Desk) -> None:
    """Lets the release of the published kernel say what belongs to it."""
    (release,) = desk.releases.releases
    image = parse_digest(desk.registry.put("me/zfs", SLUG, {}))
    (one, _) = versions.load(desk.path).kernels
    part = Part(image, "5.4.39-linuxkit", "Linux version")
    files = {asset.name: File(1, bytes_digest(b"x")) for asset in release.assets}
    release.body = str(Receipt(one, image, None, {native_platform(): part}, files))


def test_a_latest_that_is_behind_is_told_and_needs_what_publishing_needs(desk: Desk) -> None:
    desk.complete()
    put_receipt(desk)
    on = desk.path.read_text().replace("latest: {kernels: 0}\n", "")
    desk.path.write_text(on)
    for command in ("plan", "status"):
        assert "me/zfs:latest is behind" in desk.run(command).stdout
    assert desk.run("sync").exit_code == MISSING_HERE
    assert desk.run("sync", "--limit", "0").exit_code == 0
    put_latest(desk)
    for arguments in (["sync"], ["publish", "all"]):
        assert desk.run(*arguments).exit_code == 0
    assert "latest" not in desk.run("plan").stdout


def put_build(desk: Desk) -> Digest:
    """Puts a ``build`` into the registry that is what this project makes now; returns what is to be
    signed of it.
    """
    world = World(versions.load(desk.path), {})
    wanted = onthespot.recipe(world)
    image = {"digest": bytes_digest(b"build"), "platform": platform_fields(native_platform())}
    index = {"schemaVersion": 2, "manifests": [image]}
    digest = parse_digest(desk.registry.put("me/zfs", "build", index, INDEX))
    record = Record(digest, f"{wanted.fingerprint} {native_platform()}").document
    desk.registry.put("me/zfs", record.digest, record.raw)
    return digest


def test_a_build_image_that_is_behind_is_told_and_needs_what_publishing_needs(desk: Desk) -> None:
    desk.complete()
    desk.path.write_text(desk.path.read_text().replace("on_the_spot: false\n", ""))
    for command in ("plan", "status"):
        assert "me/zfs:build is behind" in desk.run(command).stdout
    assert desk.run("sync").exit_code == MISSING_HERE
    assert desk.run("sync", "--limit", "0").exit_code == 0
    put_build(desk)
    asked = desk.registry.count("me/zfs/manifests")
    for arguments in (["sync"], ["publish", "all"]):
        assert desk.run(*arguments).exit_code == 0
    assert "build" not in desk.run("plan").stdout
    assert desk.registry.count("me/zfs/manifests") - asked == 6, "two HEADs each time"


def test_a_build_image_without_any_builder(desk: Desk) -> None:
    (desk.path.parent / "mine.yaml").write_text("builders:\n")
    text = desk.path.read_text().replace("on_the_spot: false\n", "builders: mine.yaml\n")
    desk.path.write_text(text)
    run = desk.run("plan")
    assert run.exit_code == 2
    assert "mine.yaml: names no builder" in run.stderr
    assert "on_the_spot: false" in run.stderr


def test_a_build_image_that_cannot_be_looked_at_is_not_behind(desk: Desk) -> None:
    desk.complete()
    desk.path.write_text(desk.path.read_text().replace("on_the_spot: false\n", ""))
    desk.github.fail("openzfs/zfs/releases", html_page(), times=None)
    run = desk.run("plan")
    assert run.exit_code == 3
    assert "behind" not in run.stdout
    assert "openzfs/zfs" in run.stderr
    assert desk.run("sync").exit_code == 3


def test_an_idle_sync_with_a_hundred_kernels(desk: Desk) -> None:
    """Everything is listed in bulk: the requests do not grow with the kernels."""
    arch = native_platform().partition("/")[2]
    kernels = ""
    for number in range(100):
        digest = f"sha256:{number:064x}"
        tag, name = f"5.4.{number}", f"{desk.registry.host}/linuxkit/kernel"
        slug = f"linuxkit-kernel-{tag}"
        desk.hub.repository("linuxkit", "kernel").push(
            tag, digest, [("linux", arch, None, digest, 1)], DAY
        )
        image = parse_digest(desk.registry.put("me/zfs", slug, {}))
        assets = {f"zfs-{slug}-{arch}.tar.xz": b"x", "SHA256SUMS": b"x"}
        receipt = Receipt(
            Entry(Reference.parse(f"{name}:{tag}"), parse_digest(digest), zfs="0.8.4"),
            image,
            None,
            {native_platform(): Part(image, f"{tag}-linuxkit", "Linux version", to_sign=True)},
            dict.fromkeys(assets, File(1, bytes_digest(b"x"))),
        )
        desk.releases.add_release(f"{slug}-zfs-0.8.4", assets, body=str(receipt))
        signed = frozenset({("image", image)})
        desk.releases.attestations.append(Attestation({}, PROVENANCE, signed))
        kernels += (
            f"- image: {name}:{tag}\n  digest: {digest}\n"
            f"  platforms: {{linux/{arch}: {digest}}}\n  builder: linuxkit/alpine:1\n"
            f"  zfs: 0.8.4\n"
        )
    head = desk.head.replace("latest: {kernels: 0}\non_the_spot: false\n", "")
    desk.path.write_text(head + kernels + desk.new)
    signed = frozenset(("image", digest) for digest in (put_latest(desk), put_build(desk)))
    desk.releases.attestations.append(Attestation({}, PROVENANCE, signed))
    asked, looked = desk.requests, desk.registry.count("^HEAD /v2/me/zfs/manifests/linuxkit")
    options = ("--json", "outcomes.json", "--subjects", "subjects.txt")
    run = desk.run("sync", "--only", "linuxkit-kernel-5.4.1", *options)
    assert run.exit_code == 0, run.stderr
    assert "subjects.txt" not in desk.left_behind
    outcomes = json.loads((desk.path.parent / "outcomes.json").read_text())["outcomes"]
    assert Counter(one["status"] for one in outcomes) == {"unchanged": 100, "skipped": 1}
    assert desk.requests - asked <= 10
    signatures = desk.github.count("/attestations/")
    tags = desk.registry.count("^HEAD /v2/me/zfs/manifests/linuxkit") - looked
    assert signatures + tags == LOOKS
    # All of them, where that is asked for.
    assert desk.run("plan", "--verify", "--only", "linuxkit-kernel-5.4.1").exit_code == 0
    assert desk.registry.count("^HEAD /v2/me/zfs/manifests/linuxkit") - looked == tags + 100


# Which ZFS


def newer(desk: Desk) -> str:
    """Adds a kernel that no OpenZFS release is for; returns its image."""
    image = f"{desk.registry.host}/mirror/kernel:6.9.1"
    desk.registry.put("mirror/kernel", "6.9.1", {"annotations": {"of": "6.9.1"}})
    return image


WAITS = "no OpenZFS release is for Linux 6.9.1 yet: the nearest, 2.1.16, is for 3.10 to 6.7"


def test_a_kernel_that_is_too_new_waits_and_costs_next_to_nothing(desk: Desk) -> None:
    desk.complete()
    image = newer(desk)
    for number in (1, 2):
        desk.registry.requests.clear()
        desk.github.requests.clear()
        run = desk.run("sync", "--json", "outcomes.json")
        assert run.exit_code == 0, run
        outcomes = json.loads((desk.path.parent / "outcomes.json").read_text())["outcomes"]
        waiting = [one for one in outcomes if one["status"] == "waiting"]
        assert [(one["kernel"], one["reason"]) for one in waiting] == [(image, WAITS)]
        assert desk.registry.count("GET .*/(manifests|blobs)/") == 0
        # Which releases there are; and once, for each line, what its newest is for.
        assert desk.github.count("openzfs/zfs/releases") == 1
        assert desk.github.count("openzfs/zfs/contents/META") == (2 if number == 1 else 0)
        assert image in desk.path.read_text()
    plan = desk.run("plan", "--json", "plan.json")
    assert plan.exit_code == 0
    assert [line for line in plan.stdout.splitlines() if line.startswith("wait ")]
    outcomes = json.loads((desk.path.parent / "plan.json").read_text())["outcomes"]
    assert [one["reason"] for one in outcomes if one["status"] == "waiting"] == [WAITS]
    status = desk.run("status")
    assert status.exit_code == 0
    assert "waiting: nearest 2.1.16 up to 6.7" in status.stdout
    assert WAITS in status.stdout


def test_a_kernel_that_is_too_old_is_skipped(desk: Desk) -> None:
    desk.complete()
    desk.registry.put("mirror/kernel", "2.6.30", {"annotations": {"of": "2.6.30"}})
    run = desk.run("sync", "--json", "outcomes.json")
    assert run.exit_code == 0, run
    outcomes = json.loads((desk.path.parent / "outcomes.json").read_text())["outcomes"]
    (old,) = [one for one in outcomes if one["kernel"].endswith(":2.6.30")]
    assert old["status"] == "skipped"
    assert "as old as Linux 2.6.30" in old["reason"]


def test_a_release_without_meta_is_told_of(desk: Desk) -> None:
    del desk.openzfs.contents["zfs-2.1.16", "META"]
    run = desk.run("status")
    assert run.exit_code == 0
    assert f"{desk.registry.host}/linuxkit/kernel:5.4.39  -        0.8.6  -" in run.stdout
    assert "warning: github.com/openzfs/zfs zfs-2.1.16 META: is not there" in run.stderr
    assert desk.left_behind == ["versions.yaml"]


@pytest.mark.parametrize("what", ["openzfs/zfs/releases", "openzfs/zfs/contents"])
def test_when_openzfs_cannot_be_read_nothing_is_assumed(desk: Desk, what: str) -> None:
    desk.complete()
    newer(desk)
    desk.github.fail(what, html_page(), times=None)
    run = desk.run("sync", "--json", "outcomes.json")
    assert run.exit_code == 3
    assert run.stderr.count("not JSON") == 1
    outcomes = json.loads((desk.path.parent / "outcomes.json").read_text())["outcomes"]
    assert Counter(one["status"] for one in outcomes) == {"skipped": 2, "unchanged": 1}
    assert any("could not be found out" in one["reason"] for one in outcomes)
    status = desk.run("status")
    assert status.exit_code == 3
    assert "  ?  " in status.stdout


def test_a_newer_zfs_for_a_published_kernel_as_the_policy_says(desk: Desk) -> None:
    desk.complete()
    asked = desk.github.count("openzfs")
    assert "in place of" not in desk.run("plan").stdout
    assert desk.github.count("openzfs") == asked == 0
    content = desk.path.read_text()
    for policy, version in (("latest-patch", "0.8.6"), ("latest", "2.1.16"), ("pin", None)):
        desk.path.write_text(content.replace("openzfs:\n", f"openzfs:\n  policy: {policy}\n"))
        run = desk.run("plan")
        assert run.exit_code == 0
        text = f"missing: ZFS {version} in place of 0.8.4 (policy {policy}), release"
        assert (text in run.stdout) == bool(version)
    # An entry can keep its own.
    changed = content.replace("openzfs:\n", "openzfs:\n  policy: latest\n")
    desk.path.write_text(changed.replace("  zfs: 0.8.4\n", "  zfs: 0.8.4\n  policy: pin\n"))
    assert "in place of" not in desk.run("plan").stdout


def test_a_pin_is_obeyed_and_warned_of(desk: Desk) -> None:
    desk.path.write_text(desk.head + desk.new + "  zfs: 0.8.4\n")
    run = desk.run("plan", "--only", "mirror-kernel-5.10.1")
    assert run.exit_code == 0
    assert "warning: ZFS 0.8.4 is pinned and is for Linux 2.6.32 to 5.6, not 5.10.1" in run.stdout
    assert desk.github.count("openzfs/zfs/releases") == 0


# What is missing here


class Engine(LabServer):
    """A Docker engine of which only its being there is asked."""

    def respond(self, request: Request) -> Response:
        if request.path.endswith("/_ping"):
            return Response(200, {}, b"OK")
        about = {"ApiVersion": "1.43", "DriverStatus": []}
        return Response(200, {"Content-Type": "application/json"}, json.dumps(about).encode())


@pytest.fixture
def engine() -> Iterator[dict[str, str]]:
    with Engine() as server:
        yield {"DOCKER_HOST": server.url.replace("http:", "tcp:")}


QEMU = ("qemu-system-x86_64", "qemu-system-aarch64")


def refused(desk: Desk, run: Run, *says: str) -> None:
    assert run.exit_code == MISSING_HERE
    assert "  next: " in run.stderr
    for text in says:
        assert text in run.stderr
    assert run.stdout == ""
    assert desk.path.read_text() == desk.head + desk.entry
    assert desk.left_behind == ["versions.yaml"]
    assert desk.registry.count("GET .*/blobs/") == 0


@pytest.mark.parametrize("command", [["sync"], ["publish", "all"]])
@pytest.mark.parametrize("variable", ["GITHUB_TOKEN", "GITHUB_REPOSITORY"])
def test_without_credentials_nothing_is_asked(
    desk: Desk, command: list[str], variable: str
) -> None:
    run = desk.run(*command, **{variable: None})
    refused(desk, run, f"{variable} is not set", "set it to")
    assert desk.requests == 0


def test_without_qemu(desk: Desk, engine: dict[str, str]) -> None:
    run = desk.run("sync", **engine)
    refused(desk, run, "qemu-system-", "is not installed", "apt-get install")


@pytest.mark.parametrize("command", [["sync"], ["build", "all"]])
def test_without_an_engine(desk: Desk, command: list[str]) -> None:
    desk.provide(*QEMU)
    run = desk.run(*command)
    refused(desk, run, "no Docker engine answers", "no.sock", "systemctl start docker")


@pytest.mark.parametrize("programs", [(), ("docker",)], ids=["no docker", "docker alone"])
def test_without_buildx(desk: Desk, engine: dict[str, str], programs: tuple[str, ...]) -> None:
    desk.provide(*QEMU)
    desk.provide(*programs, script="echo unknown command: buildx >&2; exit 1")
    refused(desk, desk.run("sync", **engine), "buildx", "apt-get install docker-buildx")


def test_with_a_builder_that_cannot_export(desk: Desk, engine: dict[str, str]) -> None:
    desk.provide(*QEMU)
    desk.provide("docker", script='[ "$2" = version ] && echo v0.29 || echo "Driver:  docker"')
    refused(desk, desk.run("sync", **engine), "cannot export", "containerd-snapshotter")


DOCKER_SCRIPT = '[ "$2" = version ] && echo v0.29 || echo "Driver: docker-container"'


def test_with_a_token_that_may_not_write(desk: Desk, engine: dict[str, str]) -> None:
    desk.provide(*QEMU)
    desk.provide("docker", script=DOCKER_SCRIPT)
    desk.github.add_token("a-reader-s-token")
    run = desk.run("sync", **engine, GITHUB_TOKEN="a-reader-s-token")
    refused(desk, run, "may not write there", "contents: write")


def test_with_a_token_that_is_none(desk: Desk) -> None:
    run = desk.run("sync", GITHUB_TOKEN="an-expired-token")
    assert run.exit_code == 4
    assert "set GITHUB_TOKEN" in run.stderr
    assert "an-expired-token" not in run.stderr
    assert desk.path.read_text() == desk.head + desk.entry


def test_with_a_registry_that_takes_no_push(desk: Desk, engine: dict[str, str]) -> None:
    desk.provide(*QEMU)
    desk.provide("docker", script=DOCKER_SCRIPT)
    desk.registry.fail("POST", Response(403), times=None)
    run = desk.run("sync", **engine)
    refused(desk, run, "may not push there", f"docker login {desk.registry.host}")


# Usage and configuration

USAGE: dict[str, tuple[list[str], str]] = {
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown option": (["sync", "--dry-run"], "--dry-run"),
    "no REF": (["build"], "REF"),
    "limit": (["sync", "--limit", "-1"], "--limit"),
    "jobs": (["sync", "--jobs", "0"], "--jobs"),
    "no such file": (["plan", "--versions", "no.yaml"], "no.yaml: is not there"),
    "a directory": (["plan", "--versions", "."], "directory"),
    "only": (["sync", "--only", "nobody/kernel:1"], "nobody/kernel:1: names no kernel"),
    "plan only": (["plan", "--only", "desktop-9.9.9"], "desktop-9.9.9: names no kernel"),
    "unknown REF": (["build", "nobody/kernel:1"], f"such as {SLUG}"),
    "capture without a tag": (["capture", "me/kernel"], "a kernel image needs a tag"),
    "a probe that is none": (["detect", "--probe-image", "A b"], "is not an image reference"),
    "a bad file": (["poll", "--versions", "bad.yaml"], "bad.yaml, line 2: unknown key 'kernel'"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, dict[str, Run]]]:
    with Desk(tmp_path_factory.mktemp("usage")) as desk:
        (desk.path.parent / "bad.yaml").write_text("image: me/zfs\nkernel: []\n")
        runs = side_by_side([(desk, words) for words, _ in USAGE.values()])
        yield desk, dict(zip(USAGE, runs, strict=True))


@pytest.mark.parametrize("name", USAGE)
def test_usage_and_configuration(refusals: tuple[Desk, dict[str, Run]], name: str) -> None:
    desk, runs = refusals
    assert runs[name].exit_code == 2
    assert USAGE[name][1] in runs[name].stderr
    assert runs[name].stdout == ""
    assert desk.path.read_text() == desk.head + desk.entry
    assert desk.left_behind == ["bad.yaml", "versions.yaml"]


def test_what_chooses_a_kernel(desk: Desk) -> None:
    desk.complete()
    image = f"{desk.registry.host}/linuxkit/kernel:5.4.39"
    del desk.registry.manifests["me/zfs"]
    commands = [["plan", "--only", name] for name in (image, SLUG, "desktop-4.13.0")]
    for run in side_by_side([(desk, words) for words in commands]):
        assert run.exit_code == 0
        assert f"publish  {image}" in run.stdout


def test_help_and_version(desk: Desk) -> None:
    about, version = side_by_side([(desk, ["-h"]), (desk, ["--version"])])
    commands = ("sync", "poll", "plan", "build", "smoke", "publish", "status", "detect")
    assert "\n  capture " in about.stdout
    assert all(f"\n  {command} " in about.stdout for command in commands)
    assert version.stdout.startswith("python -m release, version ")


def test_each_request_is_told_when_asked(desk: Desk) -> None:
    line = f"GET http://{desk.registry.host}/v2/me/zfs/tags/list: "
    assert line not in desk.run("plan").stderr
    asked = desk.requests
    run = desk.run("--log-level", "debug", "plan")
    assert line in run.stderr
    lines = sorted(run.stderr.splitlines())
    assert sum(one.startswith(("GET ", "HEAD ")) for one in lines) == desk.requests - asked
    again = desk.run("plan", INSTALL_ZFS_LOG_LEVEL="debug")
    assert sorted(again.stderr.splitlines()) == lines
    assert "writer" not in run.stderr
    assert desk.run("plan", INSTALL_ZFS_LOG_LEVEL="loud").exit_code == 2


def test_choices_may_come_from_the_environment(desk: Desk) -> None:
    host = desk.registry.host
    names = f"{host}/linuxkit/kernel:5.4.39 mirror-kernel-5.10.1"
    run = desk.run("plan", INSTALL_ZFS_ONLY=names, INSTALL_ZFS_LIMIT="1")
    assert "not chosen in this run" not in run.stdout
    assert "beyond --limit 1" in run.stdout
    run = desk.run(
        "plan",
        INSTALL_ZFS_ONLY="linuxkit-kernel-5.4.39",
        INSTALL_ZFS_LIMIT="",
        INSTALL_ZFS_VERIFY="",
    )
    assert "not chosen in this run" in run.stdout
    assert desk.run("plan", INSTALL_ZFS_LIMIT="many").exit_code == 2
