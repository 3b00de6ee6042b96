"""Makes a kernel image, in upstream's shape, of the kernel that the Docker engine at hand runs.

For kernels that nobody publishes. Docker Desktop's virtual machine has the headers since 4.31 (its
release notes), a distribution's kernel has them where their package is installed. The image holds
what LinuxKit's kernel build leaves in one (linuxkit, ``kernel/common/Dockerfile``): ``/kernel``,
``/kernel.tar``, ``/kernel-dev.tar``; and ``/kernel-banner``, because a running machine need not
have the file that it was booted from. The same facts give the same image.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from release import bounded
from release.builders import BUILD_IMAGE_LABEL
from release.compiler import Compiler, banner_compiler
from release.detect import BANNER_LABEL, FIRST_WITH_HEADERS
from release.errors import ConfigurationError, PreflightError, ResolveError, TargetError
from release.http import bytes_digest, file_digest
from release.kernel import (
    SYMVERS,
    UTS_RELEASE,
    build_id_in,
    read_banner,
    read_headers,
    read_members,
)
from release.layout import Layout
from release.probe import Inside, Machine
from release.reference import Digest, Platform, Reference, architecture
from release.registry import OCI_INDEX, OCI_MANIFEST, Registry
from release.resolve import EPOCH
from release.tags import ImageTag

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_RELEASE = re.compile(r"[\w.+~-]+", re.ASCII)
_KERNELS = ("/boot/vmlinuz-{0}", "/lib/modules/{0}/vmlinuz", "/boot/vmlinuz", "/kernel")
_MODULES = ("/lib/modules/{0}", "/usr/lib/modules/{0}")
_HEADERS = (*(f"{path}/build" for path in _MODULES), "/usr/src/linux-headers-{0}")
# What kbuild finds out anew from the compiler and the tools that it runs with.
_OF_TOOLS = re.compile(r"CONFIG_(?:AS|CC|CLANG|GCC|LD|LLD|PAHOLE|RUSTC|TOOLS)_|CONFIG_\w+_VERSION")
_MOST_LINKS = 40


@dataclass(frozen=True)
class Captured:
    """What a running kernel has left on its machine, as files here.

    Attributes:
        release: ``uname -r``.
        banner: ``/proc/version``.
        build_id: of the kernel (``/sys/kernel/notes``); empty where it has none.
        headers: ``kernel-dev.tar``, one tree of headers and build tools.
        modules: ``kernel.tar``; None where the machine has none.
        kernel: bootable; None where none with this banner was found.
        places: where what was found, by what it is.
        notes: what somebody should know.
    """

    release: str
    banner: str
    platform: Platform
    build_id: str
    headers: Path
    modules: Path | None
    kernel: Path | None
    places: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def compiler(self) -> Compiler | None:
        return banner_compiler(self.banner)


def check_name(image: Reference) -> None:
    """Raises:
    ConfigurationError: the image has no tag to be known by.
    """
    if not image.tag or image.digest:
        raise ConfigurationError(
            "a kernel image needs a tag, and no digest",
            on=str(image),
            hint="let its tag be the kernel version: NAME/kernel:6.10.14",
        )


# Looking at the machine


def capture(machine: Machine, here: Inside, platform: Platform, directory: Path) -> Captured:
    """Copies what the running kernel has on its machine into ``directory``.

    Raises:
        PreflightError: it cannot be looked at, or has no headers, with what to do.
        TargetError: a copy failed.
        ResolveError: the headers are not whole, or of another kernel.
    """
    if not here.roots:
        raise PreflightError(
            "its files cannot be read from a container",
            on="the machine behind the Docker engine",
            detail=machine.unseen,
            hint="Docker Desktop: turn off Settings > General > Use Enhanced Container Isolation; "
            "rootless Docker: use the rootful one",
        )
    if not _RELEASE.fullmatch(machine.release) or not machine.banner:
        raise ResolveError("the kernel's release is not understood", on=repr(machine.release))
    files = _Files(here, directory)
    places: dict[str, str] = {}
    notes: list[str] = []
    root, build, source = _find_headers(machine, files)
    places["headers"] = build if source in (None, build) else f"{build} and {source}"
    headers = directory / "kernel-dev.tar"
    _collect_headers(files, root, build, source, machine.release, headers)
    check_headers(headers, machine.release, platform)
    notes += _config_notes(here, headers)
    modules, place = _collect_modules(files, machine.release)
    if place:
        places["modules"] = place
    kernel, place = _collect_kernel(files, machine, notes)
    if place:
        places["kernel"] = place
    return Captured(
        machine.release,
        machine.banner,
        platform,
        build_id_in(_bytes(files, "/sys/kernel/notes")),
        headers,
        modules,
        kernel,
        places,
        tuple(notes),
    )


class _Files:
    """The machine's files below the roots that can be read, and copies of them here."""

    def __init__(self, here: Inside, directory: Path) -> None:
        self.here = here
        self.directory = directory
        self._count = 0

    def resolve(self, root: str, path: str) -> str | None:
        """Where a path of the machine leads to, links followed as the machine does; None where
        nothing is there.
        """
        links = 0
        done, rest = PurePosixPath("/"), list(PurePosixPath(path).parts[1:])
        while rest:
            name = rest.pop(0)
            if name == "..":
                done = done.parent
                continue
            link = self.here.session.run("readlink", f"{root}{done / name}")
            target = link.output.rstrip("\n")
            if link.exit_code != 0 or not target:
                done /= name
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            parts = list(PurePosixPath(target).parts)
            if target.startswith("/"):
                done, parts = PurePosixPath("/"), parts[1:]
            rest = parts + rest
        found = self.here.session.run("ls", "-d", f"{root}{done}")
        return str(done) if found.exit_code == 0 else None

    def names(self, root: str, path: str) -> list[str]:
        """What is in a directory; nothing where it is none."""
        listed = self.here.session.run("ls", f"{root}{path}/")
        return listed.output.split() if listed.exit_code == 0 else []

    def tar(self, root: str, path: str) -> Path:
        """A directory of the machine as a tar, whose names are relative to it."""
        return self._copy(path, "tar", "-C", f"{root}{path}", "-cf", "-", ".")

    def file(self, path: str) -> Path:
        return self._copy(path, "cat", path)

    def _copy(self, on: str, *command: str) -> Path:
        self._count += 1
        to = self.directory / f".copy-{self._count}"
        with to.open("wb") as output:
            code = self.here.session.write(output, *command)
        if code != 0:
            raise TargetError("could not be read whole", on=on, hint="run again")
        return to


