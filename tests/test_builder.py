"""The builder of real kernel images: what names it, and what its compiler turns out to be."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex

import pytest

from release import state
from release.build import Builder
from release.builders import TABLE, Choice, candidates, choose_builder, load_table
from release.compiler import Compiler
from release.errors import ConfigurationError, UpstreamError
from release.http import Http
from release.kernel import KernelFiles
from release.reference import Digest, Platform, Reference
from release.registry import Registry
from release.resolve import EPOCH, BuilderSource, Kernel, find_digests, read_kernel
from release.state import MOST_ATTEMPTS
from release.versions import Entry, parse
from tests.lab.debian import TRIXIE
from tests.lab.registry import Registry as LabRegistry
from tests.lab.setup import Setup
from tests.lab.world import LabKernel, World

AMD64 = Platform("linux/amd64")
LABEL = "org.mobyproject.linuxkit.kernel.buildimage"
HASH = "c" * 40


# What may name it


def named(image: str, *, label: str = "", file: str | None = None, banner: str = "") -> list[str]:
    entry = Entry(Reference.parse(image))
    kernel = Kernel(
        entry.image, Digest(f"sha256:{0:064}"), {}, EPOCH, {LABEL: label} if label else {}
    )
    files = KernelFiles(None, None, None, file)
    found = candidates(entry, kernel, files, Compiler.parse(banner), load_table(TABLE))
    return [f"{source} {text.removeprefix('docker.io/')}" for source, text in found]


def test_the_order_in_which_builders_are_looked_for() -> None:
    assert named(
        f"docker/for-desktop-kernel:5.10.104-{HASH}",
        label="linuxkit/alpine:1",
        file="linuxkit/alpine:2",
        banner="gcc (Alpine 9.2.0) 9.2.0",
    ) == [
        "label linuxkit/alpine:1",
        "tag docker/for-desktop-kernel:5.10.104-builder",
        "tag linuxkit/kernel:5.10.104-builder",
        "file linuxkit/alpine:2",
        "table linuxkit/alpine:e2391e0b164c57db9f6c4ae110ee84f766edc430",
    ]


def test_tags_beside_a_first_release_and_none_beside_no_version() -> None:
    assert named("linuxkit/kernel:5.10") == [
        "tag linuxkit/kernel:5.10-builder",
        "tag linuxkit/kernel:5.10.0-builder",
    ]
    assert named("docker/for-desktop-kernel:desktop-3.3.1") == []


# The table


def test_the_table_can_be_read() -> None:
    rows = load_table(TABLE)
    assert len({row.image for row in rows}) == len(rows)
    assert all(row.image.repository == "linuxkit/alpine" for row in rows)
    assert str(rows[0].compiler) == "gcc (Alpine 14.2.0) 14.2.0"


def test_a_row_that_makes_no_sense_is_named_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "builders.yaml"
    table.write_text("builders:\n  - compiler: tcc\n    image: a/b:1\n")
    with pytest.raises(ConfigurationError, match=r"builders\.yaml, line 2: names no compiler"):
        load_table(table)


def test_another_table_is_named_in_versions_yaml(tmp_path: Path) -> None:
    path = tmp_path / "versions.yaml"
    assert parse(path, "image: a/b\n").builders is None
    assert parse(path, "image: a/b\nbuilders: mine.yaml\n").builders == tmp_path / "mine.yaml"


# On real kernels


class Bench:
    """Kernel images that differ from the lab's in a label or a file, and what becomes of them."""

    def __init__(self, setup: Setup, kernel: LabKernel, directory: Path) -> None:
        self.setup = setup
        self.kernel = kernel
        self.host = setup.registry_host
        self.directory = directory
        self.table = directory / "builders.yaml"
        self.table.write_text("builders:\n")
        self.http = Http()
        self.registry = Registry(self.http, {})
        self.builder = Builder(directory / "cache", setup.environment)

    def variant(self, name: str, *, label: str = "", file: str = "") -> Reference:
        """The lab's kernel, with these and no other words on its builder."""
        reference = f"{self.host}/variants/{name}:6.1.1-{HASH}"
        recipe = self.directory / f"{name}.Dockerfile"
        lines = [
            f"FROM {self.kernel.reference} AS whole",
            "FROM scratch",
            "COPY --from=whole /kernel /kernel.tar /kernel-dev.tar /",
        ]
        if file:
            (self.directory / "kernel-builder").write_text(f"{file}\n")
            lines.append("COPY kernel-builder /")
        if label:
            lines.append(f"LABEL {LABEL}={label}")
        recipe.write_text("\n".join(lines) + "\n")
        self.setup.world.buildx.build(
            f"kernel with its {name}",
            recipe,
            output=f"type=image,name={reference},push=true,unpack=false",
        )
        self.setup.world.client.images.remove(reference)
        return Reference.parse(reference)

    def choose(self, image: Reference, builder: str = "") -> Choice:
        entry = Entry(image, builder=Reference.parse(builder) if builder else None)
        entry = find_digests(self.registry, entry)
        return choose_builder(
            self.registry,
            self.builder,
            entry,
            read_kernel(self.registry, entry),
            AMD64,
            self.table,
        )

    @property
    def compiled(self) -> bool:
        """Whether anything was compiled."""
        cache = self.setup.directory / "cache"
        return bool([*cache.glob("logs/*.build.log"), *cache.glob("images/*")])


