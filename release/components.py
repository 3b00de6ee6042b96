"""``linuxkit.yaml``: the images that LinuxKit makes a VM of, beside the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from release.reference import Reference
from release.yamlfile import Node, compose, read


@dataclass(frozen=True)
class Components:
    """An image for each part of a VM."""

    init: Reference
    runc: Reference
    containerd: Reference
    ca_certificates: Reference
    rngd: Reference
    dhcpcd: Reference
    getty: Reference
    docker: Reference

    @classmethod
    def load(cls, path: Path, others: Mapping[str, Reference]) -> Self:
        """Reads ``linuxkit.yaml``.

        Args:
            others: by name, what takes the place of an image of the file.

        Raises:
            ConfigurationError: it cannot be read, or names something else than all images.
        """
        text = read(path, hint="get it back from the project's repository")
        top = Node(path, compose(path, text, begin="init: linuxkit/init:..."))
        images = parse_components(top, required=NAMES) | dict(others)
        return cls(**{_field(name): image for name, image in images.items()})


NAMES = tuple(field.name.replace("_", "-") for field in fields(Components))
"""The parts' names, as they are in the file."""


def _field(name: str) -> str:
    return name.replace("-", "_")


def parse_components(node: Node, required: tuple[str, ...] = ()) -> dict[str, Reference]:
    """The images of a mapping by the names of their parts.

    Raises:
        ConfigurationError: a name is not known or missing, or an image is not pinned at all.
    """
    found = node.mapping(*NAMES, required=required)
    return {name: _image(value) for name, value in found.items()}


def _image(node: Node) -> Reference:
    image = node.parse(Reference.parse)
    if not image.tag and not image.digest:
        raise node.error(
            f"{image} is not pinned", "write a tag or a digest behind it, as in linuxkit/init:..."
        )
    return image
