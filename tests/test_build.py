"""What a failed build says, out of thousands of lines; and the facts of a module image."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from release.build import Facts, cache_options, differences, telling_lines
from release.errors import BuildError
from release.http import bytes_digest
from release.layout import Layout
from release.registry import OCI_MANIFEST

ENDING = """\
#14 ERROR: process "/bin/sh -c sh /build/modules.sh" did not complete successfully: exit code: 2
------
 > [modules 2/2] RUN sh /build/modules.sh:
98.11 make: *** [Makefile:1: all] Error 2
------
Dockerfile:60
--------------------
ERROR: failed to solve: process "/bin/sh -c sh /build/modules.sh" did not complete successfully
"""
COMPILER = f"""\
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 2.1kB done
#14 [modules 2/2] RUN sh /build/modules.sh
#14 0.412 make  all-recursive
#14 31.02   CC [M]  /zfs/module/os/linux/zfs/zpl_file.o
#14 31.90 /zfs/module/os/linux/zfs/zpl_file.c: In function 'zpl_fsync':
#14 31.90 /zfs/module/os/linux/zfs/zpl_file.c:168:9: warning: unused variable [-Wunused]
#14 31.91 /zfs/module/os/linux/zfs/zpl_file.c:170:12: error: implicit declaration of function 'foo'
#14 31.91   170 |  return foo(filp);
#14 31.95 /zfs/include/a.h:3:10: fatal error: linux/gone.h: No such file or directory
#14 32.00 make[4]: *** [/usr/src/linux/scripts/Makefile.build:250: zpl_file.o] Error 1
#14 32.01 make[3]: *** [Makefile:1844: /zfs/module] Error 2
{ENDING}"""
COMPILER_SAYS = """\
/zfs/module/os/linux/zfs/zpl_file.c:170:12: error: implicit declaration of function 'foo'
/zfs/include/a.h:3:10: fatal error: linux/gone.h: No such file or directory
make[4]: *** [/usr/src/linux/scripts/Makefile.build:250: zpl_file.o] Error 1
make[3]: *** [Makefile:1844: /zfs/module] Error 2"""
CONFIGURE = f"""\
#12 3.001 checking kernel source version... 6.99.1
#12 3.100 checking whether bdev_errno() is available... no
#12 3.200 configure: error:
#12 3.200 \t*** Cannot build against kernel version 6.99.1.
#12 3.200 \t*** The maximum supported kernel version is 6.12.
{ENDING}"""
CONFIGURE_SAYS = """\
configure: error:
\t*** Cannot build against kernel version 6.99.1.
\t*** The maximum supported kernel version is 6.12."""
DISK = f"""\
#14 9.100   CC [M]  /zfs/module/zfs/arc.o
#14 9.200 {{standard input}}: Assembler messages:
#14 9.300 /tmp/ccX.s: Fatal error: can't write 120 bytes to section .text: No space left on device
#14 9.400 tar: write error: No space left on device
{ENDING}"""
DISK_SAYS = """\
/tmp/ccX.s: Fatal error: can't write 120 bytes to section .text: No space left on device
tar: write error: No space left on device"""
LINKER = """\
#14 9.1 ERROR: modpost: "foo" [/zfs/module/zfs.ko] undefined!
#14 9.2 FATAL: modpost: GPL-incompatible module zfs.ko uses GPL-only symbol 'foo'
#14 9.3 arc.c:(.text+0x1): undefined reference to `foo'
"""
OURS = """\
#14 9.1 modules: the modules are for 5.4.38, the kernel is 5.4.39
#9 9.2 toolchain: the builder image has no gcc, and no package that brings it
"""
PULL = """\
#2 [internal] load metadata for docker.io/linuxkit/kernel:1
#2 ERROR: failed to do request: dial tcp: lookup registry-1.docker.io: no such host
------
 > [internal] load metadata for docker.io/linuxkit/kernel:1:
