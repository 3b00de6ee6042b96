"""What an image was made of, and how: an SBOM and a provenance for each image and its tar.

Both follow from the image's labels and digest alone, so that the same image gives the same bytes,
whoever publishes it. The SBOM is SPDX 2.3, which ``docker buildx imagetools inspect`` shows; the
provenance is SLSA's, version 1 (slsa.dev/spec/v1.0/provenance). They are attached to an image the
way BuildKit does it (buildkit, ``docs/attestations/attestation-storage.md``): a manifest in the
index, of no platform, that names the one which it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, quote

from release import __version__
from release.errors import PublishError
from release.http import bytes_digest
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import MALFORMED, OCI_MANIFEST, Document

SPDX = "https://spdx.dev/Document"
PROVENANCE = "https://slsa.dev/provenance/v1"
TARBALL_LABEL = "install-zfs.openzfs-tarball"
"""The label with the package URL of OpenZFS's tarball, its digest in it."""

_STATEMENT = "https://in-toto.io/Statement/v1"
_BLOB_TYPE = "application/vnd.in-toto+json"
_PREDICATE_TYPE = "in-toto.io/predicate-type"
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"
_ATTESTATION = "attestation-manifest"
_BUILD_TYPE = "urn:install-zfs:module-image:v1"


@dataclass(frozen=True)
class Subject:
    """What a statement is about: a name and a digest."""

    name: str
    digest: Digest

    @property
    def fields(self) -> dict[str, Any]:
        return {"name": self.name, "digest": _hexadecimal(self.digest)}


@dataclass(frozen=True)
class Origin:
    """What an image is, and what it was made of, as its labels say.

    Attributes:
        image: the repository that it is published in.
        manifest: its manifest's digest.
    """

    image: Reference
    platform: Platform
    manifest: Digest
    labels: Mapping[str, str]

    def label(self, name: str) -> str:
        return self.labels.get(name, "")

    @property
    def subject(self) -> Subject:
        return Subject(str(self.image.name), self.manifest)

    @property
    def created(self) -> datetime:
        """The time of all that is built from a kernel image: when that was made."""
        try:
            when = datetime.fromisoformat(self.label("org.opencontainers.image.created"))
        except ValueError:
            return datetime.fromtimestamp(0, UTC)
        return when.astimezone(UTC)

    @property
    def tarball(self) -> tuple[str, str]:
        """The package URL of OpenZFS's tarball, and its SHA-256; empty where no label says it."""
        url = self.label(TARBALL_LABEL).partition("?")[0]
        return url, (tarball_of(self.labels) or "").removeprefix("sha256:")

    @property
    def materials(self) -> list[dict[str, Any]]:
        """What it was made of, as SLSA's ResourceDescriptors."""
        found = [
            _material(
                self.label(f"install-zfs.{what}-image"), self.label(f"install-zfs.{what}-digest")
            )
            for what in ("kernel", "builder")
        ]
        if headers := self.label("install-zfs.headers-image"):
            name, _, digest = headers.partition("@")
            found.append(_material(name, digest))
        url, sha256 = self.tarball
        if url:
            found.append({"uri": url, "digest": {"sha256": sha256}})
        source, commit = (
            self.label("org.opencontainers.image.source"),
            self.label("org.opencontainers.image.revision"),
        )
        if commit:
            uri = f"git+{source}" if source else "urn:install-zfs:sources"
            found.append({"uri": uri, "digest": {"gitCommit": commit}})
        return found


def tarball_of(labels: Mapping[str, str]) -> Digest | None:
    """The digest of the OpenZFS tarball that an image was made of; None where no label says it."""
    qualifiers = labels.get(TARBALL_LABEL, "").partition("?")[2]
    checksums = parse_qs(qualifiers).get("checksum")
    return parse_digest(checksums[0]) if checksums else None


def _material(image: str, digest: str) -> dict[str, Any]:
    reference = Reference.parse(image)
    about: dict[str, Any] = {"name": str(reference), "uri": _package_url(reference, digest)}
    if digest:
        about["digest"] = _hexadecimal(parse_digest(digest))
    return about