def _find_headers(machine: Machine, files: _Files) -> tuple[str, str, str | None]:
    """The root, the directory of the headers, and that of their sources where it is another one.

    Raises:
        PreflightError: there are none, with where was looked.
    """
    looked: list[str] = []
    for root in files.here.roots:
        others = [
            f"/usr/src/{name}"
            for name in files.names(root, "/usr/src")
            if name.startswith("linux-headers-")
        ]
        for path in dict.fromkeys((*(one.format(machine.release) for one in _HEADERS), *others)):
            place = files.resolve(root, path)
            found = files.here.read(f"{root}{place}/{UTS_RELEASE}") if place else ""
            if not place or f'"{machine.release}"' not in found:
                what = re.search(r'UTS_RELEASE "([^"]*)"', found)
                why = f"of {what[1]}" if what else "not headers" if place else "nothing"
                looked.append(f"{path}: {why}")
                continue
            for modules in _MODULES:
                path = f"{modules.format(machine.release)}/source"
                source = files.resolve(root, path)
                if source and source != place and "Makefile" in files.names(root, source):
                    return root, place, source
            return root, place, None
    raise PreflightError(
        f"has no headers of its kernel, {machine.release}, to compile modules against",
        on="the machine behind the Docker engine",
        detail="\n".join(dict.fromkeys(looked)),
        hint=no_headers_hint(machine),
    )


def no_headers_hint(machine: Machine) -> str:
    """What to do where a machine has no headers."""
    if machine.is_wsl2:
        return (
            "the kernel is Microsoft's for WSL 2: turn off Settings > General > Use the WSL 2 "
            "based engine, so that Docker Desktop runs its own kernel, and run this again"
        )
    if machine.is_desktop or machine.is_linuxkit:
        return (
            f"Docker Desktop brings them since {FIRST_WITH_HEADERS}: update to it or a later one, "
            "and run this again"
        )
    return (
        f"install the package with them (Debian: apt-get install linux-headers-{machine.release}), "
        "and run this again"
    )