------
ERROR: failed to solve: docker.io/linuxkit/kernel:1: failed to resolve source metadata
"""


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (COMPILER, COMPILER_SAYS),
        (CONFIGURE, CONFIGURE_SAYS),
        (DISK, DISK_SAYS),
        (LINKER, re.sub(r"(?m)^#14 9\.\d ", "", LINKER).rstrip()),
        (OURS, re.sub(r"(?m)^#\d+ \d+\.\d ", "", OURS).rstrip()),
        (PULL, PULL.rstrip()),
        ("", ""),
    ],
    ids=["compiler", "configure", "disk", "linker", "ours", "pull", "nothing"],
)
def test_the_telling_lines_of_a_log(log: str, says: str) -> None:
    assert telling_lines(log) == says


def test_the_first_errors_are_shown_and_each_once() -> None:
    log = "".join(f"#1 {n}.0 a.c:{n // 2}:1: error: no\n" for n in range(1000))
    lines = telling_lines(log, most=4).splitlines()
    assert lines == [f"a.c:{n}:1: error: no" for n in range(4)]


def test_of_a_log_that_does_not_say_why_the_last_lines_are_shown() -> None:
    log = "".join(f"#1 {n}.0 line {n}\n" for n in range(1000))
    assert telling_lines(log, most=2) == "#1 998.0 line 998\n#1 999.0 line 999"


ENV = """\
image=docker.io/me/install-zfs
kernel_image=linuxkit/kernel:5.4.39
kernel_release=5.4.39-linuxkit
kernel_banner=Linux version 5.4.39-linuxkit (root@x) (gcc version 8.3.0) #1 SMP a=b
vermagic=5.4.39-linuxkit SMP mod_unload\x20
architecture=x86_64
zfs_version=0.8.4
"""


MAGIC = "5.4.39-linuxkit SMP mod_unload"
SAID = ENV.replace(f"{MAGIC} ", MAGIC).encode()
ZFS = f"\0vermagic={MAGIC} \0name=zfs\0".encode()


def image(directory: Path, files: Mapping[str, bytes]) -> Layout:
    """An image layout with one layer."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"kernels/x/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    layout = Layout(directory)

    def add(data: bytes) -> dict[str, str]:
        digest = bytes_digest(data)
        layout.blob(digest).parent.mkdir(parents=True, exist_ok=True)
        layout.blob(digest).write_bytes(data)
        return {"mediaType": OCI_MANIFEST, "digest": digest}

    manifest = {"layers": [add(content.getvalue())]}
    index = {"manifests": [add(json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    return layout


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"kernel.env": SAID, "zfs.ko": ZFS}, []),
        ({"kernel.env": SAID}, ["an image without modules"]),
        ({"kernel.env": SAID, "zfs.ko": ZFS, "spl.ko": ZFS[:20]}, ["the module spl.ko"]),
        (
            {"kernel.env": SAID, "zfs.ko": ZFS.replace(b"SMP", b"SMP preempt")},
            ["the module zfs.ko"],
        ),
        (
            {"kernel.env": SAID.replace(b"#1", b"#2"), "zfs.ko": ZFS},
            ["the kernel banner in the image"],
        ),
        (
            {"kernel.env": SAID.replace(b"zfs_version=0.8.4", b"zfs_version=0.8.3"), "a.ko": ZFS},
            ["the zfs version in the image"],
        ),
    ],
)
def test_the_image_is_held_against_the_kernel(
    tmp_path: Path, files: Mapping[str, bytes], says: list[str]
) -> None:
    found = list(differences(Facts.parse(SAID.decode()), image(tmp_path, files)))
    assert [what for what, _, _ in found] == says
    assert all(wanted != other for _, wanted, other in found)


def test_facts_are_raw_values() -> None:
    facts = Facts.parse(ENV)
    assert facts.kernel_banner.endswith("#1 SMP a=b")
    assert facts.vermagic == "5.4.39-linuxkit SMP mod_unload "
    assert Facts.parse(ENV.replace("docker.io/me/install-zfs", "")).image == ""


def test_the_build_id_is_known_where_it_can_be_told() -> None:
    assert Facts.parse(ENV).build_id == ""
    assert Facts.parse(f"{ENV.rstrip()}\nbuild_id=0a0b\n").build_id == "0a0b"


def test_a_missing_fact_is_named() -> None:
    with pytest.raises(BuildError, match=r"kernel\.env has no zfs_version"):
        Facts.parse(ENV.replace("zfs_version", "zfs"))


def test_a_cache_is_read_and_filled_by_what_kernels_share() -> None:
    assert cache_options("", "zfs-2.1.5") == ()
    registry = cache_options("type=registry,ref=me/cache:{scope}", "zfs-2.1.5-abc-amd64")
    where = "type=registry,ref=me/cache:zfs-2.1.5-abc-amd64"
    filled = f"{where},mode=max,ignore-error=true"
    assert registry == ("--cache-from", where, "--cache-to", filled)
