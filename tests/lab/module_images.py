"""Module images of a few bytes, in a small registry, with the releases that belong to them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from release.github import Asset, Release
from release.http import bytes_digest
from release.latest import CATALOGUE, Line
from release.layout import Layout
from release.plan import SUMS, asset_name, git_tag
from release.reference import Digest, Platform, Reference, architecture
from release.registry import OCI_INDEX, OCI_MANIFEST
from release.versions import Entry
from tests.lab.small_registry import SmallRegistry

AMD64, ARM64 = Platform("linux/amd64"), Platform("linux/arm64")
REPOSITORY = "me/zfs"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def layer(files: Mapping[str, bytes]) -> tuple[bytes, Digest]:
    """A layer's blob and the digest of the tar in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            for parent in ("/".join(name.split("/")[:n]) for n in range(1, name.count("/") + 1)):
                member = tarfile.TarInfo(parent)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    raw = buffer.getvalue()
    return gzip.compress(raw, mtime=0), bytes_digest(raw)


def catalogue(blob: bytes) -> list[Line]:
    """The lines of the layer with the catalogue."""
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        file = tar.extractfile(CATALOGUE)
        assert file
        return [_line(*line.split("\t", 7)) for line in file.read().decode().splitlines()]


def _line(
    arch: str, release: str, zfs: str, slug: str, size: str, sha256: str, url: str, banner: str
) -> Line:
    return Line(arch, release, zfs, slug, int(size), sha256, url, banner)


LOADER = layer({"bin/busybox": b"busybox", "install-zfs": b"loader"})


def userland(zfs: str) -> tuple[bytes, Digest]:
    return layer({f"userland/{zfs}/zfs": b"zfs", f"userland/{zfs}/zpool": b"zpool"})


def entry(version: str, *platforms: Platform, zfs: str = "2.1.5") -> Entry:
    """A kernel that is wholly known."""
    digests = {
        platform: bytes_digest(f"kernel {version} {platform}".encode())
        for platform in platforms or (AMD64,)
    }
    return Entry(
        Reference.parse(f"linuxkit/kernel:{version}"),
        bytes_digest(version.encode()),
        MappingProxyType(digests),
        Reference.parse("linuxkit/alpine:1"),
        zfs,
    )


def labels(one: Entry, platform: Platform) -> dict[str, str]:
    version = one.image.tag
    return {
        "org.opencontainers.image.created": f"2024-05-01T00:00:{int(str(version)[-1]):02}+00:00",
        "org.opencontainers.image.revision": "abc",
        "org.opencontainers.image.version": one.zfs or "",
        "install-zfs.builder-image": "linuxkit/alpine:1",
        "install-zfs.kernel-digest": one.platforms[platform],
        "install-zfs.kernel-image": str(one.image),
        "install-zfs.kernel-release": f"{version}-linuxkit",
        "install-zfs.kernel-banner": f"Linux version {version}-linuxkit (me@{platform}) #1 SMP",
        "install-zfs.zfs-version": one.zfs or "",
    }


def put(
    server: SmallRegistry,
    one: Entry,
    *,
    with_userland: bool = False,
    loader: tuple[bytes, Digest] = LOADER,
) -> str:
    """Publishes the module image of a kernel; returns what its slug points to."""
    manifests = []
    for platform, kernel in one.platforms.items():
        modules = layer({f"kernels/{one.image.tag}-1/zfs.ko": f"{kernel} {one.zfs}".encode()})
        layers = [loader, *([userland(one.zfs or "")] if with_userland else []), modules]
        config = {
            "architecture": architecture(platform),
            "os": "linux",
            "config": {"Entrypoint": ["/install-zfs"], "Labels": labels(one, platform)},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            "history": [
                {"created_by": "ARG X", "empty_layer": True},
                *({"created_by": f"COPY {n}"} for n in range(len(layers))),
                {"created_by": "ENTRYPOINT", "empty_layer": True},
            ],
        }
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": server.put_blob(json.dumps(config).encode()),
            "layers": [{"mediaType": LAYER, **server.put_blob(blob)} for blob, _ in layers],
        }
        digest = server.put(REPOSITORY, one.slug, manifest)
        about = {"os": "linux", "architecture": architecture(platform)}
        manifests.append({"mediaType": OCI_MANIFEST, "digest": digest, "platform": about})
    if len(manifests) == 1:
        return str(manifests[0]["digest"])
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return server.put(REPOSITORY, one.slug, index, OCI_INDEX)


def built(
    directory: Path, platform: Platform, labels: Mapping[str, str], module: bytes = b"zfs"
) -> Layout:
    """A module image as a build leaves it."""
    layout = Layout(directory)

    def put(content: bytes) -> dict[str, Any]:
        digest = bytes_digest(content)
        path = layout.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return {"digest": digest, "size": len(content)}

    layers = [LOADER, layer({"kernels/1/zfs.ko": str(platform).encode() + module})]
    config = {
        "architecture": architecture(platform),
        "os": "linux",
        "config": {"Entrypoint": ["/install-zfs"], "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        "history": [{"created_by": "COPY"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(json.dumps(config).encode()),
        "layers": [{"mediaType": LAYER, **put(blob)} for blob, _ in layers],
    }
    described = {"mediaType": OCI_MANIFEST, **put(json.dumps(manifest).encode())}
    (directory / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [described]})
    )
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layout


def release(
    one: Entry, *platforms: Platform, draft: bool = False, salt: str = "", body: str = ""
) -> Release:
    """The release of a kernel."""
    git = git_tag(one.slug, one.zfs or "")

    def asset(name: str) -> Asset:
        url = f"https://github.com/me/zfs/releases/download/{git}/{name}"
        return Asset(
            1, name, "uploaded", 1000, bytes_digest(f"{git}{name}{salt}".encode()), "", url
        )

    names = [asset_name(one.slug, platform) for platform in platforms or one.platforms]
    return Release(
        id=1,
        git_tag=git,
        name="",
        draft=draft,
        prerelease=False,
        immutable=False,
        body=body,
        url="",
        upload_url="",
        created=None,
        assets=tuple(map(asset, (*names, SUMS))),
    )
