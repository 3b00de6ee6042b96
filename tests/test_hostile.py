"""What others wrote, at its worst: nothing but a value or an expected failure comes of it, in
bounded time and memory, and it stays inside the place that it is shown in.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from release import bounded, initramfs, latest, notes, publish, symbols, tags, versions
from release.build import strangers
from release.errors import PublishError, ReleaseError, ResolveError, SmokeError, UpstreamError
from release.github import GitHub
from release.http import Http, Response
from release.hub import Hub
from release.kernel import (
    KernelFiles,
    expected_vermagic,
    read_banner,
    read_build_id,
    read_headers,
    read_members,
)
from release.layers import Image, kind_of
from release.layout import Layout, saved_labels
from release.openzfs import OpenZFS
from release.poll import poll
from release.reference import Digest, Reference
from release.registry import OCI_INDEX, OCI_MANIFEST, Document, Registry
from release.report import Outcome, Report, Status, table
from release.resolve import read_kernel
from release.solver import parse_meta
from release.tarballs import Tarballs
from release.versions import Entry
from tests.lab.module_images import layer
from tests.lab.server import LabServer, Request
from tests.lab.server import Response as Answer
from tests.lab.small_registry import SmallRegistry
from tests.test_layout import put

FEW = settings(max_examples=60)
MANY = settings(max_examples=300)

# Answers


class Says(LabServer):
    """Answers whatever is asked with the same bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}
        self.body = b""

    def respond(self, request: Request) -> Answer:
        for _ in request.body:
            pass
        return Answer(200, self.headers, self.body)


@pytest.fixture(scope="module")
def server() -> Iterator[Says]:
    with Says() as server:
        yield server


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(allow_nan=False),
    st.just(float("inf")),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "../../etc/passwd", "sha256:" + "0" * 64, "\x1b[2J", "http://["]),
    st.just([]),
    st.just({}),
)
ANY_JSON = st.recursive(
    ODD, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)


def mutated(true: Any) -> st.SearchStrategy[Any]:
    """A true answer in which parts are replaced, lost, or put in lists."""

    def inner(value: Any) -> st.SearchStrategy[Any]:
        if isinstance(value, dict):
            parts: st.SearchStrategy[Any] = st.fixed_dictionaries(
                {}, optional={name: inner(part) for name, part in value.items()}
            )
            whole = st.fixed_dictionaries({name: inner(part) for name, part in value.items()})
            return whole | parts | ODD
        if isinstance(value, list):
            return st.tuples(*map(inner, value)).map(list) | ODD
        return st.just(value) | st.just(value) | st.just(value) | ODD

    return inner(true) | ANY_JSON


RELEASES = [
    {
        "id": 1,
        "tag_name": "zfs-2.3.4",
        "name": "x",
        "draft": False,
        "prerelease": False,
        "immutable": False,
        "body": "x",
        "url": "http://127.0.0.1/1",
        "upload_url": "http://127.0.0.1/1{?name}",
        "created_at": "2025-01-01T00:00:00Z",
        "assets": [
            {
                "id": 1,
                "name": "zfs-2.3.4.tar.gz",
                "state": "uploaded",
                "size": 1,
                "digest": "sha256:" + "0" * 64,
                "url": "http://127.0.0.1/1",
                "browser_download_url": "http://127.0.0.1/1",
            }
        ],
    }
]
PAGE = {
    "count": 1,
    "next": None,
    "results": [
        {
            "name": "5.4.39",
            "digest": "sha256:" + "0" * 64,
            "tag_last_pushed": "2024-05-01T00:00:00Z",
            "images": [
                {
                    "os": "linux",
                    "architecture": "amd64",
                    "variant": None,
                    "digest": "sha256:" + "0" * 64,
                }
            ],
        }
    ],
}
INDEX = {
    "mediaType": OCI_INDEX,
    "manifests": [
        {
            "digest": "sha256:" + "0" * 64,
            "platform": {"os": "linux", "architecture": "amd64", "variant": "v8"},
        }
    ],
}


