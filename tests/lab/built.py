"""A module image that was built, beside the kernel that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from release.smoke import Expected


@dataclass(frozen=True)
class Built:
    """What a boot needs.

    Attributes:
        kernel: the bootable kernel.
        layers: the module image's layer blobs, the lowest first.
        facts: what the image claims to be for.
    """

    kernel: Path
    layers: tuple[Path, ...]
    facts: Expected
