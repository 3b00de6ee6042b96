"""Notes beside images in a registry that say from what each was made.

A note is a manifest without a tag, of two facts alone: the image's digest and a fingerprint of
what it was made from. So its own digest can be computed, and a HEAD tells whether it is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from release.drift import as_sentence
from release.http import bytes_digest
from release.reference import Digest, Reference
from release.registry import OCI_MANIFEST, Document, Registry

_EMPTY = b"{}"
"""The OCI empty descriptor's content (image-spec, "manifest.md")."""
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_RECORD_TYPE = "application/vnd.install-zfs.record.v1"


@dataclass(frozen=True)
class Record:
    """An image was made from something.

    Attributes:
        image: its manifest's or its index's.
        fingerprint: tells apart what would give different images.
    """

    image: Digest
    fingerprint: str

    @property
    def document(self) -> Document:
        empty = {"mediaType": _EMPTY_TYPE, "digest": bytes_digest(_EMPTY), "size": len(_EMPTY)}
        content = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": _RECORD_TYPE,
            "config": empty,
            "layers": [empty],
            "annotations": {
                "install-zfs.image": self.image,
                "install-zfs.made-from": self.fingerprint,
            },
        }
        raw = json.dumps(content, separators=(",", ":")).encode()
        return Document(bytes_digest(raw), OCI_MANIFEST, raw)

    def is_in(self, registry: Registry, repository: Reference) -> bool:
        """Whether a repository says so; one HEAD."""
        return registry.head(repository.at(self.document.digest)) is not None

    def put(self, registry: Registry, repository: Reference) -> None:
        """Lets a repository say so. Repeating it changes nothing."""
        registry.upload(repository, bytes_digest(_EMPTY), _EMPTY)
        registry.put(repository.at(self.document.digest), self.document)


def is_made_from(
    registry: Registry, repository: Reference, there: Digest | None, fingerprint: str
) -> bool:
    """Whether an image was made from that, as far as the repository says; one HEAD, and no pull.

    Args:
        there: the image; None for none.
    """
    return there is not None and Record(there, fingerprint).is_in(registry, repository)


def repair(registry: Registry, image: Reference, made: Record, *, unsigned: bool = False) -> str:
    """How a tag that is behind differs from what was behind it before, in words; empty where
    nothing says that this image was.

    Args:
        unsigned: whether what it points to was to be signed, and is not.
    """
    there = registry.head(image)
    if not made.is_in(registry, image):
        return ""
    if there == made.image and unsigned:
        return as_sentence([f"{image.tag} was not signed"])
    if there == made.image:
        return as_sentence([f"an image, or an attestation, of {image.tag} was missing"])
    return as_sentence([f"{image.tag} {f'pointed to {there}' if there else 'was missing'}"])
