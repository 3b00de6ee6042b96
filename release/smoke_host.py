"""The gate for a captured kernel that cannot be booted: its own machine tries the module image.

The image's entrypoint runs as a user runs it, in privileged containers on the Docker engine at
hand, and what it leaves is held against the same expectations as after a boot. So it runs only
where the entry says ``smoke: host``, and only on the kernel that the image is for. ZFS is unloaded
in the end, as it was before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from release import guest
from release.boot import Boot
from release.engine import Engine, Ran
from release.errors import SmokeError, UnbuildableError
from release.guest import Outcome, Transcript
from release.kernel import banner_release
from release.smoke import STATE, STEPS, Expected, SmokeResult, judge, modules_of

_BUSYBOX = "/bin/busybox"
_APPLETS = "".join(
    f'{name}() {{ {_BUSYBOX} {name} "$@"; }}\n' for name in ("cat", "grep", "sed", "dmesg")
)


def check_machine(engine: Engine, banner: str, on: str) -> None:
    """Makes sure, before anything is built, that this machine runs the kernel.

    Raises:
        UnbuildableError: it runs another one, so the kernel is one for another machine.
    """
    info, _ = engine.describe()
    running = str(info.get("KernelVersion"))
    if running != banner_release(banner):
        raise UnbuildableError(_elsewhere(banner_release(banner), running), on=on)


def _elsewhere(wanted: str, running: str) -> str:
    return (
        f"its modules are tested on the machine that runs {wanted} (smoke: host), and this one "
        f"runs {running}"
    )


def smoke_host(
    *, engine: Engine, image: str, layers: Sequence[Path], expected: Expected, log: Path
) -> SmokeResult:
    """Loads the modules on this machine, tries them with a pool, and unloads them.

    Args:
        image: the module image's name in the engine.
        layers: its layer blobs, the lowest first.
        log: takes what every command printed.

    Raises:
        UnbuildableError: this machine runs another kernel.
        SmokeError: ZFS is loaded here already, or something was not as it has to be.
    """
    modules = modules_of(layers, expected)
    tester = _Tester(engine, image)
    banner = tester.look("banner", "cat /proc/version")
    if banner.output != expected.kernel_banner:
        raise UnbuildableError(
            _elsewhere(expected.kernel_banner, banner.output), on=expected.kernel_release
        )
    before = tester.look("state-after-boot", STATE)
    words = set(before.output.splitlines())
    if words & {"filesystem zfs", "module zfs", "module spl"}:
        raise SmokeError(
            "ZFS is loaded on this machine already, so that loading it cannot be tried",
            on=expected.kernel_release,
            hint=f"export the pools and run: docker run --rm --privileged {image} unload",
        )
    outcomes = [banner, before]
    started = time.monotonic()
    with tester.unloading():
        for name, script in STEPS.items():
            outcomes.append(
                tester.pool() if name == "pool" else tester.step(name, script.split()[2:])
            )
            outcomes.append(tester.look(f"state-after-{name}", STATE))
    log.write_text(
        "".join(
            f"# {one.name}: {one.exit_code}\n{one.output}\n{one.kernel_log}\n" for one in outcomes
        )
    )
    # No boot: the machine was running.
    boot = Boot("", "kvm", time.monotonic() - started)
    transcript = Transcript({one.name: one for one in outcomes}, boot)
    hint = f"what every command printed is in {log}"
    return judge(transcript, expected, modules, "host", hint)


class _Tester:
    """Runs the module image on the engine."""

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine = engine
        self._image = image

    def step(self, name: str, arguments: Sequence[str]) -> Outcome:
        """The image's own entrypoint, and what the kernel logged meanwhile."""
        with self._log() as logged:
            ran = self._engine.run(self._image, *arguments, privileged=True)
        return Outcome(name, ran.exit_code, ran.output.strip("\n"), "\n".join(logged))

    def pool(self) -> Outcome:
        """The life of a pool on a file of a volume, which the kernel finds at the same path."""
        script = guest.script("guest-pool.sh").decode()
        with self._engine.volume() as directory, self._log() as logged:
            ran = self._engine.run(
                self._image,
                *("sh", "-c", script, "sh", directory.path),
                entrypoint=[_BUSYBOX],
                privileged=True,
                volumes={directory.name: {"bind": directory.path}},
            )
        return Outcome("pool", ran.exit_code, ran.output.strip("\n"), "\n".join(logged))

    def look(self, name: str, script: str) -> Outcome:
        ran = self._shell(script)
        return Outcome(name, ran.exit_code, ran.output.strip("\n"), "")

    @contextmanager
    def _log(self) -> Iterator[list[str]]:
        """What the kernel logs meanwhile, which is there afterwards."""
        before = self._shell("dmesg").output.splitlines()
        logged: list[str] = []
        yield logged
        logged += _since(before, self._shell("dmesg").output.splitlines())

    @contextmanager
    def unloading(self) -> Iterator[None]:
        """Leaves the machine without ZFS, whatever happens.

        Raises:
            SmokeError: it stays loaded, though all went well.
        """
        try:
            yield
        finally:
            ran = self._engine.run(self._image, "unload", privileged=True)
        if ran.exit_code != 0:
            raise SmokeError(
                "cannot be unloaded from this machine again",
                on=self._image,
                detail=ran.output,
                hint=f"docker run --rm --privileged {self._image} unload",
            )

    def _shell(self, script: str) -> Ran:
        command = ["sh", "-c", _APPLETS + script]
        return self._engine.run(self._image, *command, entrypoint=[_BUSYBOX], privileged=True)


def _since(before: Sequence[str], after: Sequence[str]) -> Sequence[str]:
    """What came into a log; its oldest lines may be gone meanwhile."""
    if before and before[-1] in after:
        return after[len(after) - after[::-1].index(before[-1]) :]
    return after
