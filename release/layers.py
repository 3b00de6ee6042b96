"""What the layers of a module image hold, told by their content, and images made of such layers.

A module image has the loader, the userland of its ZFS version where it was built with one, and the
modules of its kernel, each in a layer of its own. Other images are put together from the very same
layers: nothing is built, and nothing that was not tested gets in.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from release.errors import PublishError
from release.http import bytes_digest
from release.reference import Digest, parse_digest
from release.registry import OCI_MANIFEST, Document

START_BYTES = 1 << 16
"""As much of a layer as tells what it holds."""

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MEDIA_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{_OCI_LAYER}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": _OCI_LAYER,
}


class Kind(StrEnum):
    """What a layer holds."""

    LOADER = "loader"
    USERLAND = "userland"
    KERNELS = "kernels"


@dataclass(frozen=True)
class Layer:
    """A layer in a registry.

    Attributes:
        digest: of the blob, compressed or not.
        diff_id: the digest of the tar in it (image-spec, "config.md").
    """

    digest: Digest
    size: int
    media_type: str
    diff_id: Digest
    kind: Kind

    def descriptor(self, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
        """How a manifest names it (image-spec, "descriptor.md")."""
        about: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        return {**about, "annotations": dict(annotations)} if annotations else about


def kind_of(start: bytes) -> Kind:
    """What a layer holds, by the top directory of the first file in it.

    Args:
        start: the first bytes of the blob, :data:`START_BYTES` or all of them.

    Raises:
        PublishError: it is not a tar archive.
    """
    try:
        if start.startswith(b"\x1f\x8b"):
            start = zlib.decompressobj(wbits=31).decompress(start)
        with tarfile.open(fileobj=io.BytesIO(start), mode="r|") as tar:
            for member in tar:
                if parts := PurePosixPath(member.name.lstrip("/")).parts:
                    return Kind(parts[0]) if parts[0] in list(Kind)[1:] else Kind.LOADER
    except (tarfile.TarError, zlib.error) as error:
        raise PublishError("a layer is not a tar archive", detail=str(error)) from error
    return Kind.LOADER


@dataclass(frozen=True)
class Image:
    """An image of one platform: its manifest, its configuration, and what its layers hold."""

    manifest: Document
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @classmethod
    def read(
        cls, manifest: Document, config: Mapping[str, Any], start_of: Callable[[Digest], bytes]
    ) -> Image:
        """Takes an image apart.

        Args:
            start_of: gives the first bytes of a layer.
        """
        items = manifest.content["layers"]
        diff_ids = config["rootfs"]["diff_ids"]
        if len(items) != len(diff_ids):
            raise PublishError(
                "the image's manifest and configuration do not agree on its layers",
                on=manifest.digest,
            )
        layers = []
        for item, diff_id in zip(items, diff_ids, strict=True):
            digest = parse_digest(item["digest"])
            media_type = _MEDIA_TYPES.get(item["mediaType"], item["mediaType"])
            kind = kind_of(start_of(digest))
            layers.append(Layer(digest, item["size"], media_type, parse_digest(diff_id), kind))
        return cls(manifest, config, tuple(layers))

    def of(self, kind: Kind) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind is kind)

    @property
    def labels(self) -> dict[str, str]:
        return dict((self.config.get("config") or {}).get("Labels") or {})


@dataclass(frozen=True)
class Assembled:
    """An image of one platform that was put together: a manifest and a configuration."""

    manifest: Document
    config: bytes

    @cached_property
    def config_digest(self) -> Digest:
        return bytes_digest(self.config)


def assemble(config: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Assembled:
    """An image of this configuration and these descriptors; the same give the same bytes."""
    raw = _json(config)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": bytes_digest(raw),
                "size": len(raw),
            },
            "layers": layers,
        }
    )
    return Assembled(Document(bytes_digest(manifest), OCI_MANIFEST, manifest), raw)


def without_userland(image: Image) -> Assembled | None:
    """The image with its loader and its modules alone; None where that is all it has.

    The layers that it keeps are those of the image, by digest and in their order.
    """
    kept = [layer for layer in image.layers if layer.kind is not Kind.USERLAND]
    if len(kept) == len(image.layers):
        return None
    config = dict(image.config)
    config["rootfs"] = {**config["rootfs"], "diff_ids": [layer.diff_id for layer in kept]}
    history = config.get("history") or []
    if len([entry for entry in history if not entry.get("empty_layer")]) == len(image.layers):
        kinds = iter(image.layers)
        config["history"] = [
            entry
            for entry in history
            if entry.get("empty_layer") or next(kinds).kind is not Kind.USERLAND
        ]
    else:
        config.pop("history", None)
    return assemble(config, [layer.descriptor() for layer in kept])


def file_layer(name: str, content: bytes) -> tuple[Layer, bytes]:
    """A layer of one file, and its blob. The same content gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))
    tar_bytes = buffer.getvalue()
    blob = gzip.compress(tar_bytes, mtime=0)
    layer = Layer(
        bytes_digest(blob), len(blob), f"{_OCI_LAYER}+gzip", bytes_digest(tar_bytes), Kind.LOADER
    )
    return layer, blob


def read_file_layer(blob: bytes, name: str) -> bytes:
    """The file in such a layer.

    Raises:
        PublishError: it is not in it.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            file = tar.extractfile(name)
            return file.read() if file else b""
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as error:
        raise PublishError(f"a layer has no {name}", detail=str(error)) from error


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
