"""``linuxkit.yaml``: the images that LinuxKit makes a VM of, beside the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from release.errors import ResolveError
from release.reference import Digest, Reference
from release.yamlfile import Node, compose, end_of, read, write

_BEGIN = "init: linuxkit/init:..."
_HINT = "get it back from the project's repository"


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
        top = Node(path, compose(path, read(path, hint=_HINT), begin=_BEGIN))
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


def pin(path: Path, find: Callable[[Reference], Digest | None]) -> tuple[Reference, ...]:
    """Writes behind each image of the file that has none the digest that its tag has now.

    Args:
        find: asks a registry for the digest of a tag; None where there is no such tag.

    Returns:
        The images that have a digest now.

    Raises:
        ConfigurationError: the file cannot be read.
        ResolveError: an image is not there; the file stays as it is.
    """
    text = read(path, hint=_HINT)
    nodes = Node(path, compose(path, text, begin=_BEGIN)).mapping(*NAMES)
    found: dict[int, tuple[int, Reference]] = {}
    for node in nodes.values():
        image = _image(node)
        if image.digest:
            continue
        digest = find(image)
        if not digest:
            raise ResolveError("is not there", on=str(image), hint=f"name another in {path}")
        found[node.node.start_mark.index] = end_of(node.node), replace(image, digest=digest)
    for start, (end, image) in sorted(found.items(), reverse=True):
        text = f"{text[:start]}{image.familiar}{text[end:]}"
    write(path, text)
    return tuple(image for _, image in found.values())