def ask(server: Says, answer: Any, call: Callable[[], object]) -> None:
    """Nothing but a value or an expected failure comes of an answer."""
    server.body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with suppress(ReleaseError):
        call()


def github(server: Says) -> GitHub:
    return GitHub(Http(), server.url, "openzfs/zfs", None)


@MANY
@given(answer=mutated(RELEASES))
def test_releases_of_any_shape(server: Says, answer: Any, tmp_path_factory: Any) -> None:
    def look() -> None:
        directory = tmp_path_factory.mktemp("zfs")
        OpenZFS(github(server), directory, Tarballs(directory / "openzfs.yaml")).versions()

    ask(server, answer, look)
    ask(server, answer, lambda: github(server).may_write())


@FEW
@given(answer=mutated({"content": "TWV0YTogMQo="}))
def test_a_file_of_any_shape(server: Says, answer: Any) -> None:
    ask(server, answer, lambda: github(server).content("META", "zfs-2.3.4"))


@MANY
@given(answer=mutated(PAGE))
def test_a_page_of_tags_of_any_shape(server: Says, answer: Any) -> None:
    ask(server, answer, lambda: Hub(Http(), server.url, {}).page(Reference.parse("linuxkit/a"), 1))


@MANY
@given(answer=mutated(INDEX), tags=mutated({"tags": ["1"]}))
def test_a_registry_of_any_shape(server: Says, answer: Any, tags: Any) -> None:
    registry, image = Registry(Http(), {}), Reference.parse(f"127.0.0.1:{server.port}/a/b:1")
    ask(server, answer, lambda: registry.platforms(image, registry.get(image)))
    ask(server, tags, lambda: registry.tags(image))


CONFIG = {
    "created": "2024-05-01T00:00:00.123456789Z",
    "os": "linux",
    "architecture": "amd64",
    "config": {"Labels": {"org.mobyproject.linuxkit.kernel.buildimage": "linuxkit/alpine:1"}},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
}
MANIFEST = {
    "mediaType": OCI_MANIFEST,
    "config": {"digest": "sha256:" + "0" * 64, "size": 1},
    "layers": [{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1}],
}


@FEW
@given(config=mutated(CONFIG))
def test_a_kernel_image_s_configuration_of_any_shape(config: Any) -> None:
    with SmallRegistry() as server:
        raw = json.dumps(config).encode()
        manifest = Digest(
            server.put("a/b", "1", {**MANIFEST, "config": server.put_blob(raw), "layers": []})
        )
        image = Reference.parse(f"{server.host}/a/b:1")
        entry = Entry(image, manifest, MappingProxyType({"linux/amd64": manifest}))  # type: ignore[dict-item]
        try:
            kernel = read_kernel(Registry(Http(), {}), entry)
        except ReleaseError:
            return
        assert all(isinstance(text, str) for pair in kernel.labels.items() for text in pair)


@MANY
@given(manifest=mutated(MANIFEST), config=mutated(CONFIG))
def test_a_module_image_of_any_shape(manifest: Any, config: Any) -> None:
    raw = json.dumps(manifest).encode()
    document = Document(Digest("sha256:" + "0" * 64), OCI_MANIFEST, raw)
    with suppress(PublishError):
        Image.read(document, config, lambda _: layer({"kernels/x/zfs.ko": b"x"})[0])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 10_000,
        b"NaN",
        b"[Infinity]",
        b"\xff\xfe",
        b"\xed\xa0\x80",
    ],
    ids=["nested", "nested objects", "a number", "NaN", "infinity", "no UTF-8", "half a character"],
)
def test_json_that_is_none(body: bytes) -> None:
    with pytest.raises(UpstreamError, match="not JSON"):
        Response("http://localhost/?token=hunter2", 200, {}, body).json()


