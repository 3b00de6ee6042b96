"""A look at the machine behind the Docker engine at hand, from a container on it.

``/proc/PID/root`` of a container that shares the machine's process IDs is the root of that
process, in its mount namespace: what ``nsenter --target PID --mount`` would enter, without the
need for a program on the other side. Docker Desktop's virtual machine is LinuxKit's, whose
``/etc/linuxkit.yml`` names the kernel image that was booted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import yaml

from release.engine import Engine, Session
from release.errors import ConfigurationError, PreflightError, TargetError
from release.reference import Reference
from release.tags import ImageTag

PROBE_IMAGE = "docker.io/library/busybox:1.37.0"
"""Docker's official image of busybox, 2 MB; it has all that is asked of a probe's image: ``sh``,
``cat``, ``ls``, ``readlink``, ``sleep`` and ``tar``.
"""
LINUXKIT_YML = "/etc/linuxkit.yml"

# The roots that can be read: of the machine's first process, and of the engine.
_ROOTS = r"""
for pid in 1 $(for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2>/dev/null)" != dockerd ] || echo "${process#/proc/}"
done); do
    [ ! -d "/proc/$pid/root/etc" ] || echo "/proc/$pid/root"
done
"""
_DESKTOP = re.compile(r"Docker Desktop\D*(\d+\.\d+\.\d+)", re.ASCII)


@dataclass(frozen=True)
class Machine:
    """What the machine behind an engine says of itself.

    Attributes:
        release: ``uname -r``, from a container, or else as the engine reports it.
        banner: ``/proc/version``; empty where no container could be run.
        architecture: ``uname -m``.
        operating_system: ``OperatingSystem`` of the engine's ``/info``.
        platform: ``Platform.Name`` of the engine's ``/version``; Docker Desktop's has its version:
            "Docker Desktop 4.13.0 (89412)".
        linuxkit: the text of ``/etc/linuxkit.yml``; empty where there is none, None where nobody
            could look.
        unseen: why something could not be looked at; empty where all was.
    """

    release: str
    banner: str
    architecture: str
    operating_system: str = ""
    platform: str = ""
    linuxkit: str | None = None
    unseen: str = ""

    @property
    def is_wsl2(self) -> bool:
        """Whether the kernel is Microsoft's (WSL2-Linux-Kernel, ``Microsoft/config-wsl``:
        ``CONFIG_LOCALVERSION``).
        """
        return "microsoft" in self.release.lower()

    @property
    def is_desktop(self) -> bool:
        """Whether the engine is Docker Desktop's."""
        return "Docker Desktop" in f"{self.platform} {self.operating_system}"

    @property
    def is_linuxkit(self) -> bool:
        """Whether the kernel was built the way that LinuxKit's are (``CONFIG_LOCALVERSION``)."""
        return bool(self.linuxkit) or self.release.endswith("-linuxkit")

    @property
    def desktop(self) -> str | None:
        """Docker Desktop's version, where the engine says it."""
        found = _DESKTOP.search(self.platform)
        return found[1] if found else None

    @property
    def kernel_image(self) -> Reference | None:
        """The kernel image that was booted, as ``/etc/linuxkit.yml`` names it.

        None where it names a kernel of another version than runs: under WSL 2 the file is there,
        and the kernel that it names is not.
        """
        image = self.named_image
        version = ImageTag.parse(image.tag or "").version if image else None
        numbers = rf"(?<![\d.]){re.escape(str(version))}(?![\d.])"
        # Distributions have the version at the banner's end alone; before that is the compiler's.
        words = f"{self.release} {self.banner.partition(' #')[2]}"
        if self.is_wsl2 or (version and not re.search(numbers, words)):
            return None
        return image

    @property
    def named_image(self) -> Reference | None:
        """The kernel image that ``/etc/linuxkit.yml`` names (linuxkit, ``docs/yaml.md``)."""
        try:
            content = yaml.safe_load(self.linuxkit or "")
            image = Reference.parse(content["kernel"]["image"])
        except (yaml.YAMLError, TypeError, KeyError, AttributeError, ConfigurationError):
            return None
        return image if image.tag else None


@dataclass(frozen=True)
class Inside:
    """A container on the machine, and where the machine's files are in it.

    Attributes:
        roots: the roots that can be read, of the machine's first process and of the engine.
    """

    session: Session
    roots: tuple[str, ...]

    def read(self, path: str) -> str:
        """A file of the container's ``/proc`` or ``/sys``, or one below a root; empty where it
        cannot be read.
        """
        found = self.session.run("cat", path)
        return found.output if found.exit_code == 0 else ""

    @property
    def first(self) -> str | None:
        """The root of the machine's first process; None where it cannot be read."""
        return "/proc/1/root" if "/proc/1/root" in self.roots else None


@contextmanager
def inside(engine: Engine, image: str) -> Iterator[Inside]:
    """A container that sees the machine's processes, and through them its files.

    Raises:
        PreflightError: the engine does not run one.
    """
    options: Mapping[str, Any] = {"privileged": True, "pid_mode": "host", "userns_mode": "host"}
    with engine.session(image, ["sleep"], **options) as session:
        yield Inside(session, tuple(session.run("sh", "-c", _ROOTS).output.split()))


@contextmanager
def looking(engine: Engine, image: str) -> Iterator[tuple[Machine, Inside]]:
    """What the machine says of itself, and the container that goes on seeing it.

    Raises:
        PreflightError: the engine does not answer, or does not run such a container.
    """
    machine = _ask(engine)
    with inside(engine, image) as here:
        yield _see(machine, here), here


def _ask(engine: Engine) -> Machine:
    """What the engine says of its machine."""
    info, version = engine.describe()
    return Machine(
        release=_text(info, "KernelVersion"),
        banner="",
        architecture=_text(info, "Architecture"),
        operating_system=_text(info, "OperatingSystem"),
        platform=_text(version.get("Platform") or {}, "Name"),
    )


def look(engine: Engine, image: str) -> Machine:
    """Asks the engine, and the machine behind it as far as a container gets there.

    Raises:
        PreflightError: the engine does not answer.
    """
    machine = _ask(engine)
    try:
        with inside(engine, image) as machine_inside:
            return _see(machine, machine_inside)
    except (PreflightError, TargetError) as error:
        refused = error
    try:
        with engine.session(image, ["sleep"]) as session:
            seen = _see(machine, Inside(session, ()))
            return replace(seen, unseen=_reason(refused))
    except (PreflightError, TargetError):
        return replace(machine, unseen=_reason(refused))


def _see(machine: Machine, here: Inside) -> Machine:
    linuxkit, unseen = None, "the root of the machine's first process cannot be read"
    if here.first:
        linuxkit, unseen = here.read(f"{here.first}{LINUXKIT_YML}"), ""
    return replace(
        machine,
        release=here.read("/proc/sys/kernel/osrelease").strip() or machine.release,
        banner=here.read("/proc/version").strip(),
        linuxkit=linuxkit,
        unseen=unseen,
    )


def _reason(error: PreflightError | TargetError) -> str:
    detail = " ".join(error.detail.split())
    reason = f"{error.summary} ({detail})" if detail else error.summary
    return f"{reason}; {error.hint}" if error.hint else reason


def _text(answer: Mapping[str, Any], name: str) -> str:
    return str(answer.get(name) or "")
