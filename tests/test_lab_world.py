"""The lab's kernel images are what upstream's are."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.lab.buildx import IMAGES
from tests.lab.registry import MANIFESTS
from tests.lab.world import ALL, DESKTOP, KERNELS, LINUXKIT, KernelSource, LabKernel, World

pytestmark = pytest.mark.lab


@dataclass(frozen=True)
class Contents:
    """A kernel image, read back from the registry."""

    kernel: LabKernel
    labels: dict[str, str]
    files: dict[str, bytes]

    def tar(self, name: str) -> tarfile.TarFile:
        return tarfile.open(fileobj=io.BytesIO(self.files[name]))


@pytest.fixture(scope="module", params=ALL, ids=lambda source: f"{source.suite.name}-{source.rank}")
def contents(request: pytest.FixtureRequest, world: World) -> Contents:
    source: KernelSource = request.param
    kernel = world.kernel(source)

    def read(path: str) -> requests.Response:
        url = f"http://{world.registry().host}/v2/{source.repository}/{path}"
        answer = requests.get(url, headers={"Accept": MANIFESTS}, timeout=30)
        answer.raise_for_status()
        return answer

    manifest = read(f"manifests/{kernel.manifest}").json()
    (layer,) = manifest["layers"]
    unpacked = gzip.decompress(read(f"blobs/{layer['digest']}").content)
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        files = {
            member.name: opened.read() for member in tar if (opened := tar.extractfile(member))
        }
    config = read(f"blobs/{manifest['config']['digest']}").json()
    return Contents(kernel, config["config"]["Labels"], files)


def test_kernel_image_has_upstreams_files_and_label(contents: Contents) -> None:
    assert set(contents.files) == {"kernel", "kernel.tar", "kernel-dev.tar", "kernel-builder"}
    assert contents.labels == {
        "org.mobyproject.linuxkit.kernel.buildimage": contents.kernel.builder
    }
    assert contents.files["kernel-builder"].decode() == f"{contents.kernel.builder}\n"


def test_kernel_is_a_linux_kernel_of_that_release(contents: Contents) -> None:
    image = contents.files["kernel"]
    assert image[0x202:0x206] == b"HdrS"  # the kernel's Documentation/arch/x86/boot.rst
    version = 0x200 + int.from_bytes(image[0x20E:0x210], "little")
    assert image[version:].startswith(f"{contents.kernel.release} ".encode())


def test_modules_are_indexed_and_have_no_links_out(contents: Contents) -> None:
    directory = f"lib/modules/{contents.kernel.release}"
    with contents.tar("kernel.tar") as tar:
        names = tar.getnames()
        assert {f"{directory}/modules.dep", f"{directory}/modules.builtin"} <= set(names)
        assert [name for name in names if name.endswith((".ko", ".ko.xz"))]
        assert not [member.name for member in tar if member.issym()]


def test_headers_are_one_tree(contents: Contents) -> None:
    directory = f"usr/src/linux-headers-{contents.kernel.release}"
    with contents.tar("kernel-dev.tar") as tar:
        names = set(tar.getnames())
        for file in (".config", "Makefile", "Module.symvers", "scripts/mod/modpost"):
            assert f"{directory}/{file}" in names
        assert f"{directory}/vmlinux" not in names
        assert not [name for name in names if not f"{name}/".startswith(("usr/src/",))]
        assert not [member.name for member in tar if member.linkname.startswith("/")]


@pytest.mark.parametrize("name", ["kernel.tar", "kernel-dev.tar"])
def test_tars_depend_on_nothing_but_their_contents(contents: Contents, name: str) -> None:
    with contents.tar(name) as tar:
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
        names = tar.getnames()
    assert sorted(name.split("/") for name in names) == [name.split("/") for name in names]


def test_a_module_compiles_in_the_builder_image(
    contents: Contents, world: World, tmp_path: Path
) -> None:
    kernel = contents.kernel
    world.buildx.build(
        f"hello {kernel.release}",
        IMAGES / "hello.Dockerfile",
        output=f"type=local,dest={tmp_path}",
        args={
            "KERNEL": kernel.reference,
            "BUILDER": kernel.builder,
            "KERNEL_RELEASE": kernel.release,
        },
    )
    assert (tmp_path / "vermagic").read_text().startswith(f"{kernel.release} SMP ")
    log = (tmp_path / "make.log").read_text()
    assert "MODPOST" in log
    assert "Module.symvers is missing" not in log
    directory = f"usr/src/linux-headers-{kernel.release}"
    with contents.tar("kernel-dev.tar") as tar:
        config = tar.extractfile(f"{directory}/.config")
        assert config is not None
        (built_by,) = re.findall(r'CONFIG_CC_VERSION_TEXT="\S+ (.*)"', config.read().decode())
    compiler = (tmp_path / "compiler").read_text().splitlines()[0]
    assert compiler.partition(" ")[2] == built_by


def test_a_second_world_is_the_same_world(world: World) -> None:
    with World(world.directory) as again:
        assert [again.kernel(source) for source in ALL] == [world.kernel(source) for source in ALL]
    assert world.registry().digest(KERNELS, "none") is None, "the first one's registry stays"


def test_index_and_manifest(world: World) -> None:
    assert world.kernel(DESKTOP).digest != world.kernel(DESKTOP).manifest
    assert world.kernel(LINUXKIT).digest == world.kernel(LINUXKIT).manifest


def test_publishing_a_kernel_under_another_name_keeps_its_manifest(world: World) -> None:
    kernel = world.kernel(LINUXKIT)
    published = world.publish(kernel, "test-world/kernel", "moved", index=True)
    assert published.manifest == kernel.manifest
    assert published.digest == world.registry().digest("test-world/kernel", "moved")
    assert published.digest != kernel.digest


def test_openzfs_sources_have_what_a_build_needs(world: World) -> None:
    assert "2.1.11" in world.openzfs
    for version, path in world.openzfs.items():
        with tarfile.open(path) as tar:
            assert {f"zfs-{version}/configure", f"zfs-{version}/META"} <= set(tar.getnames())
