"""Boots a kernel with an initramfs in QEMU and keeps what it says on its serial console."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from release import child
from release.errors import PreflightError, SmokeError
from release.http import without_secrets

Accelerator = Literal["kvm", "tcg"]

KVM = Path("/dev/kvm")
SILENCE_SECONDS = 5.0
_LINES = 15

# The first line that a kernel logs. Boot code before it may print a little and still hang.
_SIGN_OF_LIFE = b"Linux version "

_DYING = re.compile(r"\b(Kernel panic|Oops|BUG):? ")


@dataclass(frozen=True)
class Machine:
    """How QEMU emulates one architecture.

    Attributes:
        binary: QEMU's program for it; ``package`` is Debian's package that has it.
        host: what ``uname -m`` says on hosts that KVM can serve it on.
        console: the guest's serial console.
        board: QEMU's ``-M``.
        emulated_cpu: ``-cpu`` for software emulation.
    """

    binary: str
    package: str
    host: str
    console: str
    board: str
    emulated_cpu: str


MACHINES = {
    # QEMU 7.2's emulation of cmpxchg16b sometimes double-faults on 6.12 kernels, which do
    # without it where the processor has none.
    "amd64": Machine(
        "qemu-system-x86_64", "qemu-system-x86", "x86_64", "ttyS0", "pc", "qemu64,-cx16"
    ),
    "arm64": Machine(
        "qemu-system-aarch64", "qemu-system-arm", "aarch64", "ttyAMA0", "virt", "cortex-a72"
    ),
}


@dataclass(frozen=True)
class Boot:
    """A guest that ran to its own end.

    Attributes:
        serial: everything that it wrote to the serial console, newlines only.
        accelerator: hardware virtualisation (``kvm``) or software emulation (``tcg``).
        seconds: from the start of QEMU to its end, without an attempt given up.
    """

    serial: str
    accelerator: Accelerator
    seconds: float


def machine(architecture: str) -> Machine:
    """How QEMU emulates the architecture (``amd64``, ``arm64``).

    Raises:
        PreflightError: there is no way to boot its kernels.
    """
    if architecture not in MACHINES:
        raise PreflightError(
            "kernels of this architecture cannot be booted for a test",
            on=architecture,
            hint=f"known are {' and '.join(MACHINES)}",
        )
    return MACHINES[architecture]


def can_boot(architecture: str) -> bool:
    """Whether this machine has QEMU for an architecture (``amd64``, ``arm64``)."""
    return shutil.which(machine(architecture).binary) is not None


def preflight(architecture: str) -> None:
    """Checks that kernels of the architecture (``amd64``, ``arm64``) can be booted here.

    Raises:
        PreflightError: QEMU is not installed or does not know the architecture.
    """
    wanted = machine(architecture)
    if not can_boot(architecture):
        raise PreflightError(
            f"{wanted.binary} is not installed; kernels for {architecture} are tested with it",
            hint=f"apt-get install --no-install-recommends {wanted.package}",
        )


class Emulator:
    """Boots guests, and remembers whether hardware virtualisation works on this machine.

    May be shared between threads.
    """

    def __init__(self, *, kvm: Path = KVM, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._kvm = kvm
        self._silence_seconds = silence_seconds
        self._kvm_works: bool | None = None
        self._lock = threading.Lock()

    def boot(
        self,
        kernel: Path,
        initramfs: Path,
        *,
        architecture: str,
        memory_mib: int,
        timeout_seconds: float,
        log: Path,
        arguments: str = "",
    ) -> Boot:
        """Boots a guest without disk and network and waits until it turns itself off.

        ``/dev/kvm`` may exist and still not boot a guest. The first guest of this object that
        has not begun to log under it after ``silence_seconds`` is started again under software
        emulation, and KVM is left alone from then on. Nothing else is ever tried again.

        Args:
            log: takes the serial console as it is written.
            arguments: more kernel arguments, separated by spaces.

        Raises:
            PreflightError: no QEMU for this architecture.
            SmokeError: the guest did not end in time, or QEMU failed.
        """
        preflight(architecture)
        guest = _Guest(kernel, initramfs, machine(architecture), memory_mib, log, arguments)
        if self._may_use_kvm(architecture):
            patience = None if self._kvm_works else self._silence_seconds
            boot = guest.run("kvm", timeout_seconds, silence_seconds=patience)
            with self._lock:
                self._kvm_works = boot is not None
            if boot is not None:
                return boot
        boot = guest.run("tcg", timeout_seconds, silence_seconds=None)
        assert boot is not None
        return boot

    def _may_use_kvm(self, architecture: str) -> bool:
        with self._lock:
            return (
                self._kvm_works is not False
                and machine(architecture).host == platform.machine()
                and os.access(self._kvm, os.R_OK | os.W_OK)
            )


@dataclass(frozen=True)
class _Guest:
    kernel: Path
    initramfs: Path
    machine: Machine
    memory_mib: int
    log: Path
    arguments: str

    def command(self, accelerator: Accelerator) -> list[str]:
        cpu = "host" if accelerator == "kvm" else self.machine.emulated_cpu
        console = f"console={self.machine.console} panic=-1 {self.arguments}".rstrip()
        return [
            self.machine.binary,
            *("-no-user-config", "-nodefaults", "-no-reboot"),
            *("-display", "none", "-nic", "none", "-serial", "stdio"),
            *("-M", self.machine.board, "-accel", accelerator, "-cpu", cpu),
            *("-m", str(self.memory_mib)),
            *("-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", console),
        ]

    def run(
        self, accelerator: Accelerator, timeout_seconds: float, *, silence_seconds: float | None
    ) -> Boot | None:
        """Returns None for a guest that was given up because it showed no sign of life."""
        started = time.monotonic()
        with self.log.open("wb") as serial, tempfile.TemporaryFile() as stderr:
            command = self.command(accelerator)
            with child.running(
                command, stdout=serial, stderr=stderr, env=without_secrets(os.environ)
            ) as process:
                if silence_seconds is not None:
                    _wait(process, silence_seconds)
                    if not self._lives():
                        return None
                left = timeout_seconds - (time.monotonic() - started)
                if not _wait(process, left):
                    raise self._error(f"the guest did not end in {timeout_seconds:.0f} s")
            if process.returncode != 0:
                what = f"{self.machine.binary} ended with {process.returncode}"
                raise self._error(what, stderr)
        text = self.log.read_text(errors="replace").replace("\r\n", "\n")
        return Boot(text, accelerator, time.monotonic() - started)

    def _lives(self) -> bool:
        return _SIGN_OF_LIFE in self.log.read_bytes()

    def _error(self, what: str, stderr: IO[bytes] | None = None) -> SmokeError:
        said = b""
        if stderr is not None:
            stderr.seek(0)
            said = stderr.read()
        return SmokeError(
            what,
            on=str(self.kernel),
            detail=telling_lines(
                said.decode(errors="replace") or self.log.read_text(errors="replace")
            ),
            hint=f"the guest's serial console is in {self.log}",
        )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process has ended within the time."""
    try:
        process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def telling_lines(text: str) -> str:
    """The part of a log that belongs into an error message.

    From the kernel's first cry on, where there is one, else the end.
    """
    lines = text.strip().splitlines()
    for number, line in enumerate(lines):
        if _DYING.search(line):
            return "\n".join(lines[number : number + _LINES])
    return "\n".join(lines[-_LINES:])
