"""The programs ``docker`` and ``qemu-system-…`` of :mod:`tests.recorded`, run as a process each.

They take the arguments of the real ones, answer from a directory of recorded results, and refuse
what they do not know. Of the standard library alone: each starts in hundredths of a second.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
POOL_STEPS = "create write snapshot overwrite export import scrub compare destroy"
LOADED = "taint 12289\navailable 400000\nfilesystem zfs\ndevice /dev/zfs\nmodule zfs"
UNLOADED = "taint 12289\navailable 400000"


def layer(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A layer's blob and the digest of the tar in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0), digest_of(buffer.getvalue())


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def docker(results: Path, arguments: list[str]) -> None:
    """``docker buildx version`` and ``inspect``, and ``docker buildx build`` to files."""
    builder = os.environ.get("BUILDX_BUILDER", "default")
    if arguments == ["buildx", "inspect", "--bootstrap"]:
        print((results / "platforms").read_text())
        return
    if arguments[:3] == ["buildx", "inspect", "--bootstrap"]:
        said = results / "builders" / arguments[3]
        if not said.is_file():
            raise SystemExit(f'ERROR: no builder "{arguments[3]}" found')
        print(said.read_text())
        return
    if arguments == ["buildx", "version"]:
        print("github.com/docker/buildx v0.30.0 recorded")
        return
    if arguments[:2] != ["buildx", "build"]:
        raise SystemExit(f"docker: no recorded result of {arguments}")
    options: dict[str, list[str]] = {}
    words = arguments[2:-1]
    for name, value in zip(words[::2], words[1::2], strict=True):
        options.setdefault(name, []).append(value)
    about = dict(value.split("=", 1) for value in options.get("--build-arg", []))
    output = dict(part.split("=", 1) for part in options["--output"][0].split(","))
    target = options.get("--target", [""])[0]
    if target == "compiler":
        Path(output["dest"]).mkdir()
        shutil.copy(results / "gcc", output["dest"])
        return
    labels = dict(value.split("=", 1) for value in options.get("--label", []))
    if target == "on-the-spot":
        contexts = dict(value.split("=", 1) for value in options["--build-context"])
        layers = on_the_spot_image(Path(contexts["openzfs"]))
        machine = (results / "machine").read_text()
        architecture = {name: arch for arch, name in MACHINES.items()}[machine]
        write_image(Path(output["dest"]), labels, architecture, layers)
        return
    recorded = results / about["KERNEL_IMAGE"].rpartition("@")[2].replace(":", "-")
    if target == "kernel-files":
        shutil.copytree(recorded / "files", output["dest"])
        return
    if target:
        raise SystemExit(f"docker: no recorded result of the target {target}")
    with (results / "built").open("a") as built:
        built.write(f"{about['KERNEL_NAME']}\n")
    with (results / "used").open("a") as used:
        used.write(f"{builder}\n")
    architecture = options["--platform"][0].partition("/")[2]
    layers = module_image(about, labels, architecture, (recorded / "zfs.ko").read_bytes())
    if (results / "salt").is_file():
        layers.insert(0, layer({"salt": (results / "salt").read_bytes()}))
    write_image(Path(output["dest"]), labels, architecture, layers)


def module_image(
    about: Mapping[str, str], labels: Mapping[str, str], architecture: str, module: bytes
) -> list[tuple[bytes, str]]:
    """The layers that the Dockerfile makes: the loader, the userland, the kernel's modules."""
    zfs, release = about["ZFS_VERSION"], labels["install-zfs.kernel-release"]
    facts = {
        "image": about["IMAGE"],
        "kernel_image": about["KERNEL_NAME"],
        "kernel_release": release,
        "kernel_banner": labels["install-zfs.kernel-banner"],
        "vermagic": labels["install-zfs.vermagic"],
        "architecture": MACHINES[architecture],
        "zfs_version": zfs,
        "build_id": about["BUILD_ID"],
    }
    directory = f"kernels/{release}-1"
    return [
        layer({"bin/busybox": b"busybox", "install-zfs": b"loader"}),
        layer({f"userland/{zfs}/zfs": b"zfs", f"userland/{zfs}/zpool": b"zpool"}),
        layer(
            {
                f"{directory}/kernel.env": "".join(
                    f"{name}={value}\n" for name, value in facts.items()
                ).encode(),
                f"{directory}/modules.load": b"zfs.ko\n",
                f"{directory}/zfs.ko": module,
            }
        ),
    ]


def on_the_spot_image(openzfs: Path) -> list[tuple[bytes, str]]:
    """The layers that the Dockerfile adds to the builder's: OpenZFS's sources, and the scripts."""
    sources = sorted(openzfs.glob("*.tar.gz"))
    return [
        layer({f"openzfs/{one.name}": one.read_bytes() for one in sources}),
        layer({"install-zfs": b"loader", "build/on-the-spot.sh": b"on the spot"}),
    ]


def write_image(
    to: Path, labels: Mapping[str, str], architecture: str, layers: list[tuple[bytes, str]]
) -> None:
    """An OCI layout in a tar, as BuildKit's exporter ``oci`` writes one."""
    blobs = {digest_of(blob): blob for blob, _ in layers}

    def descriptor(kind: str, blob: bytes) -> dict[str, Any]:
        blobs[digest_of(blob)] = blob
        return {"mediaType": f"{OCI}.{kind}", "digest": digest_of(blob), "size": len(blob)}

    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-05-01T00:00:00Z",
        "config": {"Entrypoint": ["/install-zfs"], "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": descriptor("config.v1+json", json.dumps(config).encode()),
        "layers": [descriptor("layer.v1.tar+gzip", blob) for blob, _ in layers],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [descriptor("manifest.v1+json", json.dumps(manifest).encode())],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
    }
    with tarfile.open(to, "w") as tar:
        for name, content in (
            *files.items(),
            *((f"blobs/{digest.replace(':', '/')}", blob) for digest, blob in blobs.items()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def qemu(arguments: list[str]) -> None:
    """A boot in which all goes well: what the guest's init writes to the console for each of the
    commands in the initramfs.
    """
    options = dict(itertools.pairwise(arguments))
    files = initramfs(Path(options["-initrd"]).read_bytes())
    banner = Path(options["-kernel"]).read_text()
    nonce = files["nonce"].decode().strip()
    print(banner, end="")
    answers = {
        "banner": banner.strip(),
        "state-after-boot": "taint 0\navailable 400000",
        "state-after-check": "taint 0\navailable 400000",
        "state-after-unload": UNLOADED,
        "pool": "\n".join(f"step {step} 1 390000" for step in POOL_STEPS.split()),
    }
    for path in sorted(files):
        if path.startswith("commands/"):
            numbered = path.removeprefix("commands/")
            name = numbered.partition("-")[2]
            said = answers.get(name, LOADED if name.startswith("state-after-") else "").split("\n")
            lines = [line for line in said if line]
            for line in lines:
                print(f"{nonce} {numbered} output {line}")
            print(f"{nonce} {numbered} exit 0 {len(lines)}")


def initramfs(archive: bytes) -> dict[str, bytes]:
    """The files of a cpio archive in the newc format."""
    files: dict[str, bytes] = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 109 + name_size].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return files
        files[name] = archive[at : at + size]
        at = (at + size + 3) // 4 * 4


if __name__ == "__main__":
    results, program, *rest = sys.argv[1:]
    if program == "docker":
        docker(Path(results), rest)
    else:
        qemu(rest)
