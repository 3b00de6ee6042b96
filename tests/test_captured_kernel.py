"""From a machine's files to a published module: a captured kernel as a source of the pipeline."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from release import bounded, capture
from release.build import Builder
from release.engine import Engine
from release.http import Http
from release.kernel import KernelFiles, banner_release, read_banner
from release.probe import Inside, Machine
from release.reference import Platform, Reference, parse_digest
from release.registry import Registry
from tests.lab.registry import LABEL
from tests.lab.setup import Setup
from tests.lab.world import LabKernel

pytestmark = pytest.mark.lab

AMD64 = Platform("linux/amd64")


def test_a_captured_kernel_is_published_like_any_other(
    setup: Setup, desktop_kernel: LabKernel, tmp_path: Path
) -> None:
    kernel = Reference.parse(desktop_kernel.reference)
    files = Builder(tmp_path / "cache", os.environ).kernel_files(
        kernel, parse_digest(desktop_kernel.manifest), AMD64
    )
    assert files.kernel
    banner = read_banner(files.kernel)
    machine = Machine(banner_release(banner), banner, "x86_64")
    root = _lay_out(files, machine.release, tmp_path / "machine")
    image = Reference(setup.registry_host, f"{setup.repository}-captured").with_tag(
        kernel.tag or ""
    )

    captured = _capture(setup, desktop_kernel.builder, machine, root, tmp_path / "captured")
    assert captured.build_id == files.build_id
    layout = capture.pack(captured, tmp_path / "packed", Reference.parse(desktop_kernel.builder))
    capture.push(Registry(Http(), {}), image, layout)
    lines = "".join(f"  {line}\n" for line in capture.entry_lines(captured, image))
    setup.write_versions(lines, sources=f"  - repository: {image.name}\n")
    run = setup.run("sync")

    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert (outcome["kernel"], outcome["status"]) == (str(image), "published")
    (entry,) = setup.load().kernels
    labels = Registry(Http(), {}).labels(
        Reference.parse(setup.image), parse_digest(setup.manifest(entry.slug))
    )
    assert labels["install-zfs.kernel-banner"] == banner
    assert labels["install-zfs.kernel-build-id"] == files.build_id
    assert "install-zfs.smoke" not in labels


def _lay_out(files: KernelFiles, release: str, root: Path) -> Path:
    """A machine's root with what a distribution installs of a kernel."""
    assert files.kernel
    assert files.modules
    assert files.headers
    (root / "boot").mkdir(parents=True)
    (root / "etc").mkdir()
    for tar in (files.modules, files.headers):
        bounded.unpack(tar, root, how="tar")
    shutil.copy(files.kernel, root / f"boot/vmlinuz-{release}")
    build_id = bytes.fromhex(files.build_id)
    # <elf.h>: sizes of name and content, NT_GNU_BUILD_ID.
    (root / "notes").write_bytes(struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id)
    return root


def _capture(setup: Setup, probe: str, machine: Machine, root: Path, to: Path) -> capture.Captured:
    """Captures from a container that sees the machine's files and, as its own, the notes."""
    to.mkdir()
    mounts = {
        str(root): {"bind": "/machine", "mode": "ro"},
        str(root / "notes"): {"bind": "/sys/kernel/notes", "mode": "ro"},
    }
    options = {"privileged": True, "volumes": mounts, "labels": {LABEL: str(setup.world.directory)}}
    with Engine(os.environ).session(probe, ["sleep"], **options) as session:
        return capture.capture(machine, Inside(session, ("/machine",)), AMD64, to)