def _collect_modules(files: _Files, release: str) -> tuple[Path | None, str]:
    for root in files.here.roots:
        for path in _MODULES:
            place = files.resolve(root, path.format(release))
            if place and {"kernel", "modules.dep"} & set(files.names(root, place)):
                to = files.directory / "kernel.tar"
                with Trees() as trees:
                    trees.add(files.tar(root, place), leave_out=("build", "source"))
                    trees.write(to, f"lib/modules/{release}")
                return to, place
    return None, ""


def _collect_kernel(files: _Files, machine: Machine, notes: list[str]) -> tuple[Path | None, str]:
    for root in files.here.roots:
        for path in _KERNELS:
            place = files.resolve(root, path.format(machine.release))
            if not place:
                continue
            copy = files.file(f"{root}{place}")
            try:
                banner = read_banner(copy)
            except ResolveError as error:
                notes.append(f"{place} is not taken as the kernel: {error.what}")
                continue
            if banner == machine.banner:
                return copy.rename(files.directory / "kernel"), place
            notes.append(f"{place} is another kernel: {banner}")
    return None, ""


def _bytes(files: _Files, path: str) -> bytes:
    try:
        return files.file(path).read_bytes()
    except TargetError:
        return b""


# Headers


def _collect_headers(
    files: _Files, root: str, build: str, source: str | None, release: str, to: Path
) -> None:
    """One tree of headers, as LinuxKit packs them, from one directory or from Debian's three.

    Debian has the sources' part, shared by all flavours, in a directory of its own (``source``),
    and the compiled tools in another, to which links at the top lead (linux-headers-*,
    linux-kbuild-*); its Makefile includes the sources' by an absolute path.
    """
    with Trees() as trees:
        parts = [part for part in (source, build) if part]
        for part in parts:
            is_overlay = len(parts) > 1 and part == build
            leave_out = ("Makefile", ".kernelvariables") if is_overlay else ()
            tar = files.tar(root, part)
            linked = trees.add(tar, leave_out=("vmlinux", "vmlinux.o", *leave_out))
            for name, target in linked.items():
                place = files.resolve(root, str(PurePosixPath(part) / target))
                if place and files.names(root, place):
                    trees.add(files.tar(root, place), under=name)
        trees.write(to, f"usr/src/linux-headers-{release}")


def check_headers(headers: Path, release: str, platform: Platform) -> None:
    """Makes sure that modules can be compiled against a ``kernel-dev.tar``.

    Raises:
        ResolveError: they cannot, because it is not whole or of another kernel.
    """
    about = read_headers(headers, architecture(platform))
    hint = "install the package with the headers anew, and run this again"
    if about.release != release:
        raise ResolveError(
            "the headers are of another kernel",
            on=release,
            detail=f"running {release}\nheaders {about.release}",
            hint=hint,
        )
    wanted = (SYMVERS, "Makefile", "include/generated/autoconf.h", "scripts/mod/modpost")
    found = _present(headers, wanted)
    if missing := [name for name in wanted if name not in found]:
        raise ResolveError(
            "the headers are not whole", on=release, detail="no " + "\nno ".join(missing), hint=hint
        )


def _present(tar: Path, names: Iterable[str]) -> set[str]:
    with tarfile.open(tar) as archive:
        inside = {"/".join(PurePosixPath(name).parts[3:]) for name in archive.getnames()}
    return inside & set(names)


def _config_notes(here: Inside, headers: Path) -> Iterator[str]:
    """Where the running kernel says that it was configured otherwise than the headers were."""
    packed = io.BytesIO()
    try:
        if here.session.write(packed, "cat", "/proc/config.gz") != 0:
            return
        text = bounded.gunzip(packed.getvalue()).decode(errors="replace")
    except bounded.CORRUPT:
        return
    there = read_members(headers, ("include/config/auto.conf",)).values()
    if others := differing_config(text, "\n".join(there)):
        yield f"/proc/config.gz differs from the headers in: {' '.join(others[:10])}"


def differing_config(running: str, headers: str) -> list[str]:
    """The options, of no tool's version, that are set otherwise in two configurations."""

    def options(text: str) -> set[str]:
        lines = re.findall(r"^CONFIG_\w+=.*$", text, re.MULTILINE)
        return {line for line in lines if not _OF_TOOLS.match(line)}

    differing = options(running) ^ options(headers)
    return sorted({line.partition("=")[0] for line in differing})


