"""A guest that runs a real Docker engine, on a kernel of the lab, with its headers or without."""

from __future__ import annotations

import importlib.util
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from release import initramfs
from release.boot import Boot, Emulator
from tests.lab.buildx import IMAGES
from tests.lab.debian import Suite
from tests.lab.steps import LabError
from tests.lab.world import World

PROJECT = Path(__file__).resolve().parents[2]
MEMORY_MIB = 3072
TIMEOUT_SECONDS = 900
COMMAND_SECONDS = 300
PROJECT_DIRECTORY = "project"
# What `python -m release` imports, and what that imports.
_PACKAGES = (
    *("certifi", "click", "docker", "elftools", "idna", "lz4"),
    *("markdown_it", "mdurl", "pygments", "requests", "rich", "semver", "tenacity"),
    *("urllib3", "yaml", "zstandard"),
)


@dataclass(frozen=True)
class Result:
    """What a command in the guest did.

    Attributes:
        seconds: by the guest's clock.
    """

    exit_code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class Machine:
    """A root file system and its kernel.

    Attributes:
        release: ``uname -r``.
    """

    root: Path
    kernel: Path
    release: str

    def run(
        self,
        commands: Mapping[str, str],
        log: Path,
        *,
        files: Iterable[initramfs.Entry] = (),
        without: Sequence[str] = (),
        memory_mib: int = MEMORY_MIB,
        timeout_seconds: int = TIMEOUT_SECONDS,
        command_seconds: int = COMMAND_SECONDS,
    ) -> tuple[dict[str, Result], Boot]:
        """Boots it and runs shell scripts, in the order given, with the project at ``/project``.

        Args:
            log: takes the serial console.
            files: more files.
            without: paths that are left out of the root, with all below them.
            command_seconds: how long one script may take.
        """
        nonce = secrets.token_hex(8)
        names = [f"{number:02}-{name}" for number, name in enumerate(commands)]
        tree = [
            replace(entry, path=entry.path.removeprefix("root/"))
            for entry in initramfs.from_layers([self.root], under="root")
            if entry.path != "root"
        ]
        entries = [
            *(entry for entry in tree if not entry.path.startswith(tuple(without) or "\0")),
            # As it is now, whenever the root was made.
            initramfs.regular_file("init", (IMAGES / "machine-init").read_bytes(), executable=True),
            initramfs.character_device("dev/console", 5, 1),
            initramfs.regular_file("nonce", f"{nonce} {command_seconds}\n".encode()),
            *(
                initramfs.regular_file(f"commands/{name}", script.encode())
                for name, script in zip(names, commands.values(), strict=True)
            ),
            *_project(),
            *files,
        ]
        with tempfile.NamedTemporaryFile(prefix="machine-", suffix=".cpio") as archive:
            initramfs.write(entries, archive.file)
            archive.flush()
            boot = Emulator().boot(
                self.kernel,
                Path(archive.name),
                architecture="amd64",
                memory_mib=memory_mib,
                timeout_seconds=timeout_seconds,
                log=log,
            )
        return {name[3:]: _result(boot.serial, nonce, name) for name in names}, boot


def machine(world: World, suite: Suite, rank: int = 0) -> Machine:
    """Makes the machine of a kernel of the lab, once for all runs."""
    packages = world._packages(suite)[rank]
    release = packages.name
    directory = world.directory / "machines" / release
    root = directory / "root.tar"
    if not root.exists():
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / ".root.tar"
        world.buildx.build(
            f"machine {release}",
            IMAGES / "machine.Dockerfile",
            output=f"type=tar,dest={part}",
            args={"BASE": world.base(suite), "KERNEL_RELEASE": release},
            contexts={"packages": packages},
        )
        part.rename(root)
    kernel = directory / "kernel"
    for entry in initramfs.from_layers([root], under="root") if not kernel.exists() else ():
        if entry.path == f"root/boot/vmlinuz-{release}":
            kernel.write_bytes(entry.data)
    if not kernel.exists():
        raise LabError("has no kernel", on=str(root))
    return Machine(root, kernel, release)


def _project() -> list[initramfs.Entry]:
    """The project and what it imports."""
    sources = [(PROJECT / name, name) for name in ("release", "tests/lab")]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if not spec or not spec.origin:
            raise LabError("is not installed", on=name)
        sources.append((Path(spec.origin).parent, name))
    entries = [
        initramfs.regular_file(f"{PROJECT_DIRECTORY}/{target}/{path.relative_to(source)}", data)
        for source, target in sources
        for path in sorted(source.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
        for data in [path.read_bytes()]
    ]
    entries += [
        initramfs.regular_file(f"{PROJECT_DIRECTORY}/{name}", (PROJECT / name).read_bytes())
        for name in ("tests/__init__.py", "builders.yaml")
    ]
    return entries


def _result(serial: str, nonce: str, name: str) -> Result:
    match = re.search(
        rf"^{nonce} begin {name}\n(.*?)^{nonce} end {name} (\d+) (\S+) (\S+)$",
        serial,
        re.MULTILINE | re.DOTALL,
    )
    if not match:
        raise LabError(f"the guest did not get to the end of {name}", detail=serial[-3000:])
    output, code, started, ended = match.groups()
    return Result(int(code), output, float(ended) - float(started))
