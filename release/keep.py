"""What a machine keeps of its work in ``cache``: sideload tars, and which images passed."""

from __future__ import annotations

import json
from pathlib import Path

from release.build import Built
from release.reference import Digest, Platform, Reference, architecture
from release.smoke import SmokeResult
from release.versions import Entry
from release.world import native_platform


def sideload_tar(cache: Path, slug: str, platform: Platform) -> Path:
    """Where the sideload tar of a module image is: ``cache/zfs-SLUG.tar``, for another platform
    than this machine's with the architecture behind it.
    """
    suffix = "" if platform == native_platform() else f"-{architecture(platform)}"
    return cache / f"zfs-{slug}{suffix}.tar"


def save_tar(cache: Path, image: Reference, entry: Entry, built: Built) -> Path:
    """Writes the sideload tar of a module image.

    It has the published name beside the local one: the image's own messages name that.

    Args:
        image: the repository of the module images.
    """
    tar = sideload_tar(cache, entry.slug, built.platform)
    local = Reference("docker.io", "library/install-zfs").with_tag(entry.slug)
    built.layout.save(tar, (local, image.with_tag(entry.slug)))
    return tar


def passed_before(cache: Path, digest: Digest) -> str:
    """The figures of the smoke test that the image of a manifest passed; empty where it did not."""
    record = _record_of_test(cache, digest)
    # What passed an easier test, before there were figures of a pool, has not passed this one.
    return str(json.loads(record.read_text()).get("figures", "")) if record.is_file() else ""


def write_passed(cache: Path, digest: Digest, banner: str, result: SmokeResult) -> None:
    record = _record_of_test(cache, digest)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(
        json.dumps(
            {
                "digest": digest,
                "kernel_banner": banner,
                "modules": result.modules,
                "accelerator": result.accelerator,
                "seconds": round(result.seconds, 1),
                "pool_seconds": dict(result.pool_seconds),
                "peak_memory_mib": round(result.peak_memory_mib),
                "figures": str(result),
            }
        )
    )
    part.replace(record)


def _record_of_test(cache: Path, digest: Digest) -> Path:
    return cache / "smoke" / f"{digest.replace(':', '-')}.json"