class Trees:
    """Trees of files put on top of each other, and written as one tar; the same files give the
    same bytes.

    Times are 0 as in a kernel image; owners are root; devices and sockets are left out.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._members: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}

    def __enter__(self) -> Trees:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, tar: Path, *, under: str = "", leave_out: Iterable[str] = ()) -> dict[str, str]:
        """Puts the tree of a tar on top.

        Args:
            under: the directory of the tree that it becomes.
            leave_out: names at its top that are not wanted.

        Returns:
            By name, the targets of links at the top that lead out of the tree; they are not taken.
        """
        archive = self._stack.enter_context(tarfile.open(tar))  # noqa: SIM115 (the stack closes it)
        unwanted = set(leave_out)
        linked: dict[str, str] = {}
        for member in archive:
            path = PurePosixPath(member.name)
            if not path.parts or ".." in path.parts or path.parts[0] in unwanted:
                continue
            if member.issym() and len(path.parts) == 1 and _leads_out(member.linkname):
                linked[str(path)] = member.linkname
            elif member.isdir() or member.issym() or member.isreg() or member.islnk():
                self._members[str(PurePosixPath(under) / path)] = archive, member
        return linked

    def write(self, to: Path, top: str) -> None:
        """Writes all as a tar in which the tree is ``top``."""
        with tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as output:
            parents = {
                str(parent)
                for path in (top, *(f"{top}/{name}" for name in self._members))
                for parent in PurePosixPath(path).parents
                if parent.parts
            }
            wanted = {f"{top}/{name}" for name in self._members}
            for name in sorted({*parents, top, *wanted}):
                there = self._members.get(name.removeprefix(f"{top}/"))
                if name not in wanted or not there:
                    _put(output, name, 0o755, kind=tarfile.DIRTYPE)
                    continue
                archive, member = there
                if member.issym():
                    _put(output, name, 0o777, kind=tarfile.SYMTYPE, link=member.linkname)
                elif member.isdir():
                    _put(output, name, member.mode & 0o7777, kind=tarfile.DIRTYPE)
                else:
                    file = archive.extractfile(member)  # follows a hard link
                    assert file
                    content = file.read()
                    _put(output, name, member.mode & 0o7777, content=content)


def _leads_out(target: str) -> bool:
    return target.startswith(("/", "../")) or target == ".."


def _put(
    output: tarfile.TarFile,
    name: str,
    mode: int,
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    content: bytes = b"",
) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.linkname, member.size = mode, kind, link, len(content)
    output.addfile(member, io.BytesIO(content))


# The image


def pack(captured: Captured, directory: Path, builder: Reference | None = None) -> Layout:
    """Packs a kernel image; the same facts give the same digest.

    Args:
        directory: becomes the image's OCI layout.
        builder: the image with the kernel's compiler, for the image's label.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    part = directory / ".layer"
    diff_id = _write_layer(captured, builder, part)
    layer = _keep(blobs, part)
    labels = {
        "org.opencontainers.image.title": f"Linux {captured.release}, captured while it ran",
        "install-zfs.kernel-release": captured.release,
        BANNER_LABEL: captured.banner,
        **({"install-zfs.kernel-build-id": captured.build_id} if captured.build_id else {}),
        **({BUILD_IMAGE_LABEL: str(builder)} if builder else {}),
    }
    os_name, arch, *_ = captured.platform.split("/")
    config = _blob(
        blobs,
        {
            "created": built_at(captured.banner).isoformat(),
            "architecture": arch,
            "os": os_name,
            "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        },
    )
    manifest = _blob(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": _CONFIG_TYPE, **config},
            "layers": [{"mediaType": _LAYER_TYPE, **layer}],
        },
    )
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, **manifest}],
    }
    (directory / "index.json").write_bytes(_json(index))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return Layout(directory)


