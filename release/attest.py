"""What an image was made of, and how: an SBOM and a provenance for each image and its tar.

Both follow from what is known of the image and from its digest alone, so that the same image gives
the same bytes, whoever publishes it. The SBOM is SPDX 2.3, which ``docker buildx imagetools
inspect`` shows; the provenance is SLSA's, version 1 (slsa.dev/spec/v1.0/provenance). They are
attached to an image the way BuildKit does it (buildkit,
``docs/attestations/attestation-storage.md``): a manifest in the index, of no platform, that names
the one which it is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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

BUILD_TOOL_OF = "BUILD_TOOL_OF"
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


@dataclass(frozen=True)
class Subject:
    """What a statement is about: a name and a digest."""

    name: str
    digest: Digest

    @property
    def fields(self) -> dict[str, Any]:
        return {"name": self.name, "digest": _hexadecimal(self.digest)}


@dataclass(frozen=True)
class Ingredient:
    """Something that an image was made of, for its SBOM.

    Attributes:
        key: tells it from the others of the image.
        purpose: what it is, and ``relation`` what it has to do with the image, by their names in
            SPDX 2.3 (spdx.github.io/spdx-spec/v2.3).
        url: its package URL.
    """

    key: str
    name: str
    purpose: str
    relation: str
    comment: str
    version: str = ""
    sha256: str = ""
    url: str = ""


@dataclass(frozen=True)
class Made:
    """What is told of an image of one platform.

    Attributes:
        manifest: of the image.
        version: of ZFS in it.
        comment: what it is, for people.
        builder: who built it, a URI.
        parameters: what was asked for, and ``details`` what else had a say.
        ingredients: what the SBOM names.
        materials: what it was made of, as SLSA's ResourceDescriptors.
    """

    image: Reference
    platform: Platform
    manifest: Digest
    created: datetime
    version: str
    comment: str
    builder: str
    kind: str
    parameters: Mapping[str, object]
    details: Mapping[str, object]
    ingredients: tuple[Ingredient, ...]
    materials: tuple[Mapping[str, Any], ...]

    @property
    def subject(self) -> Subject:
        return Subject(str(self.image.name), self.manifest)


@dataclass(frozen=True)
class Origin:
    """What the image of a kernel is, and what it was made of, as its labels say.

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
        return url_and_checksum(self.label(TARBALL_LABEL))

    @property
    def made(self) -> Made:
        """What is told of it."""
        zfs, source = (
            self.label("install-zfs.zfs-version"),
            self.label("org.opencontainers.image.source"),
        )
        return Made(
            self.image,
            self.platform,
            self.manifest,
            self.created,
            zfs,
            f"ZFS {zfs} for {self.label('install-zfs.kernel-banner')}",
            source,
            "module-image",
            {
                "kernelImage": self.label("install-zfs.kernel-image"),
                "platform": self.platform,
                "zfsVersion": zfs,
            },
            {
                "SOURCE_DATE_EPOCH": int(self.created.timestamp()),
                "smoke": self.label("install-zfs.smoke") or "boot",
            },
            self._ingredients(),
            tuple(self._materials()),
        )

    def _materials(self) -> Iterator[Mapping[str, Any]]:
        for what in ("kernel", "builder"):
            image = self.label(f"install-zfs.{what}-image")
            yield image_material(image, self.label(f"install-zfs.{what}-digest"))
        if headers := self.label("install-zfs.headers-image"):
            name, _, digest = headers.partition("@")
            yield image_material(name, digest)
        url, sha256 = self.tarball
        if url:
            yield file_material(url, sha256)
        yield from source_material(
            self.label("org.opencontainers.image.source"),
            self.label("org.opencontainers.image.revision"),
        )

    def _ingredients(self) -> tuple[Ingredient, ...]:
        url, sha256 = self.tarball
        return (
            Ingredient(
                "openzfs",
                "OpenZFS",
                "SOURCE",
                "GENERATED_FROM",
                "compiled to the kernel modules, and to zfs and zpool",
                self.label("install-zfs.zfs-version"),
                sha256,
                url,
            ),
            image_ingredient(
                "kernel",
                self.label("install-zfs.kernel-image"),
                self.label("install-zfs.kernel-digest"),
                "OPERATING_SYSTEM",
                "DEPENDS_ON",
                "compiled against its headers; modules of its own that ZFS needs are contained",
            ),
            loader(self.label("org.opencontainers.image.revision")),
            image_ingredient(
                "builder",
                self.label("install-zfs.builder-image"),
                self.label("install-zfs.builder-digest"),
                "CONTAINER",
                BUILD_TOOL_OF,
                "the compiler; busybox and libraries of it are contained",
            ),
        )


def loader(revision: str) -> Ingredient:
    """The project's own part of an image."""
    return Ingredient(
        "install-zfs", "install-zfs", "APPLICATION", "CONTAINS", "the loader", revision
    )