def test_half_a_character_does_not_reach_a_file_or_a_terminal(
    server: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = json.dumps(
        {"count": 1, "next": None, "results": [{"name": "5.4\ud83d", "images": []}]}
    ).encode()
    page = Hub(Http(), server.url, {}).page(Reference.parse("linuxkit/a"), 1)
    table(("TAG",), [(page.tags[0].image_tag,)])
    assert capsys.readouterr().out == "TAG\n5.4\ufffd\n"


def test_a_list_that_never_ends_is_given_up(server: Says) -> None:
    try:
        server.headers = {"Link": '</v2/a/b/tags/list?last=1>; rel="next"'}
        server.body = b'{"tags": ["1"]}'
        image = Reference.parse(f"127.0.0.1:{server.port}/a/b")
        with pytest.raises(UpstreamError, match="more than 1000 pages"):
            Registry(Http(), {}).tags(image)
        server.body = b"[]"
        server.headers = {"Link": f'<{server.url}/more>; rel="next"'}
        with pytest.raises(UpstreamError, match="more than 100 pages"):
            github(server).releases()
    finally:
        server.headers = {}


@pytest.mark.parametrize("location", ["http://[", "http://[::1", "file:///etc/passwd"])
def test_a_redirection_to_no_url(server: Says, location: str) -> None:
    server.fail("", Answer(307, {"Location": location}))
    with pytest.raises(UpstreamError, match=r"could not be reached|not JSON"):
        Http().request("GET", f"{server.url}/x").json()
    server.recover()


@pytest.mark.parametrize("header", ['Bearer realm="http://["', "Bearer realm=", "Bearer", "x y"])
def test_a_challenge_that_is_none(server: Says, header: str) -> None:
    server.fail("", Answer(401, {"WWW-Authenticate": header}), times=None)
    try:
        with pytest.raises(ReleaseError):
            Registry(Http(), {}).head(Reference.parse(f"127.0.0.1:{server.port}/a/b:1"))
    finally:
        server.recover()


@pytest.mark.parametrize("link", ["http://[", "//[", "?last=x"])
def test_a_next_page_at_no_url(server: Says, link: str) -> None:
    server.headers = {"Link": f'<{link}>; rel="next"'}
    server.body = b'{"tags": ["1"]}'
    try:
        with pytest.raises(UpstreamError):
            Registry(Http(), {}).tags(Reference.parse(f"127.0.0.1:{server.port}/a/b"))
    finally:
        server.headers = {}


# Too much


def test_an_answer_that_unpacks_to_more_than_anybody_has_is_refused(server: Says) -> None:
    """100 MB of nothing in 100 kB, without ever being in memory."""
    server.body, server.headers = gzip.compress(bytes(100 << 20)), {"Content-Encoding": "gzip"}
    try:
        with pytest.raises(UpstreamError, match="answered with more than 64 MiB"):
            Http().request("GET", f"{server.url}/x")
    finally:
        server.headers = {}


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content, 1),
    "xz": lambda content: lzma.compress(content, preset=0),
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor(level=1).compress,
}


@pytest.mark.parametrize(
    ("kind", "unpack"),
    [
        ("gz", bounded.gunzip),
        ("xz", bounded.unlzma),
        ("bz2", bounded.unbzip2),
        ("zst", bounded.unzstd),
    ],
)
def test_unpacking_stops_at_a_limit(kind: str, unpack: Callable[[bytes, int], bytes]) -> None:
    packed = PACKERS[kind](bytes(20 << 20))
    assert len(packed) < 1 << 20
    assert unpack(packed, 20 << 20) == bytes(20 << 20)
    with pytest.raises(bounded.TooMuchError):
        unpack(packed, 1 << 20)


