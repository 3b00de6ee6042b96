"""How a guest is started, given up and ended, with a stand-in for QEMU."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from release import boot
from release.boot import Boot, Emulator
from release.errors import PreflightError, SmokeError

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

Start = Callable[..., Boot]


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a stand-in for every QEMU on the path; returns the file that lists its accelerators.

    The stand-in runs the shell code given with the accelerator's name in ``$accelerator``.
    """
    programs, starts = tmp_path / "bin", tmp_path / "starts"
    programs.mkdir()
    starts.touch()

    def install(code: str) -> Path:
        for machine in boot.MACHINES.values():
            program = programs / machine.binary
            program.write_text(
                '#!/bin/sh\ncase "$*" in *"-accel kvm"*) accelerator=kvm ;;'
                " *) accelerator=tcg ;; esac\n"
                f"echo $accelerator >>{starts}; echo $$ >{tmp_path}/pid\n{code}\n"
            )
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        return starts

    return install


@pytest.fixture
def emulator(tmp_path: Path) -> Emulator:
    """One for a machine where /dev/kvm can be opened."""
    (tmp_path / "kvm").touch()
    return Emulator(kvm=tmp_path / "kvm", silence_seconds=0.3)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return lambda emulator, seconds=1.0: emulator.boot(
        tmp_path / "kernel",
        tmp_path / "initramfs",
        architecture=ARCHITECTURE,
        memory_mib=64,
        timeout_seconds=seconds,
        log=tmp_path / "serial.log",
    )


def _is_running(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


GUEST = "printf 'Linux version 6.1\\r\\n'"


def test_kvm_is_used_where_it_works(
    qemu: Callable[[str], Path], emulator: Emulator, start: Start
) -> None:
    starts = qemu(GUEST)
    assert start(emulator).accelerator == "kvm"
    assert start(emulator).serial == "Linux version 6.1\n"
    assert starts.read_text().split() == ["kvm", "kvm"]


@pytest.mark.parametrize(
    "broken", ["printf 'Probing EDD...'; exec sleep 60", "exit 134", "exit 0"], ids=str
)
def test_a_guest_that_stays_silent_under_kvm_is_emulated_and_kvm_left_alone(
    broken: str, qemu: Callable[[str], Path], emulator: Emulator, start: Start
) -> None:
    starts = qemu(f"[ $accelerator = tcg ] || {{ {broken}; }}\n{GUEST}")
    assert start(emulator).accelerator == "tcg"
    assert start(emulator).accelerator == "tcg"
    assert starts.read_text().split() == ["kvm", "tcg", "tcg"]


def test_without_access_to_kvm_the_guest_is_emulated(
    qemu: Callable[[str], Path], tmp_path: Path, start: Start
) -> None:
    qemu(GUEST)
    assert start(Emulator(kvm=tmp_path / "missing")).accelerator == "tcg"


def test_a_guest_that_hangs_later_is_not_tried_again(
    qemu: Callable[[str], Path], emulator: Emulator, start: Start, tmp_path: Path
) -> None:
    starts = qemu(f"{GUEST}; exec sleep 60")
    with pytest.raises(SmokeError, match="did not end in 1 s") as caught:
        start(emulator)
    assert caught.value.detail == "Linux version 6.1"
    assert str(tmp_path / "serial.log") in caught.value.hint
    assert starts.read_text().split() == ["kvm"]
    assert not _is_running(tmp_path / "pid")


def test_what_qemu_says_when_it_fails_is_shown(
    qemu: Callable[[str], Path], tmp_path: Path, start: Start
) -> None:
    qemu("echo 'could not load kernel' >&2; exit 1")
    with pytest.raises(SmokeError, match="ended with 1") as caught:
        start(Emulator(kvm=tmp_path / "missing"))
    assert caught.value.detail == "could not load kernel"


def test_an_interrupt_ends_the_guest(
    qemu: Callable[[str], Path], tmp_path: Path, start: Start
) -> None:
    qemu("exec sleep 60")
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        start(Emulator(kvm=tmp_path / "missing"), 60.0)
    timer.join()
    assert not _is_running(tmp_path / "pid")


def test_a_missing_qemu_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreflightError) as caught:
        boot.preflight("arm64")
    assert caught.value.hint == "apt-get install --no-install-recommends qemu-system-arm"


def test_an_unknown_architecture_is_told() -> None:
    with pytest.raises(PreflightError, match="s390x"):
        boot.preflight("s390x")