def _package_url(image: Reference, digest: str) -> str:
    """As the "docker" and "oci" types of package URLs name images (package-url/purl-spec)."""
    version = f"@{quote(digest, safe='')}" if digest else ""
    tag = f"&tag={quote(image.tag)}" if image.tag else ""
    name = image.repository.rpartition("/")[2]
    where = quote(f"{image.registry}/{image.repository}", safe="")
    return f"pkg:oci/{name}{version}?repository_url={where}{tag}"


def _hexadecimal(digest: Digest) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()


def statement(kind: str, predicate: Any, subjects: Sequence[Subject]) -> bytes:
    """An in-toto statement (in-toto/attestation, ``spec/v1/statement.md``)."""
    return _json(
        {
            "_type": _STATEMENT,
            "subject": [subject.fields for subject in subjects],
            "predicateType": kind,
            "predicate": predicate,
        }
    )


def provenance(origin: Origin) -> dict[str, Any]:
    """How an image was built, as SLSA's predicate. It has no times of its own."""
    internal = {
        "SOURCE_DATE_EPOCH": int(origin.created.timestamp()),
        "builderSource": origin.label("install-zfs.builder-source"),
        "smoke": origin.label("install-zfs.smoke") or "boot",
    }
    return {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {
                "kernelImage": origin.label("install-zfs.kernel-image"),
                "platform": origin.platform,
                "zfsVersion": origin.label("install-zfs.zfs-version"),
            },
            "internalParameters": internal,
            "resolvedDependencies": origin.materials,
        },
        "runDetails": {
            "builder": {
                "id": origin.label("org.opencontainers.image.source") or "urn:install-zfs:local",
                "version": {"install-zfs": __version__},
            }
        },
    }


def sbom(origin: Origin) -> dict[str, Any]:
    """What is in an image, and what it was made of, as an SPDX document."""
    # Imported here, because it takes a third of the time of a run with nothing to do.
    from spdx_tools.spdx.jsonschema.document_converter import DocumentConverter
    from spdx_tools.spdx.model import (
        Actor,
        ActorType,
        Checksum,
        ChecksumAlgorithm,
        CreationInfo,
        Document,
        ExternalPackageRef,
        ExternalPackageRefCategory,
        Package,
        PackagePurpose,
        Relationship,
        RelationshipType,
        SpdxNoAssertion,
    )

    def package(
        name: str,
        shown: str,
        *,
        version: str = "",
        sha256: str = "",
        url: str = "",
        purpose: PackagePurpose,
        comment: str = "",
    ) -> Package:
        return Package(
            f"SPDXRef-{name}",
            shown,
            SpdxNoAssertion(),
            version=version or None,
            files_analyzed=False,
            checksums=[Checksum(ChecksumAlgorithm.SHA256, sha256)] if sha256 else [],
            license_concluded=SpdxNoAssertion(),
            license_declared=SpdxNoAssertion(),
            copyright_text=SpdxNoAssertion(),
            comment=comment or None,
            primary_package_purpose=purpose,
            external_references=[
                ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", url)
            ]
            if url
            else [],
        )

    def image(name: str, label: str, purpose: PackagePurpose, comment: str) -> Package:
        reference = Reference.parse(origin.label(f"install-zfs.{label}-image"))
        digest = origin.label(f"install-zfs.{label}-digest")
        return package(
            name,
            str(reference),
            version=reference.tag or "",
            sha256=digest.removeprefix("sha256:"),
            url=_package_url(reference, digest),
            purpose=purpose,
            comment=comment,
        )

    zfs = origin.label("install-zfs.zfs-version")
    url, sha256 = origin.tarball
    whole = package(
        "image",
        str(origin.image.name),
        version=zfs,
        sha256=origin.manifest.removeprefix("sha256:"),
        url=_package_url(origin.image.name, origin.manifest),
        purpose=PackagePurpose.CONTAINER,
        comment=f"ZFS {zfs} for {origin.label('install-zfs.kernel-banner')}",
    )
    parts = (
        (
            RelationshipType.GENERATED_FROM,
            package(
                "openzfs",
                "OpenZFS",
                version=zfs,
                sha256=sha256,
                url=url,
                purpose=PackagePurpose.SOURCE,
                comment="compiled to the kernel modules, and to zfs and zpool",
            ),
        ),
        (
            RelationshipType.DEPENDS_ON,
            image(
                "kernel",
                "kernel",
                PackagePurpose.OPERATING_SYSTEM,
                "compiled against its headers; modules of its own that ZFS needs are contained",
            ),
        ),
        (
            RelationshipType.CONTAINS,
            package(
                "install-zfs",
                "install-zfs",
                version=origin.label("org.opencontainers.image.revision"),
                purpose=PackagePurpose.APPLICATION,
                comment="the loader",
            ),
        ),
    )
    builder = image(
        "builder",
        "builder",
        PackagePurpose.CONTAINER,
        "the compiler; busybox and libraries of it are contained",
    )
    document = Document(
        CreationInfo(
            "SPDX-2.3",
            "SPDXRef-DOCUMENT",
            f"{origin.image.name}@{origin.manifest}",
            f"https://spdx.org/spdxdocs/install-zfs-{origin.manifest.removeprefix('sha256:')}",
            [Actor(ActorType.TOOL, f"install-zfs-{__version__}")],
            origin.created.replace(tzinfo=None),
        ),
        [whole, *(part for _, part in parts), builder],
        relationships=[
            Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, whole.spdx_id),
            *(Relationship(whole.spdx_id, kind, part.spdx_id) for kind, part in parts),
            Relationship(builder.spdx_id, RelationshipType.BUILD_TOOL_OF, whole.spdx_id),
        ],
    )
    return dict(DocumentConverter().convert(document))