def test_xz_that_wants_all_memory_is_refused() -> None:
    greedy = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed = lzma.compress(b"x", filters=greedy, check=lzma.CHECK_CRC32)
    with pytest.raises(lzma.LZMAError):
        bounded.unlzma(packed)
    with pytest.raises(lzma.LZMAError), bounded.opened_tar(io.BytesIO(packed)):
        pass


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_tar_stops_at_a_limit(tmp_path: Path, kind: str) -> None:
    tar = tmp_path / "kernel-dev.tar"
    with tarfile.open(tar, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, size in (("a/include/generated/utsrelease.h", 4), ("a/b", 30 << 20), ("c", 4)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    with (
        pytest.raises(bounded.TooMuchError, match="tar of more than 16 MiB"),
        bounded.opened_tar(tar, most=16 << 20) as opened,
    ):
        opened.getnames()


def test_a_member_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    """A header may name any size, of a file or of its own extension."""
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        member = tarfile.TarInfo("a/include/generated/utsrelease.h")
        member.size, member.type = 1 << 40, kind
        tar = tmp_path / "kernel-dev.tar"
        tar.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
        with pytest.raises(ResolveError, match=r"is corrupt|names no kernel release"):
            read_headers(tar, "amd64")


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
from release.errors import ReleaseError
from release.kernel import read_banner, expected_vermagic, read_headers
for call in (lambda: read_banner(Path(sys.argv[1])),
             lambda: expected_vermagic(Path(sys.argv[2])),
             lambda: read_headers(Path(sys.argv[2]), "amd64")):
    try:
        call()
    except ReleaseError as error:
        print("refused:", error.what)
"""


def test_bombs_in_a_kernel_image_are_refused_within_900_mb(tmp_path: Path) -> None:
    """A kernel of 2 GiB in 2 MB, and a module of 2 GiB in 2 MB in a tar."""
    pieces = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(pieces.compress(bytes(1 << 24)) for _ in range(128)) + pieces.flush()
    head = bytearray(0x400)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = (0).to_bytes(4, "little") + len(bomb).to_bytes(4, "little")
    kernel, modules = tmp_path / "kernel", tmp_path / "kernel.tar"
    kernel.write_bytes(bytes(head) + bomb)
    with tarfile.open(modules, "w") as archive:
        for name in ("a/dummy.ko.zst", "a/include/generated/utsrelease.h"):
            member = tarfile.TarInfo(name)
            member.size = len(bomb)
            archive.addfile(member, io.BytesIO(bomb))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(kernel), str(modules)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "refused: no kernel banner can be found in it",
        "refused: is corrupt",
        "refused: kernel-dev.tar names no kernel release in include/generated/utsrelease.h",
    ]


def test_a_poll_of_ten_megabytes_of_tags_takes_seconds_and_its_budget(
    server: Says, tmp_path: Path
) -> None:
    names = [f"{n % 7 + 1}.{n % 20}.{n}-{n:040x}" for n in range(190_000)]
    server.body = json.dumps({"name": "a/b", "tags": names}).encode()
    server.headers = {"Docker-Content-Digest": "sha256:" + "0" * 64, "Content-Type": OCI_MANIFEST}
    assert len(server.body) > 10_000_000
    host, file = f"127.0.0.1:{server.port}", tmp_path / "versions.yaml"
    file.write_text(
        f"image: {host}/me/zfs\nrequest_budget: 20\n"
        f"sources:\n- repository: {host}/a/b\nkernels: []\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    http = Http()
    try:
        polled = poll(versions.load(file), http, Registry(http, {}), {})
    finally:
        server.headers = {}
    seconds = time.process_time() - started
    assert http.requests.total() == 20
    assert [error.what for error in polled.failures] == [
        "189981 tags could not be looked at: the budget of 20 requests is used up"
    ]
    assert seconds < 30, f"{seconds:.1f} s"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "kB"


@pytest.mark.parametrize("line", ["Linux version 1 (", "Linux version 1 (#1", "#1", "( " * 50])
def test_a_kernel_full_of_beginnings_of_banners_is_read_in_seconds(
    tmp_path: Path, line: str
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(line.encode() * ((4 << 20) // len(line)))
    started = time.process_time()
    with pytest.raises(ResolveError, match="no kernel banner"):
        read_banner(kernel)
    assert time.process_time() - started < 20


def test_release_notes_of_two_megabytes_are_read_in_seconds() -> None:
    text = "## Docker Desktop 4.13.0\n\n" + "- Linux kernel [v5.15.49](https://x)\n" * 54_000
    started = time.process_time()
    notes.parse_notes(text, "https://example.org")
    assert time.process_time() - started < 20


# Tars


def member(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    content = fields.pop("content", b"")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


HOSTILE = {
    "climbs": member("../../etc/cron.d/x", content=b"x"),
    "climbs in the middle": member("kernels/../../x", content=b"x"),
    "absolute": member("/etc/passwd", content=b"x"),
    "link to an absolute path": member("kernels/a/l", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
    "link that climbs": member("kernels/a/l", type=tarfile.SYMTYPE, linkname="../../../x"),
    "hard link to nothing": member("kernels/a/l", type=tarfile.LNKTYPE, linkname="/etc/shadow"),
    "hard link to itself": member("kernels/a/l", type=tarfile.LNKTYPE, linkname="kernels/a/l"),
    "device": member("kernels/a/d", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "fifo": member("kernels/a/f", type=tarfile.FIFOTYPE),
    "not UTF-8": member("kernels/a/\udcff", content=b"x"),
    "another file": member("install-zfs", content=b"x"),
    "long name": member("kernels/" + "a/" * 2000 + "x", content=b"x"),
    "empty name": member("", content=b"x"),
}


def hostile_tar(path: Path, name: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in (
            member("usr/src/linux-headers/include/generated/utsrelease.h", content=b"x"),
            HOSTILE[name],
        ):
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_writes_and_reads_nothing_outside(tmp_path: Path, name: str) -> None:
    """Kernel tars are read in place: nothing of them becomes a file, and no link is followed."""
    tar = hostile_tar(tmp_path / "kernel-dev.tar", name)
    before = sorted(tmp_path.rglob("*"))
    found = read_members(tar, ("include/generated/utsrelease.h", "shadow", "passwd", "x"))
    assert "root:" not in "".join(found.values())
    assert expected_vermagic(tar) is None
    with suppress(SmokeError):
        entries = initramfs.from_layers([tar], under="image")
        initramfs.write(entries, io.BytesIO())
        assert all(entry.path.split("/")[0] == "image" for entry in entries)
        assert b"root:" not in b"".join(entry.data for entry in entries)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../outside", "/outside", "link/outside", "device"])
@pytest.mark.parametrize("how", ["data", "tar"])
def test_what_is_unpacked_stays_in_its_directory(tmp_path: Path, name: str, how: str) -> None:
    outside = tmp_path / "outside"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        member = tarfile.TarInfo(name)
        if name == "device":
            member.type = tarfile.CHRTYPE
        for one in (link, member) if name.startswith("link") else (member,):
            tar.addfile(one)
    with suppress(*bounded.CORRUPT):
        bounded.unpack(tmp_path / "a.tar", tmp_path / "in" / "here", how=how)
        # What would lead out was cut off, or is refused only where nothing is trusted.
        assert name == "/outside" or (name, how) == ("device", "tar")
    assert not outside.exists()
    assert not (tmp_path / "in" / "outside").exists()
    assert not Path("/outside").exists()


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"empty name"}))
def test_nothing_but_modules_leaves_the_container_that_compiled_them(
    tmp_path: Path, name: str
) -> None:
    """Whatever a kernel image did to its container, its layer holds modules or is refused."""
    good = [member(f"kernels/x/{file}") for file in ("zfs.ko", "modules.load", "kernel.env")]
    for hostile in (False, True):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for info, content in (*good, *([HOSTILE[name]] if hostile else [])):
                archive.addfile(info, io.BytesIO(content))
        directory = tmp_path / str(hostile)
        manifest = {
            "mediaType": OCI_MANIFEST,
            "config": put(directory, b"{}"),
            "layers": [put(directory, gzip.compress(buffer.getvalue()))],
        }
        index = {"manifests": [put(directory, json.dumps(manifest).encode())]}
        (directory / "index.json").write_text(json.dumps(index))
        assert bool(list(strangers(Layout(directory)))) is hostile


def test_a_link_in_a_kernel_image_is_not_followed_to_this_machine_s_files(tmp_path: Path) -> None:
    """BuildKit exports links as they are, and what is said of a builder is shown."""
    secret = tmp_path / "config.json"
    secret.write_text("hunter2")
    files = tmp_path / "files"
    files.mkdir()
    names = ("kernel", "kernel.tar", "kernel-dev.tar", "kernel-builder", "kernel-banner")
    for name in (*names, "kernel-build-id"):
        (files / name).symlink_to(secret)
    assert KernelFiles.inside(files) == KernelFiles(None, None, None, None)


@MANY
@given(content=st.binary(max_size=2000), start=st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"BZh9"]))
def test_any_bytes_as_a_tar(tmp_path_factory: Any, content: bytes, start: bytes) -> None:
    read_anything(tmp_path_factory.mktemp("any"), start + content)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(HOSTILE)),
    kind=st.sampled_from(["", "gz", "xz", "bz2"]),
    places=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=12),
    cut=st.integers(1, 10_240),
)
def test_a_tar_with_some_bytes_changed(
    tmp_path_factory: Any, name: str, kind: str, places: list[tuple[int, int]], cut: int
) -> None:
    directory = tmp_path_factory.mktemp("any")
    content = bytearray(hostile_tar(directory / "tar", name).read_bytes())
    for place, value in places:
        content[place] = value
    raw = bytes(content[:cut])
    read_anything(directory, PACKERS[kind](raw) if kind else raw)


def read_anything(directory: Path, content: bytes) -> None:
    """Reads bytes as everything that they could be; only expected failures come of it."""
    file = directory / "file"
    file.write_bytes(content)
    calls: tuple[Callable[[], object], ...] = (
        lambda: read_members(file, ("a", "utsrelease.h")),
        lambda: read_headers(file, "amd64"),
        lambda: expected_vermagic(file),
        lambda: read_banner(file),
        lambda: read_build_id(file),
        lambda: initramfs.from_layers([file], under="image"),
        lambda: kind_of(content),
        lambda: saved_labels(file),
        lambda: symbols.read_module("zfs.ko", content),
    )
    for call in calls:
        with suppress(ReleaseError):
            call()


# Texts


@MANY
@given(text=st.text())
def test_any_text_is_a_value_or_a_refusal(text: str) -> None:
    for parse in (
        tags.ImageTag.parse,
        symbols.read_symvers,
        lambda text: parse_meta(text, "META"),
        Reference.parse,
        lambda text: notes.parse_notes(text, "https://example.org"),
    ):
        with suppress(ReleaseError):
            parse(text)


@MANY
@given(text=st.text(st.characters(exclude_categories=())), kernel=st.text())
def test_any_text_stays_in_its_cell_and_its_line(
    tmp_path_factory: Any, text: str, kernel: str
) -> None:
    file = tmp_path_factory.mktemp("summary") / "summary.md"
    Report({"GITHUB_STEP_SUMMARY": str(file)}).outcomes(
        [Outcome(kernel, "linux/amd64", Status.FAILED, text)], None
    )
    lines = file.read_text().split("\n")
    assert len(lines) == 4
    assert lines[2].count("|") == 6
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert all(not cell or (cell[0] == cell[-1] == "`" and "`" not in cell[1:-1]) for cell in cells)


COMMANDS = [
    "::error::x",
    "  ::stop-commands::x",
    "fine\n::set-output name=a::b",
    "x ##[error]x",
    "\x1b[2J\x1b]0;x\x07",
    "a\r::error::x",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_other_people_s_text_is_no_command_of_actions_nor_of_a_terminal(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    report = Report({"GITHUB_ACTIONS": "true"})
    report.say(text)
    table(("A",), [("published " + text,)])
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert not line.lstrip().startswith("::")
        assert "##[" not in line
        assert "\x1b" not in line
        assert "\r" not in line


def test_a_summary_is_never_more_than_github_takes(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    many = [Outcome("k" * 60, "linux/amd64", Status.FAILED, "x" * 5000)] * 1000
    Report({"GITHUB_STEP_SUMMARY": str(file)}).outcomes(many, None)
    assert len(file.read_bytes()) < 1 << 20
    assert file.read_text().splitlines()[-1].endswith(" more")


@pytest.mark.parametrize(
    "banner",
    [
        "x` | </details><script>alert(1)</script> [click](https://evil.example) | `",
        "x\n\n# Heading\n",
        "@everyone closes #1",
        "\x1b[31m",
    ],
)
def test_a_banner_stays_code_in_the_release_s_text(banner: str) -> None:
    shown = publish._code(banner)
    assert "`" not in shown
    assert "|" not in shown
    assert shown.isprintable()


# Our own repository, to which somebody else pushed


@pytest.mark.parametrize(
    "labels",
    [
        {"install-zfs.zfs-version": "../../../etc"},
        {"install-zfs.zfs-version": "2.1.5\n- image: x"},
        {"install-zfs.zfs-version": ""},
        {"install-zfs.builder-image": "a b"},
        {"install-zfs.builder-image": "$(id)"},
        {"install-zfs.kernel-image": ""},
        {"install-zfs.kernel-image": "../../kernel"},
    ],
)
def test_an_image_whose_labels_are_no_names_is_not_taken_for_ours(labels: dict[str, str]) -> None:
    kernel = Digest("sha256:" + "1" * 64)
    ours = {
        "install-zfs.kernel-digest": kernel,
        "install-zfs.zfs-version": "2.1.5",
        "install-zfs.builder-image": "linuxkit/alpine:1",
        "install-zfs.kernel-image": "linuxkit/kernel:5.4.39",
    }
    assert publish._is_ours(ours, kernel)
    assert not publish._is_ours({**ours, **labels}, kernel)


@pytest.mark.parametrize("size", [0, 10**12, -1, "9", None])
def test_a_blob_of_another_size_than_the_manifest_says_is_refused(
    tmp_path: Path, size: object
) -> None:
    with SmallRegistry() as server:
        manifest = {
            "config": server.put_blob(b"{}"),
            "layers": [{**server.put_blob(b"a layer"), "size": size}],
        }
        digest = Digest(server.put("a/b", "1", manifest))
        image, registry = Reference.parse(f"{server.host}/a/b"), Registry(Http(), {})
        with pytest.raises(PublishError, match="does not have the size"):
            publish.fetch(registry, image, registry.get(image.at(digest)), tmp_path / "image")


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"config": {}, "layers": [{}]}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    with SmallRegistry() as server:
        digest = Digest(server.put("a/b", "1", content))
        image, registry = Reference.parse(f"{server.host}/a/b"), Registry(Http(), {})
        with pytest.raises(ReleaseError):
            publish.fetch(registry, image, registry.get(image.at(digest)), tmp_path / "image")


@FEW
@given(text=st.text(max_size=200))
def test_a_catalogue_line_of_any_text(text: str) -> None:
    line = str(latest.Line("x86_64", text, "2.1.5", "slug", 1, "0" * 64, "https://url", text))
    assert line.splitlines() == [line]
    assert line.count("\t") == 7
