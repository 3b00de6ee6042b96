"""The gate before publishing: the module image does, on its own kernel, what it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from release import guest, initramfs
from release.boot import Accelerator, Emulator, telling_lines
from release.errors import SmokeError
from release.guest import Command, Outcome, Transcript

# Bits of /proc/sys/kernel/tainted, from Documentation/admin-guide/tainted-kernels.rst.
_TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
_EXPECTED_TAINTS = frozenset("POE")  # licence other than the GPL, out of tree, unsigned

_KERNEL_TROUBLE = re.compile(
    r"\b(BUG|Oops|WARNING|UBSAN|KASAN|general protection fault|Call Trace|Unable to handle kernel"
    r"|blocked for more than)\b.*"
)

# What a pool's life has to have been, with the hundredths of seconds and the KiB left of each step.
_POOL_STEPS = (
    *("create", "write", "snapshot", "overwrite", "export"),
    *("import", "scrub", "compare", "destroy"),
)
_POOL_STEP = re.compile(r"^step (\w+) (\d+) (\d+)$", re.MULTILINE)

STATE = """
echo "taint $(cat /proc/sys/kernel/tainted)"
sed -n 's/^MemAvailable: *\\([0-9]*\\) kB$/available \\1/p' /proc/meminfo
grep -w zfs /proc/filesystems | sed 's/.*/filesystem zfs/'
[ -c /dev/zfs ] && echo "device /dev/zfs"
sed 's/^/module /; s/^\\(module [^ ]*\\).*/\\1/' /proc/modules
"""

# The pool's file is to be found below the same path outside of the container.
_POOL = """
mkdir /image/pool
ln -s /image/pool /pool
cp /guest-pool.sh /image/guest-pool.sh
container /bin/busybox sh /guest-pool.sh /pool
"""

STEPS = {
    "check": "container /install-zfs check",
    "load": "container /install-zfs",
    "load-again": "container /install-zfs",
    "pool": _POOL,
    "unload": "container /install-zfs unload",
    "reload": "container /install-zfs load",
}


class Expected(Protocol):
    """What the image claims to be for."""

    @property
    def kernel_release(self) -> str: ...
    @property
    def kernel_banner(self) -> str: ...
    @property
    def zfs_version(self) -> str: ...


@dataclass(frozen=True)
class SmokeResult:
    """A passed smoke test.

    Attributes:
        modules: what a load inserts, in load order.
        accelerator: how the kernel was run; ``host`` where it was this machine's own.
        seconds: from the start of QEMU to its end, or of the commands on the machine.
        pool_seconds: what each step of a pool's life took, in their order.
        peak_memory_mib: how much less memory was available during them than before the load.
    """

    modules: tuple[str, ...]
    accelerator: Accelerator | Literal["host"]
    seconds: float
    pool_seconds: Mapping[str, float]
    peak_memory_mib: float

    def __str__(self) -> str:
        return (
            f"loaded and tried with a pool on its own kernel ({self.accelerator}): "
            f"{self.seconds:.1f} s, of it the pool {sum(self.pool_seconds.values()):.1f} s; "
            f"peak memory {self.peak_memory_mib:.0f} MiB"
        )


def smoke(
    *,
    kernel: Path,
    layers: Sequence[Path],
    expected: Expected,
    architecture: str,
    log: Path,
    emulator: Emulator,
) -> SmokeResult:
    """Boots exactly the image's kernel and runs the image's own entrypoint in it.

    Never tried again: an image that works sometimes does not work.

    Args:
        kernel: ``/kernel`` of the kernel image.
        layers: the module image's layer blobs, the lowest first.
        architecture: ``amd64`` or ``arm64``.
        log: takes the serial console; kept whatever happens.

    Raises:
        PreflightError: no QEMU for this architecture.
        SmokeError: the guest died, or something was not as it has to be.
    """
    modules = modules_of(layers, expected)
    transcript = guest.run(
        _commands(),
        kernel=kernel,
        layers=layers,
        architecture=architecture,
        log=log,
        emulator=emulator,
        files=[initramfs.regular_file("guest-pool.sh", guest.script("guest-pool.sh"))],
    )
    hint = f"the guest's serial console is in {log}"
    return judge(transcript, expected, modules, transcript.boot.accelerator, hint)


def _commands() -> list[Command]:
    commands = [Command("banner", "cat /proc/version"), Command("state-after-boot", STATE)]
    for name, script in STEPS.items():
        commands += [Command(name, script), Command(f"state-after-{name}", STATE)]
    return commands


def modules_of(layers: Sequence[Path], expected: Expected) -> tuple[str, ...]:
    """The modules that the image has for the kernel, as /proc/modules names them."""
    files = {
        PurePosixPath(entry.path): entry.data.decode(errors="replace")
        for entry in initramfs.from_layers(layers, under="image")
        if entry.path.endswith(("/kernel.env", "/modules.load"))
    }
    facts = {
        f"kernel_release={expected.kernel_release}",
        f"kernel_banner={expected.kernel_banner}",
        f"zfs_version={expected.zfs_version}",
    }
    for path, text in files.items():
        if path.name == "kernel.env" and facts <= set(text.splitlines()):
            names = files.get(path.with_name("modules.load"), "").split()
            return tuple(name.partition(".ko")[0].replace("-", "_") for name in names)
    raise SmokeError(
        f"the image has no modules of ZFS {expected.zfs_version} for the kernel",
        on=expected.kernel_release,
        detail="\n".join(map(str, files)),
    )


@dataclass(frozen=True)
class _State:
    taints: frozenset[str]
    has_filesystem: bool
    has_device: bool
    modules: frozenset[str]
    available_kib: int = field(compare=False)


def _state(outcome: Outcome) -> _State:
    facts = [line.partition(" ")[::2] for line in outcome.output.splitlines()]
    taint = sum(int(value) for key, value in facts if key == "taint")
    return _State(
        frozenset(letter for bit, letter in enumerate(_TAINT_LETTERS) if taint >> bit & 1),
        ("filesystem", "zfs") in facts,
        ("device", "/dev/zfs") in facts,
        frozenset(value for key, value in facts if key == "module"),
        sum(int(value) for key, value in facts if key == "available"),
    )


@dataclass(frozen=True)
class _PoolStep:
    name: str
    seconds: float
    available_kib: int


def _pool_steps(outcome: Outcome) -> list[_PoolStep]:
    found = _POOL_STEP.findall(outcome.output)
    return [_PoolStep(name, int(centis) / 100, int(kib)) for name, centis, kib in found]


def judge(
    transcript: Transcript,
    expected: Expected,
    modules: tuple[str, ...],
    accelerator: Accelerator | Literal["host"],
    hint: str,
) -> SmokeResult:
    """What a test took.

    Args:
        modules: what a load inserts, in load order.
        hint: where to look further, for the error.

    Raises:
        SmokeError: something was not as it has to be.
    """
    for outcome, problem in problems(transcript, expected, modules):
        raise SmokeError(
            problem,
            on=expected.kernel_release,
            detail=telling_lines(f"{outcome.output}\n{outcome.kernel_log}"),
            hint=hint,
        )
    steps = _pool_steps(transcript["pool"])
    before = _state(transcript["state-after-boot"]).available_kib
    return SmokeResult(
        modules,
        accelerator,
        transcript.boot.seconds,
        {step.name: step.seconds for step in steps},
        max(before - step.available_kib for step in steps) / 1024,
    )


def problems(
    transcript: Transcript, expected: Expected, load_order: Sequence[str]
) -> Iterator[tuple[Outcome, str]]:
    """What is not as it has to be, each with the outcome that shows it."""
    if transcript["banner"].output != expected.kernel_banner:
        yield transcript["banner"], f"another kernel was expected: {expected.kernel_banner}"

    boot = _state(transcript["state-after-boot"])
    for name in STEPS:
        outcome = transcript[name]
        if outcome.exit_code != 0:
            yield outcome, f"{name} ended with {outcome.exit_code}"
        if trouble := _KERNEL_TROUBLE.search(outcome.kernel_log):
            yield outcome, f"the kernel complained during {name}: {trouble[0]}"

        outcome = transcript[f"state-after-{name}"]
        state = _state(outcome)
        if surprising := state.taints - boot.taints - _EXPECTED_TAINTS:
            yield outcome, f"{name} tainted the kernel: {''.join(sorted(surprising))}"
        if name == "check" and state != boot:
            yield outcome, "check changed something"
        if name in ("load", "load-again", "pool", "reload"):
            if missing := [module for module in load_order if module not in state.modules]:
                yield outcome, f"not loaded after {name}: {' '.join(missing)}"
            if not (state.has_filesystem and state.has_device):
                yield outcome, f"no zfs in /proc/filesystems or no /dev/zfs after {name}"
        if name == "unload" and (state.has_filesystem or "zfs" in state.modules):
            yield outcome, "zfs is still there after unload"

    lived = tuple(step.name for step in _pool_steps(transcript["pool"]))
    if transcript["pool"].exit_code == 0 and lived != _POOL_STEPS:
        yield transcript["pool"], f"the pool's life was {' '.join(lived) or 'nothing'}"

    if _state(transcript["state-after-load-again"]) != _state(transcript["state-after-load"]):
        yield transcript["load-again"], "the second load changed something"
