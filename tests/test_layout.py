"""Image layouts: the sideload tar, and blobs that are not what their digest says."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from release.errors import PublishError
from release.http import bytes_digest
from release.layout import Layout
from release.reference import Digest, Reference
from release.registry import OCI_INDEX, OCI_MANIFEST

LAYERS = [b"the base", b"the modules"]
NAMES = (
    Reference.parse("install-zfs:linuxkit-kernel-5.4.39"),
    Reference.parse("ghcr.io/me/install-zfs:desktop-4.13.0"),
)


def put(directory: Path, content: bytes) -> dict[str, Any]:
    digest = bytes_digest(content)
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(content)}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    directory = tmp_path / "layout"
    config = {"config": {"Labels": {"install-zfs.zfs-version": "2.1.5"}}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(directory, json.dumps(config).encode()),
        "layers": [put(directory, layer) for layer in LAYERS],
    }
    index = {"schemaVersion": 2, "manifests": [put(directory, json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Layout(directory)


def saved(layout: Layout, to: Path) -> dict[str, bytes]:
    """The files in the sideload tar, in their order."""
    layout.save(to, NAMES)
    with tarfile.open(to) as tar:
        return {
            member.name: file.read()
            for member in tar
            if (file := tar.extractfile(member)) is not None
        }


def spoil(layout: Layout, content: bytes) -> Digest:
    digest = bytes_digest(content)
    layout.blob(digest).write_bytes(content[:-1] + b"!")
    return digest


def test_what_is_in_it(layout: Layout) -> None:
    assert layout.manifest.media_type == OCI_MANIFEST
    assert layout.labels() == {"install-zfs.zfs-version": "2.1.5"}
    assert [path.read_bytes() for path in layout.layers] == LAYERS
    assert [path.read_bytes() for _, path in layout.blobs()][1:] == LAYERS


def test_the_tar_is_one_for_every_docker(layout: Layout, tmp_path: Path) -> None:
    files = saved(layout, tmp_path / "zfs.tar")
    assert list(files)[:3] == ["oci-layout", "index.json", "manifest.json"]
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    assert index["mediaType"] == OCI_INDEX
    assert [item["annotations"]["io.containerd.image.name"] for item in index["manifests"]] == [
        "docker.io/library/install-zfs:linuxkit-kernel-5.4.39",
        "ghcr.io/me/install-zfs:desktop-4.13.0",
    ]
    assert {item["digest"] for item in index["manifests"]} == {layout.manifest.digest}
    (legacy,) = json.loads(files["manifest.json"])
    assert legacy["RepoTags"] == [
        "install-zfs:linuxkit-kernel-5.4.39",
        "ghcr.io/me/install-zfs:desktop-4.13.0",
    ]
    assert [files[name] for name in legacy["Layers"]] == LAYERS
    assert json.loads(files[legacy["Config"]]) == layout.config
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert name == "blobs/" + bytes_digest(content).replace(":", "/")


def test_the_same_layout_gives_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    layout.save(first, NAMES)
    for path in layout.path.rglob("*"):
        path.touch()
    layout.save(second, NAMES)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar", "layout", "second.tar"]


@pytest.mark.parametrize("content", LAYERS)
def test_a_layer_with_other_bytes_is_refused(
    layout: Layout, tmp_path: Path, content: bytes
) -> None:
    digest = spoil(layout, content)
    to = tmp_path / "zfs.tar"
    to.write_bytes(b"an earlier one")
    with pytest.raises(PublishError, match="a layer does not have its digest") as caught:
        _ = layout.layers
    assert digest in caught.value.on
    with pytest.raises(PublishError, match="a blob does not have its digest"):
        layout.save(to, NAMES)
    assert to.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "zfs.tar"]


def test_a_manifest_with_other_bytes_is_refused(layout: Layout) -> None:
    spoil(layout, layout.manifest.raw)
    with pytest.raises(PublishError, match="does not have its digest"):
        _ = layout.manifest


@pytest.mark.parametrize("number", [0, 2])
def test_only_one_image_is_expected(layout: Layout, number: int) -> None:
    file = layout.path / "index.json"
    index = json.loads(file.read_bytes())
    (item,) = index["manifests"]
    index["manifests"] = [{**item, "digest": f"sha256:{n:064x}"} for n in range(number)]
    file.write_text(json.dumps(index))
    with pytest.raises(PublishError, match="exactly one image"):
        _ = layout.manifest
