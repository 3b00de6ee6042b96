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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from release import bounded
from release.errors import PublishError
from release.http import bytes_digest
from release.reference import Digest, parse_digest
from release.registry import MALFORMED, OCI_MANIFEST, Document, labels_of

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
            start = bounded.gunzip(start)
        with bounded.opened_tar(io.BytesIO(start)) as tar:
            for member in tar:
                if parts := PurePosixPath(member.name.lstrip("/")).parts:
                    return Kind(parts[0]) if parts[0] in list(Kind)[1:] else Kind.LOADER
    except bounded.CORRUPT as error:
        raise PublishError("a layer is not a tar archive", detail=str(error)) from error
    return Kind.LOADER


@dataclass(frozen=True)
class Image:
    """An image of one platform: its manifest, its configuration, and what its layers hold."""

    manifest: Document
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    labels: Mapping[str, str]

    @classmethod
    def read(
        cls, manifest: Document, config: Mapping[str, Any], start_of: Callable[[Digest], bytes]
    ) -> Image:
        """Takes an image apart.

        Args:
            start_of: gives the first bytes of a layer.

        Raises:
            PublishError: it is not shaped as an image is.
        """
        try:
            pairs = zip(manifest.content["layers"], config["rootfs"]["diff_ids"], strict=True)
            described = [(_described(item), parse_digest(diff_id)) for item, diff_id in pairs]
            labels = labels_of(config)
        except MALFORMED as error:
            raise PublishError(
                "the image's manifest and configuration are not those of one image",
                on=manifest.digest,
                detail=repr(error),
            ) from error
        layers = [
            Layer(digest, size, media_type, diff_id, kind_of(start_of(digest)))
            for (digest, size, media_type), diff_id in described
        ]
        return cls(manifest, config, tuple(layers), labels)

    def of(self, kind: Kind) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind is kind)


def _described(item: Mapping[str, Any]) -> tuple[Digest, int, str]:
    """What a manifest says of a layer: digest, size and media type."""
    size, media_type = item["size"], item["mediaType"]
    if type(size) is not int or size < 0 or not isinstance(media_type, str):
        raise ValueError(f"a layer of size {size} and type {media_type}")
    return parse_digest(item["digest"]), size, _MEDIA_TYPES.get(media_type, media_type)


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


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
