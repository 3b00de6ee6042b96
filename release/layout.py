"""OCI image layouts on disk: what a build leaves, a smoke test boots and a push sends.

The directory is that of the OCI image specification, "image-layout.md"; the tar is the one that
``docker load`` reads: the same directory with Docker's ``manifest.json`` beside it, so that
engines from before Docker 25 load it too.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release import bounded
from release.errors import PublishError
from release.http import bytes_digest, file_digest
from release.reference import Digest, Reference, parse_digest
from release.registry import INDEXES, MALFORMED, MANIFESTS, OCI_INDEX, Document, labels_of


@dataclass(frozen=True)
class Layout:
    """An OCI image layout in a directory (image-spec, "image-layout.md"), holding one image."""

    path: Path

    def blob(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    @property
    def manifest(self) -> Document:
        """The layout's one image manifest, also where it is in an index, as an engine saves it.

        Raises:
            PublishError: the layout does not hold exactly one image.
        """
        index = json.loads((self.path / "index.json").read_bytes())
        # A saved image is there once for each of its names.
        manifests = {item["digest"]: item["mediaType"] for item in self._images(index)}
        if len(manifests) != 1:
            raise PublishError("does not hold exactly one image", on=str(self.path))
        ((name, media_type),) = manifests.items()
        digest = parse_digest(name)
        return Document(digest, media_type, self.read(digest))

    def _images(self, index: Any) -> Iterator[Any]:
        """The descriptors of the images in an index that are here; attestations are none."""
        for item in index["manifests"]:
            if (item.get("platform") or {}).get("os") == "unknown":
                continue
            if item["mediaType"] in INDEXES:
                inner = json.loads(self.read(parse_digest(item["digest"])))
                for image in self._images(inner):
                    if self.blob(parse_digest(image["digest"])).is_file():
                        yield image
            elif item["mediaType"] in MANIFESTS:
                yield item

    def read(self, digest: Digest) -> bytes:
        """A blob's content, checked against its digest."""
        content = self.blob(digest).read_bytes()
        if bytes_digest(content) != digest:
            raise PublishError("a blob does not have its digest", on=f"{self.path} {digest}")
        return content

    @property
    def config(self) -> Any:
        return json.loads(self.read(parse_digest(self.manifest.content["config"]["digest"])))

    @property
    def layers(self) -> tuple[Path, ...]:
        """The layer blobs in order, each checked against its digest."""
        paths = []
        for item in self.manifest.content["layers"]:
            digest = parse_digest(item["digest"])
            path = self.blob(digest)
            if file_digest(path) != digest:
                raise PublishError("a layer does not have its digest", on=f"{self.path} {digest}")
            paths.append(path)
        return tuple(paths)

    def blobs(self) -> Iterator[tuple[Digest, Path]]:
        """Configuration and layers, which a registry must have before the manifest."""
        content = self.manifest.content
        for item in (content["config"], *content["layers"]):
            digest = parse_digest(item["digest"])
            yield digest, self.blob(digest)

    def labels(self) -> dict[str, str]:
        return dict((self.config.get("config") or {}).get("Labels") or {})

    def save(self, to: Path, names: tuple[Reference, ...]) -> None:
        """Writes the tar that ``docker load`` reads, named ``names`` once loaded.

        The same layout and names give the same bytes. ``to`` appears whole or not at all.
        """
        manifest = self.manifest
        content = manifest.content
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": manifest.media_type,
                    "digest": manifest.digest,
                    "size": len(manifest.raw),
                    "annotations": {
                        "io.containerd.image.name": str(name),
                        "org.opencontainers.image.ref.name": name.tag,
                    },
                }
                for name in names
            ],
        }
        legacy = [
            {
                "Config": _inside(parse_digest(content["config"]["digest"])),
                "RepoTags": [name.familiar for name in names],
                "Layers": [_inside(parse_digest(item["digest"])) for item in content["layers"]],
            }
        ]
        part = to.with_name(f".{to.name}.part")
        try:
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in (
                    ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
                    ("index.json", index),
                    ("manifest.json", legacy),
                ):
                    _add(tar, name, json.dumps(data, separators=(",", ":")).encode())
                _add(tar, _inside(manifest.digest), manifest.raw)
                for digest in dict(self.blobs()):
                    _add(tar, _inside(digest), self.read(digest))
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)


def saved_labels(tar: Path) -> dict[str, str]:
    """The labels of the image in a tar that :meth:`Layout.save` wrote.

    Raises:
        PublishError: it is no such tar.
    """
    try:
        with bounded.opened_tar(tar) as archive:
            (image,) = json.loads(_content(archive, "manifest.json"))
            config = json.loads(_content(archive, image["Config"]))
        return labels_of(config)
    except (*bounded.CORRUPT, *MALFORMED) as error:
        raise PublishError(
            "is no saved module image", on=str(tar), hint="remove it and run again"
        ) from error


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if not file:
        raise KeyError(name)
    return bounded.read(file)


def _inside(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))
