"""A maintainer with a thousand kernels, all of them published, and ten thousand tags upstream.

``python -m tests.lab.scale`` prints what commands take there, in seconds and in memory. Everything
is that of :mod:`tests.recorded`; what runs of years have published is put there in a second, by the
pipeline's own words for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from release import latest, versions
from release.attest import provenance_name, sbom_name
from release.http import Http
from release.plan import SUMS, asset_name, git_tag
from release.receipt import File, Part, Receipt
from release.record import Record
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import Registry
from release.world import World
from tests.lab.github import Asset
from tests.lab.small_registry import INDEX
from tests.recorded import IMAGES, KERNELS, Recorded

KERNELS_THERE = 1000
PLATFORMS = (Platform("linux/amd64"), Platform("linux/arm64"))
ZFS = "2.1.16"
OTHER_TAGS = ("-s390x", "-dbg", "-dbg-amd64", "-dbg-arm64", "-rt", "-builder", "-builder-amd64")
"""Behind a kernel's own tag, beside those for its platforms: ten tags for each kernel in all."""
_DAY = datetime(2018, 1, 1, tzinfo=UTC)
_PROJECT = Path(__file__).resolve().parents[2]
_MEASURED = """
import json, os, sys, time
started = time.monotonic()
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(child, 0)
figures = [os.waitstatus_to_exitcode(status), time.monotonic() - started,
           usage.ru_utime + usage.ru_stime, usage.ru_maxrss]
with open(sys.argv[1], "w") as file:
    json.dump(figures, file)
"""
"""What a program uses is measured by a small process: Linux counts as a program's the memory of
the process that started it."""


@dataclass(frozen=True)
class Figures:
    """What a command took.

    Attributes:
        wall: seconds, those that the stand-ins took to answer included.
        cpu: seconds of its own.
        memory: the most that was resident, in MiB.
        requests: by the kind of server.
    """

    exit_code: int
    wall: float
    cpu: float
    memory: float
    requests: Counter[str]
    stdout: str
    stderr: str

    def __str__(self) -> str:
        asked = ", ".join(f"{server} {number}" for server, number in sorted(self.requests.items()))
        return (
            f"{self.wall:6.2f} s, {self.cpu:6.2f} s of CPU, {self.memory:4.0f} MiB, "
            f"exit code {self.exit_code}, requests: {asked}"
        )


