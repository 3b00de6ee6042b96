"""Images put together from tested layers, in a real registry, pulled by the engine and booted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import requests

from release import bounded, build, guest, publish
from release.boot import Emulator
from release.guest import Command
from release.http import Http
from release.layout import Layout
from release.reference import Platform, Reference, parse_digest
from release.registry import Registry
from release.resolve import Kernel
from release.world import World as PipelineWorld
from tests.lab.built import Built
from tests.lab.module_images import catalogue
from tests.lab.setup import Setup, requests_by_host
from tests.lab.world import LabKernel

pytestmark = pytest.mark.lab

AMD64 = Platform("linux/amd64")


def pulled(setup: Setup, tag: str, to: Path) -> Layout:
    """An image as the engine has pulled it."""
    client = setup.world.client
    reference = f"{setup.image}:{tag}"
    image = client.images.pull(reference)
    try:
        with to.with_suffix(".tar").open("wb") as file:
            file.writelines(image.save())
    finally:
        client.images.remove(reference, force=True)
    bounded.unpack(to.with_suffix(".tar"), to)
    return Layout(to)


def test_latest_loads_on_each_kernel_its_own_modules(
    setup: Setup,
    desktop_kernel: LabKernel,
    linuxkit_kernel: LabKernel,
    tmp_path: Path,
) -> None:
    kernels = (desktop_kernel, linuxkit_kernel)
    for kernel in kernels:
        setup.push(kernel)
    setup.write_versions()
    run = setup.run("sync", "--only", linuxkit_kernel.reference)
    assert run.exit_code == 0, run
    first = setup.tags()["latest"]
    run = setup.run("sync")
    assert run.exit_code == 0, run
    tags = setup.tags()
    assert tags["latest"] != first
    assert "latest: the modules of 2 kernels, " in run.stderr

    layout = pulled(setup, "latest", tmp_path / "latest")
    assert layout.labels()["install-zfs.kernels"] == "2"
    registry = Registry(Http(), {})
    tested = set()
    for entry in setup.load().kernels:
        document = registry.get(
            Reference.parse(setup.image).at(parse_digest(setup.manifest(entry.slug)))
        )
        tested |= {item["digest"] for item in document.content["layers"]}
    layers = [item["digest"] for item in layout.manifest.content["layers"]]
    assert set(layers[:-1]) <= tested
    # Of each kernel its modules; the loader and the commands of ZFS are the same for both.
    assert len(layers) == 5

    lines = catalogue(layout.layers[-1].read_bytes())
    assert {line.slug for line in lines} == {entry.slug for entry in setup.load().kernels}
    for line in lines:
        asset = requests.get(line.url, timeout=30).content
        assert (line.size, line.sha256) == (len(asset), hashlib.sha256(asset).hexdigest())

    pipeline = PipelineWorld(setup.load(), setup.environment, setup.directory / "cache")
    for kernel in kernels:
        files = pipeline.builder.kernel_files(
            Reference.parse(kernel.reference), parse_digest(kernel.manifest), AMD64
        )
        assert files.kernel
        boot = guest.run(
            [
                Command("load", "container /install-zfs"),
                Command("info", "container /install-zfs info"),
                Command("version", "cat /proc/version; cut -d' ' -f1 /proc/modules"),
            ],
            kernel=files.kernel,
            layers=layout.layers,
            architecture="amd64",
            log=tmp_path / f"{kernel.release}.log",
            emulator=Emulator(),
        )
        assert boot["load"].exit_code == 0, boot["load"]
        assert "zfs" in boot["version"].output.split()
        assert any(line.kernel_banner in boot["version"].output for line in lines)
        assert boot["info"].output.count("built for ") == 2

    idle = setup.run("sync", environment={"DOCKER_HOST": "unix:///nowhere"})
    assert idle.exit_code == 0, idle
    assert requests_by_host(idle.stderr) <= 8
    # Whatever happened to the tag is repaired, and no kernel is worked on for it.
    registry.put(
        Reference.parse(f"{setup.image}:latest"),
        registry.get(Reference.parse(f"{setup.image}@{first}")),
    )
    assert "latest is behind" in setup.run("plan").stdout
    repair = setup.run("sync")
    assert {one["status"] for one in repair.outcomes} == {"unchanged"}, repair
    assert setup.tags() == tags
    assert "latest is behind" not in setup.run("status").stdout


def test_the_modules_alone_are_the_tested_layers(
    built_in: Setup, built: Built, desktop_kernel: LabKernel, tmp_path: Path
) -> None:
    assert isinstance(built.facts, build.Built)
    whole = built.facts
    (entry,) = built_in.load().kernels
    kernel = Kernel(
        entry.image,
        parse_digest(desktop_kernel.digest),
        {AMD64: parse_digest(desktop_kernel.manifest)},
        desktop_kernel.created,
        {},
    )
    image = Reference.parse(built_in.image)
    publish.push(Registry(Http(), {}), image, entry.slug, kernel, [whole])
    pushed = publish.push(Registry(Http(), {}), image, entry.slug, kernel, [whole])
    assert built_in.tags().keys() == {entry.slug, f"{entry.slug}-modules"}

    alone = pulled(built_in, f"{entry.slug}-modules", tmp_path / "alone")
    names = [layer.name for layer in alone.layers]
    assert len(names) == 2
    assert set(names) < {layer.name for layer in built.layers}
    assert sum(layer.stat().st_size for layer in alone.layers) < 4_000_000
    assert alone.labels() == whole.layout.labels()
    tag = f"{entry.slug}-modules"
    assert pushed.modules
    assert pushed.modules.digest == built_in.tags()[tag]
    assert built_in.manifest(tag) == alone.manifest.digest
    built_in.empty()
