"""Layers told by their content, and the image without its userland."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from release.errors import PublishError
from release.http import bytes_digest
from release.layers import Image, Kind, file_layer, kind_of, without_userland
from release.registry import Document
from tests.lab.module_images import LOADER, REPOSITORY, entry, layer, put, userland
from tests.lab.small_registry import SmallRegistry

ONE = entry("5.4.1")


@pytest.mark.parametrize(
    ("blob", "kind"),
    [
        (LOADER[0], Kind.LOADER),
        (userland("2.1.5")[0], Kind.USERLAND),
        (layer({"kernels/1/zfs.ko": bytes(1 << 20)})[0][:400], Kind.KERNELS),
        (layer({"./kernels/1/zfs.ko": b""})[0], Kind.KERNELS),
        (layer({})[0], Kind.LOADER),
    ],
)
def test_a_layer_is_told_by_what_is_in_it(blob: bytes, kind: Kind) -> None:
    assert kind_of(blob) is kind


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(PublishError, match="not a tar archive"):
        kind_of(b"\x1f\x8bnothing")


def image(*, with_userland: bool) -> Image:
    with SmallRegistry() as server:
        digest = put(server, ONE, with_userland=with_userland)
        media_type, raw = server.manifests[REPOSITORY][digest]
        document = Document(bytes_digest(raw), media_type, raw)
        config = json.loads(server.blobs[document.content["config"]["digest"]])
        blobs = dict(server.blobs)
    return Image.read(document, config, lambda digest: blobs[digest])


def test_the_image_without_its_userland_has_the_tested_layers() -> None:
    whole = image(with_userland=True)
    alone = without_userland(whole)
    assert alone
    content, config = alone.manifest.content, json.loads(alone.config)
    kept = [one for one in whole.layers if one.kind is not Kind.USERLAND]
    assert [one.kind for one in kept] == [Kind.LOADER, Kind.KERNELS]
    assert [item["digest"] for item in content["layers"]] == [one.digest for one in kept]
    assert config["rootfs"]["diff_ids"] == [one.diff_id for one in kept]
    assert [entry["created_by"] for entry in config["history"]] == [
        "ARG X",
        "COPY 0",
        "COPY 2",
        "ENTRYPOINT",
    ]
    assert config["config"] == whole.config["config"]
    assert without_userland(whole) == alone, "the same bytes each time"


def test_an_image_without_userland_has_no_variant() -> None:
    assert without_userland(image(with_userland=False)) is None


def test_a_layer_of_one_file_reads_back() -> None:
    made, blob = file_layer("catalogue", b"a\tb\n")
    assert (made.digest, made.size) == (bytes_digest(blob), len(blob))
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        file = tar.extractfile("catalogue")
        assert file
        assert file.read() == b"a\tb\n"
    assert file_layer("catalogue", b"a\tb\n")[1] == blob
