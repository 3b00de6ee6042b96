"""Files for LinuxKit beside the sideload tar, and the VM images where its command is installed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from release import child
from release.advice import build_command
from release.build import PROJECT
from release.components import Components
from release.engine import Engine
from release.errors import BuildError, PublishError, TargetError
from release.http import redact, without_secrets
from release.keep import sideload_tar
from release.layout import saved_labels
from release.linuxkit import VARIANTS, Machine
from release.reference import Reference, architecture, parse_digest
from release.report import Outcome, Report, Status
from release.versions import Entry
from release.world import native_platform

COMPONENTS = PROJECT / "linuxkit.yaml"
TIMEOUT_SECONDS = 60 * 60
_LAST_LINES = 12


@dataclass(frozen=True)
class Workshop:
    """Where VMs are made, and of what."""

    cache: Path
    components: Components
    environment: Mapping[str, str]

    def tar(self, entry: Entry) -> Path:
        """The sideload tar of a kernel."""
        return sideload_tar(self.cache, entry.slug, native_platform())

    def path(self, entry: Entry, variant: str) -> Path:
        """Where a VM is: what its files are called, without an ending."""
        return self.cache / f"linuxkit-{variant}-{entry.slug}"

    def has_modules(self, entry: Entry) -> bool:
        """Whether the sideload tar is there and has what the entry says."""
        try:
            labels = saved_labels(self.tar(entry))
        except (FileNotFoundError, PublishError):
            return False
        zfs, kernel = labels.get("install-zfs.zfs-version"), labels.get("install-zfs.kernel-digest")
        return entry.zfs in (None, zfs) and (
            not entry.platforms or kernel in entry.platforms.values()
        )

    def write(self, entry: Entry) -> tuple[Path, ...]:
        """Writes the configuration of both VMs, for the very kernel that the tar is for.

        Raises:
            PublishError: the tar does not say which that is.
        """
        labels = saved_labels(self.tar(entry))
        try:
            kernel = Reference.parse(labels["install-zfs.kernel-image"])
            digest = parse_digest(labels["install-zfs.kernel-digest"])
            zfs = labels["install-zfs.zfs-version"]
        except KeyError as error:
            raise PublishError(
                f"has no label {error}", on=str(self.tar(entry)), hint="remove it and run again"
            ) from error
        machine = Machine(
            slug=entry.slug,
            kernel=kernel,
            pinned=kernel.at(digest),
            zfs=zfs,
            tar=self.tar(entry).as_posix(),
            architecture=architecture(native_platform()),
        )
        written = []
        for variant in VARIANTS:
            path = self.path(entry, variant).with_name(f"{self.path(entry, variant).name}.yml")
            part = path.with_name(f".{path.name}.part")
            part.write_text(machine.yaml(variant, self.components))
            part.replace(path)
            written.append(path)
        return tuple(written)

    @property
    def can_build(self) -> bool:
        """Whether LinuxKit's command is installed."""
        return shutil.which("linuxkit", path=self.environment.get("PATH", os.defpath)) is not None

    def preflight(self) -> None:
        """Makes sure that LinuxKit's command, where it is installed, can get at module images.

        Raises:
            PreflightError: no engine answers.
        """
        if self.can_build:
            Engine(self.environment)

    def build(self, entry: Entry) -> None:
        """Builds the images of both VMs, of the module image in the engine at hand.

        Raises:
            BuildError: LinuxKit's command refused, or the engine.
        """
        Engine(self.environment).load(self.tar(entry))
        for variant in VARIANTS:
            self._linuxkit(entry, variant)

    def make(self, entry: Entry, report: Report) -> Outcome:
        """Writes the files of one kernel and builds its VMs, where that can be done."""
        started = time.monotonic()
        status, reason = Status.UNCHANGED, "files for LinuxKit written"
        try:
            report.step(entry.slug, "write the files for LinuxKit")
            self.write(entry)
            if self.can_build:
                report.step(entry.slug, "build the VMs")
                self.build(entry)
                reason += ", VMs built"
        except TargetError as error:
            report.fail(error)
            status, reason = Status.FAILED, error.summary
        finally:
            report.step(entry.slug, "")
        seconds = round(time.monotonic() - started, 1)
        return Outcome(str(entry.image), native_platform(), status, reason, seconds=seconds)

    def _linuxkit(self, entry: Entry, variant: str) -> None:
        vm = self.path(entry, variant)
        log = self.cache / "logs" / f"{vm.name}.log"
        command = build_command(vm.as_posix(), vm.parent.as_posix())
        try:
            code = child.logged(command, log, without_secrets(self.environment), TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise BuildError(
                f"linuxkit {error}", on=f"{vm}.yml", hint=f"its output is in {log}"
            ) from error
        if code != 0:
            lines = redact(log.read_text(errors="replace")).splitlines()
            raise BuildError(
                "linuxkit does not build it",
                on=f"{vm}.yml",
                detail="\n".join(lines[-_LAST_LINES:]),
                hint="images of your own go under linuxkit: in versions.yaml; all of the output "
                f"is in {log}",
            )