@pytest.fixture
def bench(setup: Setup, desktop_kernel: LabKernel, tmp_path: Path) -> Bench:
    return Bench(setup, desktop_kernel, tmp_path)


@pytest.fixture(scope="session")
def wrong(world: World) -> str:
    """A builder with a newer compiler than the kernels of the tests."""
    return world.builder(TRIXIE)


def tag_beside(registry: LabRegistry, image: Reference, builder: str) -> str:
    """A ``-builder`` tag in the kernel's repository, as upstream makes them."""
    repository, _, image_tag = builder.partition("/")[2].rpartition(":")
    digest = registry.digest(repository, image_tag)
    assert digest
    registry.copy(repository, digest, image.repository, "6.1.1-builder", index=False)
    return digest


@pytest.mark.lab
def test_the_label_is_believed_where_it_is_true(bench: Bench) -> None:
    choice = bench.choose(bench.variant("label", label=bench.kernel.builder))
    assert str(choice.builder.image) == bench.kernel.builder
    assert choice.builder.source is BuilderSource.LABEL
    assert choice.builder.digest == bench.registry.head(choice.builder.image)
    assert choice.passed_over == ()
    assert str(choice.compiler).startswith("gcc (Debian 12.2.0-")


@pytest.mark.lab
def test_the_tag_beside_the_kernel(bench: Bench) -> None:
    image = bench.variant("tag")
    digest = tag_beside(bench.setup.world.registry(), image, bench.kernel.builder)
    choice = bench.choose(image)
    assert str(choice.builder.image) == str(image.with_tag("6.1.1-builder"))
    assert (choice.builder.source, choice.builder.digest) == (BuilderSource.TAG, digest)


@pytest.mark.lab
def test_the_file_in_the_kernel_image(bench: Bench) -> None:
    choice = bench.choose(bench.variant("file", file=bench.kernel.builder))
    assert str(choice.builder.image) == bench.kernel.builder
    assert choice.builder.source is BuilderSource.FILE
    assert len(choice.passed_over) == 2
    assert all(line.endswith("-builder: is not there") for line in choice.passed_over)


