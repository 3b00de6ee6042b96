"""Runs commands in a guest that has a module image at hand, on exactly the kernel given.

The guest plays the machine of a user: its scripts run as root outside of any container, and
``container COMMAND…`` in them runs a command in the image as ``docker run --rm --privileged``
would.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from release import initramfs
from release.boot import Boot, Emulator, telling_lines
from release.errors import SmokeError

MEMORY_MIB = 512
TIMEOUT_SECONDS = 300.0

_COMMAND_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Command:
    """A shell script to run in the guest, and a name for it (lower case, digits, hyphens)."""

    name: str
    script: str

    def __post_init__(self) -> None:
        if not _COMMAND_NAME.fullmatch(self.name):
            raise ValueError(f"not a command name: {self.name!r}")


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        exit_code: 0 to 255.
        output: standard output and error as they came.
        kernel_log: what the kernel logged meanwhile.
    """

    name: str
    exit_code: int
    output: str
    kernel_log: str


@dataclass(frozen=True)
class Transcript:
    """The outcomes of all commands of one boot."""

    outcomes: dict[str, Outcome]
    boot: Boot

    def __getitem__(self, name: str) -> Outcome:
        return self.outcomes[name]


def run(
    commands: Sequence[Command],
    *,
    kernel: Path,
    layers: Sequence[Path],
    architecture: str,
    log: Path,
    emulator: Emulator,
    files: Iterable[initramfs.Entry] = (),
    memory_mib: int = MEMORY_MIB,
    timeout_seconds: float = TIMEOUT_SECONDS,
    arguments: str = "",
) -> Transcript:
    """Boots the kernel once and runs the commands one after the other, whatever they end with.

    Args:
        kernel: a bootable kernel (``/kernel`` of a kernel image).
        layers: the module image's layer blobs, the lowest first.
        log: takes the serial console.
        files: more files for the guest (not for the image, which is below ``image/``).

    Raises:
        PreflightError: no QEMU for this architecture.
        SmokeError: the guest did not get to the end of the commands.
    """
    nonce = secrets.token_hex(8)
    numbered = {f"{number:03}-{command.name}": command for number, command in enumerate(commands)}
    if len({command.name for command in commands}) != len(commands):
        raise ValueError("two commands have the same name")
    entries = [
        *initramfs.from_layers(layers, under="image"),
        initramfs.regular_file("init", script("guest-init.sh"), executable=True),
        initramfs.regular_file("bin/container", script("guest-container.sh"), executable=True),
        initramfs.character_device("dev/console", 5, 1),
        initramfs.regular_file("nonce", f"{nonce}\n".encode()),
        *(
            initramfs.regular_file(f"commands/{name}", command.script.encode())
            for name, command in numbered.items()
        ),
        *files,
    ]
    with tempfile.NamedTemporaryFile(prefix="initramfs-", suffix=".cpio") as archive:
        initramfs.write(entries, archive.file)
        archive.flush()
        boot = emulator.boot(
            kernel,
            Path(archive.name),
            architecture=architecture,
            memory_mib=memory_mib,
            timeout_seconds=timeout_seconds,
            log=log,
            arguments=arguments,
        )
    outcomes = {}
    for name, command in numbered.items():
        outcome = _parse(boot.serial, nonce, name, command)
        if outcome is None:
            raise SmokeError(
                f"the guest did not get to the end of the command {command.name}",
                on=str(kernel),
                detail=telling_lines(boot.serial.replace(f"{nonce} ", "")),
                hint=f"the guest's serial console is in {log}",
            )
        outcomes[command.name] = outcome
    return Transcript(outcomes, boot)


def script(name: str) -> bytes:
    """One of the scripts that are beside this module."""
    return resources.files("release").joinpath(name).read_bytes()


def _parse(serial: str, nonce: str, numbered: str, command: Command) -> Outcome | None:
    """None if the command's lines are not all there."""

    def lines(kind: str) -> list[str]:
        return re.findall(rf"^{nonce} {numbered} {kind} (.*)$", serial, re.MULTILINE)

    output, kernel = lines("output"), lines("kernel")
    ends = lines("exit")
    if len(ends) != 1:
        return None
    exit_code, count = ends[0].split()
    if int(count) != len(output) + len(kernel):
        return None
    return Outcome(command.name, int(exit_code), "\n".join(output), "\n".join(kernel))