def _write_layer(captured: Captured, builder: Reference | None, to: Path) -> str:
    """Writes the layer; returns the digest of its content before compression."""
    files: dict[str, Path | bytes | None] = {
        "kernel": captured.kernel,
        "kernel-banner": f"{captured.banner}\n".encode(),
        "kernel-build-id": f"{captured.build_id}\n".encode() if captured.build_id else None,
        "kernel-builder": f"{builder}\n".encode() if builder else None,
        "kernel-dev.tar": captured.headers,
        "kernel.tar": captured.modules,
    }
    with (
        to.open("wb") as output,
        gzip.GzipFile("", "wb", 6, output, mtime=0) as packed,
    ):
        hashing = _Hashing(packed)
        with tarfile.open(mode="w|", fileobj=hashing, format=tarfile.GNU_FORMAT) as layer:
            for name, content in files.items():
                if content is None:
                    continue
                member = tarfile.TarInfo(name)
                member.mode = 0o644
                if isinstance(content, bytes):
                    member.size = len(content)
                    layer.addfile(member, io.BytesIO(content))
                else:
                    member.size = content.stat().st_size
                    with content.open("rb") as file:
                        layer.addfile(member, file)
        return f"sha256:{hashing.sha256.hexdigest()}"


class _Hashing(io.RawIOBase):
    """Passes bytes on, and digests them."""

    def __init__(self, output: IO[bytes] | gzip.GzipFile) -> None:
        super().__init__()
        self._output = output
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self.sha256.update(content)
        return self._output.write(content)


def _keep(blobs: Path, path: Path) -> dict[str, str | int]:
    digest = file_digest(path)
    there = path.rename(blobs / digest.removeprefix("sha256:"))
    return {"digest": digest, "size": there.stat().st_size}


def _blob(blobs: Path, content: object) -> dict[str, str | int]:
    raw = _json(content)
    digest = bytes_digest(raw)
    (blobs / digest.removeprefix("sha256:")).write_bytes(raw)
    return {"digest": digest, "size": len(raw)}


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


_OF_LINUX = re.compile(r"#\d.*?(\w{3}) +(\d+) (\d\d:\d\d:\d\d) UTC (\d{4})", re.ASCII)
_OF_DEBIAN = re.compile(r"#\d.*\((\d{4}-\d\d-\d\d)\)", re.ASCII)


def built_at(banner: str) -> datetime:
    """When a kernel was built, as its banner says; 1970 where it does not."""
    try:
        if match := _OF_LINUX.search(banner):
            return datetime.strptime(" ".join(match.groups()), "%b %d %H:%M:%S %Y").replace(
                tzinfo=UTC
            )
        if match := _OF_DEBIAN.search(banner):
            return datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError:
        pass
    return EPOCH


def push(registry: Registry, image: Reference, layout: Layout) -> None:
    """Pushes a kernel image and points its tag to it."""
    for digest, blob in layout.blobs():
        registry.upload(image, digest, blob)
    manifest = layout.manifest
    registry.put(image.at(manifest.digest), manifest)
    registry.put(image, manifest)


# What people see


def show(
    captured: Captured,
    image: Reference,
    digest: Digest,
    *,
    pushed: bool,
    builder: Reference | None = None,
) -> str:
    """What was captured, and what to do with it."""
    places = captured.places
    compiler = captured.compiler
    lines = [
        f"Kernel:    {captured.release}",
        f"           {captured.banner}",
        f"Headers:   {places['headers']}",
        f"Modules:   {places.get('modules', 'none on the machine')}",
        f"Bootable:  {places.get('kernel', 'no file with this banner on the machine')}",
        f"Compiler:  {compiler or 'not named by the banner'}"
        + (f", in {builder}" if builder else ""),
        f"Image:     {image}",
        f"           {digest}",
        *(f"Note:      {note}" for note in captured.notes),
        "",
    ]
    if not pushed:
        lines += [
            "The image is in the engine at hand alone. Modules are built from a registry:",
            "",
            f"    python -m release capture {image} --push",
            "",
        ]
    lines += [
        "Add it below kernels: in versions.yaml:",
        "",
        *(f"  {line}" for line in entry_lines(captured, image)),
        "",
    ]
    return "\n".join(lines)


def entry_lines(captured: Captured, image: Reference) -> list[str]:
    """The entry for ``versions.yaml``."""
    lines = [f"- image: {image}"]
    if not ImageTag.parse(image.tag or "").version:
        lines.append("  zfs: VERSION # the tag is no kernel version, so it has to be written here")
    if not captured.kernel:
        lines.append("  smoke: host # it cannot be booted: its modules are tested on this machine")
    return lines