@pytest.mark.lab
def test_the_table_by_the_compiler(bench: Bench, wrong: str) -> None:
    right = bench.kernel.builder
    bench.table.write_text(
        f"builders:\n  - compiler: gcc (Debian 14.2.0-19) 14.2.0\n    image: {wrong}\n"
        f"  - compiler: gcc (Debian 12.2.0-1) 12.2.0\n    image: {right}-gone\n"
        f"  - compiler: gcc (Debian 12.2.0-14) 12.2.0\n    image: {right}\n"
    )
    choice = bench.choose(bench.variant("table"))
    assert (str(choice.builder.image), choice.builder.source) == (right, BuilderSource.TABLE)
    assert choice.passed_over[-1] == f"table {right}-gone: is not there"


@pytest.mark.lab
def test_a_label_that_lies_is_caught_and_the_next_is_taken(bench: Bench, wrong: str) -> None:
    choice = bench.choose(bench.variant("liar", label=wrong, file=bench.kernel.builder))
    assert (str(choice.builder.image), choice.builder.source) == (
        bench.kernel.builder,
        BuilderSource.FILE,
    )
    assert choice.passed_over[0].startswith(f"label {wrong}: has gcc (Debian 14.2.0-")


@pytest.mark.lab
def test_a_lying_label_alone_skips_the_kernel_before_anything_is_compiled(
    bench: Bench, wrong: str
) -> None:
    image = bench.variant("liar-alone", label=wrong)
    bench.setup.write_versions(f"  - image: {image}\n    zfs: 2.1.11\n")
    run = bench.setup.run("publish", "all")
    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert outcome["status"] == "skipped"
    assert "(gcc (Debian 12.2.0-" in outcome["reason"]
    assert f"label {wrong}: has gcc (Debian 14.2.0-" in outcome["reason"]
    assert "6.1.1-builder: is not there" in outcome["reason"]
    assert not bench.compiled


@pytest.mark.lab
def test_what_no_builder_is_known_for_is_tried_again_when_upstream_pushes_one(
    bench: Bench, wrong: str
) -> None:
    # The registry keeps what an earlier run of this test pushed.
    image = bench.variant(f"early-{token_hex(4)}", label=wrong)
    bench.setup.write_versions(f"  - image: {image}\n    zfs: 2.1.11\n")
    for times in range(1, MOST_ATTEMPTS + 1):
        assert bench.setup.run("sync").outcomes[0]["status"] == "skipped"
        failed = state.load(bench.setup.directory / state.NAME)
        (attempt,) = failed.attempts.values()
        assert attempt.times == times
    assert attempt.inputs.looked_at.split(", ") == [
        f"{wrong} {bench.registry.head(Reference.parse(wrong))}",
        f"{image.with_tag('6.1.1-builder')} -",
        f"{bench.host}/linuxkit/kernel:6.1.1-builder -",
    ]
    waits = "failed 3 times with the same inputs (no image with this kernel's compiler"
    assert waits in bench.setup.run("sync", "--verify").outcomes[0]["reason"]
    tag_beside(bench.setup.world.registry(), image, bench.kernel.builder)
    assert waits not in bench.setup.run("plan", "--verify").stdout
    assert not bench.compiled


@pytest.mark.lab
def test_a_wrong_builder_written_by_hand_fails_before_anything_is_compiled(
    bench: Bench, wrong: str
) -> None:
    bench.setup.write_versions(
        f"  - image: {bench.kernel.reference}\n    builder: {wrong}\n    zfs: 2.1.11\n"
    )
    run = bench.setup.run("publish", "all")
    assert run.exit_code == 1, run
    (outcome,) = run.outcomes
    assert outcome["status"] == "failed"
    assert "its builder has gcc (Debian 14.2.0-" in outcome["reason"]
    assert "compiled by gcc (Debian 12.2.0-" in outcome["reason"]
    assert not bench.compiled


@pytest.mark.lab
def test_a_registry_that_does_not_answer_has_not_said_no(bench: Bench) -> None:
    image = bench.variant(
        "silent", label="127.0.0.1:1/linuxkit/alpine:1", file=bench.kernel.builder
    )
    with pytest.raises(UpstreamError):
        bench.choose(image)