def image_ingredient(
    key: str, image: str, digest: str, purpose: str, relation: str, comment: str
) -> Ingredient:
    """An image that another one was made of."""
    reference = Reference.parse(image)
    url, sha256 = _package_url(reference, digest), digest.removeprefix("sha256:")
    name, version = str(reference), reference.tag or ""
    return Ingredient(key, name, purpose, relation, comment, version, sha256, url)


def file_material(uri: str, sha256: str) -> dict[str, Any]:
    """A file that was taken, as SLSA's ResourceDescriptor."""
    return {"uri": uri, "digest": {"sha256": sha256}}


def source_material(source: str, commit: str) -> Iterator[dict[str, Any]]:
    """The project's commit as SLSA's ResourceDescriptor, where it is known."""
    if commit:
        uri = f"git+{source}" if source else "urn:install-zfs:sources"
        yield {"uri": uri, "digest": {"gitCommit": commit}}


def url_and_checksum(package_url: str) -> tuple[str, str]:
    """A package URL without its qualifiers, and the SHA-256 that is one of them, or nothing."""
    url, _, qualifiers = package_url.partition("?")
    (checksum,) = parse_qs(qualifiers).get("checksum", [""])
    return url, (parse_digest(checksum) if checksum else "").removeprefix("sha256:")


def tarball_of(labels: Mapping[str, str]) -> Digest | None:
    """The digest of the OpenZFS tarball that an image was made of; None where no label says it."""
    _, sha256 = url_and_checksum(labels.get(TARBALL_LABEL, ""))
    return parse_digest(f"sha256:{sha256}") if sha256 else None


def image_material(image: str, digest: str) -> dict[str, Any]:
    """An image that was taken, as SLSA's ResourceDescriptor."""
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


def provenance(made: Made) -> dict[str, Any]:
    """How an image was built, as SLSA's predicate. It has no times of its own."""
    return {
        "buildDefinition": {
            "buildType": f"urn:install-zfs:{made.kind}:v1",
            "externalParameters": made.parameters,
            "internalParameters": made.details,
            "resolvedDependencies": made.materials,
        },
        "runDetails": {
            "builder": {
                "id": made.builder or "urn:install-zfs:local",
                "version": {"install-zfs": __version__},
            }
        },
    }


def sbom(made: Made) -> dict[str, Any]:
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

    def package(one: Ingredient) -> Package:
        return Package(
            f"SPDXRef-{one.key}",
            one.name,
            SpdxNoAssertion(),
            version=one.version or None,
            files_analyzed=False,
            checksums=[Checksum(ChecksumAlgorithm.SHA256, one.sha256)] if one.sha256 else [],
            license_concluded=SpdxNoAssertion(),
            license_declared=SpdxNoAssertion(),
            copyright_text=SpdxNoAssertion(),
            comment=one.comment or None,
            primary_package_purpose=PackagePurpose[one.purpose],
            external_references=[
                ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", one.url)
            ]
            if one.url
            else [],
        )

    def relationship(one: Ingredient, part: Package) -> Relationship:
        kind = RelationshipType[one.relation]
        if one.relation == BUILD_TOOL_OF:
            return Relationship(part.spdx_id, kind, whole.spdx_id)
        return Relationship(whole.spdx_id, kind, part.spdx_id)

    whole = package(
        Ingredient(
            "image",
            str(made.image.name),
            "CONTAINER",
            "DESCRIBES",
            made.comment,
            made.version,
            made.manifest.removeprefix("sha256:"),
            _package_url(made.image.name, made.manifest),
        )
    )
    parts = [package(one) for one in made.ingredients]
    document = Document(
        CreationInfo(
            "SPDX-2.3",
            "SPDXRef-DOCUMENT",
            f"{made.image.name}@{made.manifest}",
            f"https://spdx.org/spdxdocs/install-zfs-{made.manifest.removeprefix('sha256:')}",
            [Actor(ActorType.TOOL, f"install-zfs-{__version__}")],
            made.created.replace(tzinfo=None),
        ),
        [whole, *parts],
        relationships=[
            Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, whole.spdx_id),
            *map(relationship, made.ingredients, parts),
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


def attest(made: Made) -> Attestation:
    """The SBOM and the provenance of an image, as a manifest."""
    subjects = [made.subject]
    statements = {
        SPDX: statement(SPDX, sbom(made), subjects),
        PROVENANCE: statement(PROVENANCE, provenance(made), subjects),
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
    return Attestation(made.manifest, manifest, (config, *statements.values()))


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


def beside(made: Made, tar: Subject) -> dict[str, bytes]:
    """The SBOM and the provenance that lie beside a tar, by their names.

    Args:
        tar: the asset with the image.
    """
    about = statement(PROVENANCE, provenance(made), [tar, made.subject])
    return {
        sbom_name(tar.name): json.dumps(sbom(made), indent=2, sort_keys=True).encode() + b"\n",
        provenance_name(tar.name): about + b"\n",
    }