# Attached to an image


@dataclass(frozen=True)
class Attestation:
    """An attestation manifest, with the blobs that it names.

    Attributes:
        of: the digest of the manifest that it is about.
    """

    of: Digest
    manifest: Document
    blobs: tuple[bytes, ...]

    @cached_property
    def descriptor(self) -> dict[str, Any]:
        """How an index names it."""
        return {
            "mediaType": self.manifest.media_type,
            "digest": self.manifest.digest,
            "size": len(self.manifest.raw),
            "annotations": {_REFERENCE_DIGEST: self.of, _REFERENCE_TYPE: _ATTESTATION},
            "platform": {"architecture": "unknown", "os": "unknown"},
        }


def attest(origin: Origin) -> Attestation:
    """The SBOM and the provenance of an image, as a manifest."""
    subjects = [origin.subject]
    statements = {
        SPDX: statement(SPDX, sbom(origin), subjects),
        PROVENANCE: statement(PROVENANCE, provenance(origin), subjects),
    }
    config = _json(
        {
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": list(map(bytes_digest, statements.values()))},
        }
    )
    raw = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [
                {**_descriptor(_BLOB_TYPE, blob), "annotations": {_PREDICATE_TYPE: kind}}
                for kind, blob in statements.items()
            ],
        }
    )
    manifest = Document(bytes_digest(raw), OCI_MANIFEST, raw)
    return Attestation(origin.manifest, manifest, (config, *statements.values()))


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": bytes_digest(blob), "size": len(blob)}


def attached(index: Document) -> dict[Digest, dict[str, Any]]:
    """The descriptors of the attestation manifests in an index, by what they are about.

    Raises:
        PublishError: the index is not shaped as specified.
    """
    if not index.is_index:
        return {}
    try:
        found = {}
        for item in index.content["manifests"]:
            about = item.get("annotations") or {}
            if about.get(_REFERENCE_TYPE) == _ATTESTATION:
                parse_digest(item["digest"])
                found[parse_digest(about[_REFERENCE_DIGEST])] = dict(item)
    except MALFORMED as error:
        raise PublishError("is no index", on=index.digest, detail=repr(error)) from error
    return found


# Beside a tar


def sbom_name(tar: str) -> str:
    """The release asset with the SBOM of what another asset holds."""
    return f"{tar.removesuffix('.tar.xz')}.spdx.json"


def provenance_name(tar: str) -> str:
    """The release asset with the provenance of another asset, one statement a line."""
    return f"{tar.removesuffix('.tar.xz')}.intoto.jsonl"


def beside(origin: Origin, tar: Subject) -> dict[str, bytes]:
    """The SBOM and the provenance that lie beside a tar, by their names.

    Args:
        tar: the asset with the image.
    """
    about = statement(PROVENANCE, provenance(origin), [tar, origin.subject])
    return {
        sbom_name(tar.name): json.dumps(sbom(origin), indent=2, sort_keys=True).encode() + b"\n",
        provenance_name(tar.name): about + b"\n",
    }