class Scale:
    """Many kernels, and what is published of them.

    Args:
        setup: has started.
        kernels: how many.
    """

    def __init__(self, setup: Recorded, kernels: int = KERNELS_THERE) -> None:
        self.setup = setup
        upstream = [_image_tag(number) for number in range(kernels)]
        self.entries = [self._push(number, name) for number, name in enumerate(upstream)]
        lines = (versions.entry_lines(entry) for entry in self.entries)
        setup.write_versions("".join(f"  - {first}\n" + _indented(rest) for first, *rest in lines))

    def _push(self, number: int, name: str) -> versions.Entry:
        """Upstream pushes a kernel in all its variants."""
        setup, hub = self.setup, self.setup.hub.repository(*KERNELS.split("/"))
        image = Reference.parse(f"{setup.host}/{KERNELS}:{name}")
        digest, manifests = _digest(name), {one: _digest(f"{name} {one}") for one in PLATFORMS}
        pushed = _DAY + timedelta(hours=number)
        parts = [("linux", one.partition("/")[2], None, manifests[one], 1) for one in PLATFORMS]
        held = setup.small.manifests.setdefault(KERNELS, {})
        aliases = []
        for other in OTHER_TAGS:
            hub.push(f"{name}{other}", _digest(f"{name}{other}"), (), pushed)
        for part in parts:
            aliases.append(image.with_tag(f"{name}-{part[1]}"))
            hub.push(f"{name}-{part[1]}", part[3], [part], pushed)
        hub.push(name, digest, parts, pushed)
        held |= {tag: (INDEX, b"{}") for tag in hub.tags if tag.startswith(name)}
        return versions.Entry(
            image,
            digest,
            manifests,
            Reference.parse("linuxkit/alpine:2be490394653b7967c250e86fd42cef88de428ba"),
            ZFS,
            aliases=tuple(aliases),
        )

    def publish(self) -> None:
        """All of it is published, ``latest`` too."""
        for entry in self.entries:
            self._publish(entry)
        world = World(self.setup.load(), self.setup.environment, platforms=PLATFORMS)
        observed = world.observe()
        wanted = world.wanted_latest(self.entries, observed)
        there = self.setup.registry.put(IMAGES, latest.TAG, {"latest": "of all"}, INDEX)
        made = Record(parse_digest(there), wanted.fingerprint)
        made.put(Registry(Http(), {}), Reference.parse(self.setup.image))

    def _publish(self, entry: versions.Entry) -> None:
        registry, slug = self.setup.registry, entry.slug
        image = parse_digest(registry.put(IMAGES, slug, {"image": slug}, INDEX))
        alone = versions.modules_tag(slug)
        modules = parse_digest(registry.put(IMAGES, alone, {"image": alone}, INDEX))
        for name in entry.image_tags[1:]:
            registry.put(IMAGES, name, {"image": slug}, INDEX)
        tars = [asset_name(slug, platform) for platform in PLATFORMS]
        names = [*tars, *map(sbom_name, tars), *map(provenance_name, tars), SUMS]
        assets = [Asset(name, f"{name}".encode()) for name in names]
        receipt = Receipt(
            entry,
            image,
            modules,
            {one: Part(_digest(f"{slug} {one}"), "6.1.0", f"Linux {slug}") for one in PLATFORMS},
            {one.name: File(one.size, parse_digest(one.digest or "")) for one in assets},
        )
        notes = f"ZFS {ZFS}\n\nWithout: `{self.setup.image}:{alone}`\n\n{receipt}\n"
        release = self.setup.releases.add_release(git_tag(slug, ZFS), body=notes)
        release.assets = assets

    def measure(self, *arguments: str, **environment: str) -> Figures:
        """Runs ``python -m release ARGUMENTS`` to its end."""
        setup = self.setup
        servers = {"hub": setup.hub, "registry": setup.registry, "github": setup.github}
        before = {name: server.count() for name, server in servers.items()}
        figures = setup.directory / "figures"
        command = (sys.executable, "-I", "-S", "-c", _MEASURED, figures, "-m", "release")
        done = subprocess.run(
            [*command, *arguments],
            cwd=setup.path.parent,
            env={**setup.environment, "PYTHONPATH": str(_PROJECT), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        code, wall, cpu, kibibytes = json.loads(figures.read_text())
        asked = {name: server.count() - before[name] for name, server in servers.items()}
        return Figures(code, wall, cpu, kibibytes / 1024, Counter(asked), done.stdout, done.stderr)


@contextmanager
def scale(directory: Path, kernels: int = KERNELS_THERE) -> Iterator[Scale]:
    """The world, with nothing published."""
    with Recorded(directory) as setup:
        yield Scale(setup, kernels)


def _image_tag(number: int) -> str:
    """A version with the digest of its sources, as upstream writes it."""
    version = f"{4 + number // 400}.{number // 20 % 20}.{number % 20}"
    return f"{version}-{sha256(version.encode()).hexdigest()[:40]}"


def _digest(of: str) -> Digest:
    return Digest(f"sha256:{sha256(of.encode()).hexdigest()}")


def _indented(lines: list[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory(prefix="install-zfs-scale-") as name, scale(Path(name)) as one:
        print("nothing is published:")
        for arguments in (("plan",), ("plan", "--hand-over", "plan")):
            print(f"  {' '.join(arguments):22}{one.measure(*arguments)}")
        one.publish()
        print("all is published:")
        for arguments in (("plan",), ("status",), ("sync",), ("plan", "--hand-over", "plan")):
            print(f"  {' '.join(arguments):22}{one.measure(*arguments)}")


if __name__ == "__main__":
    main()
