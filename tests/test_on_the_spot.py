"""Building on the spot: what is checked before anything is compiled, and what is told.

The machine is a directory. Every message is compared with a file below golden/on-the-spot;
``UPDATE_GOLDEN=1`` writes them anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "on-the-spot"

RELEASE = "6.10.14-linuxkit"
COMPILER = "gcc (Alpine 13.2.1_git20231014) 13.2.1 20231014"
COMPILER_AND_LINKER = f"{COMPILER}, GNU ld (GNU Binutils) 2.41"
BANNER = f"Linux version {RELEASE} (root@buildkitsandbox) ({COMPILER_AND_LINKER}) #1 SMP Thu Oct 24"

PREPARE = "read_running; choose_zfs; find_headers; prepare"


@dataclass(frozen=True)
class Said:
    exit_code: int
    output: str


class Machine:
    """A machine with the kernel above, its headers, and a container with the usual mounts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.headers = directory / "root" / "usr/src" / f"linux-headers-{RELEASE}"
        self.write("proc/sys/kernel/osrelease", f"{RELEASE}\n")
        self.write("proc/version", f"{BANNER}\n")
        self.write("proc/uptime", "100.00 100.00\n")
        self.mount("/lib/modules", "/usr/lib/modules", "/usr/src", str(directory / "cache"))
        (directory / "root/lib/modules" / RELEASE).mkdir(parents=True)
        generated = self.headers / "include/generated"
        self.write(generated / "utsrelease.h", f'#define UTS_RELEASE "{RELEASE}"\n')
        self.write(
            generated / "compile.h",
            '#define LINUX_COMPILE_BY "root"\n#define LINUX_COMPILE_HOST "buildkitsandbox"\n'
            f'#define LINUX_COMPILER "{COMPILER_AND_LINKER}"\n',
        )
        self.write(generated / "utsversion.h", '#define UTS_VERSION "#1 SMP Thu Oct 24"\n')
        self.configure(f'CONFIG_CC_VERSION_TEXT="{COMPILER}"\n')
        for tool in ("basic/fixdep", "mod/modpost"):
            self.program(self.headers / "scripts" / tool, "exit 1")
        self.gcc("gcc", COMPILER)
        self.zfs("2.2.6", "3.10", "6.10")
        self.zfs("2.3.0", "4.18", "6.12")
        self.zfs("2.3.4", "4.18", "6.16")
        self.zfs("2.4.0", "6.11", "6.18")

    def write(self, path: str | Path, text: str) -> Path:
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def program(self, path: str | Path, script: str, shell: str = "/bin/sh") -> None:
        self.write(path, f"#!{shell}\n{script}\n").chmod(0o755)

    def gcc(self, name: str, version: str, otherwise: str = "exit 0") -> None:
        """A compiler, which is not ours."""
        self.program(
            f"bin/{name}",
            f'case $1 in --version) printf "%s\\n" "{version}" ;; *) {otherwise} ;; esac',
        )

    def configure(self, text: str) -> None:
        self.write(self.headers / "include/config/auto.conf", text)

    def mount(self, *places: str) -> None:
        self.write(
            "proc/self/mountinfo",
            "".join(f"36 35 98:0 / {place} ro - ext4 /dev/sda ro\n" for place in places),
        )

    def zfs(self, version: str, minimum: str, maximum: str) -> None:
        self.write(
            f"openzfs/zfs-{version}.meta",
            f"Meta:          1\nName:          zfs\nVersion:       {version}\n"
            f"Linux-Maximum: {maximum}\nLinux-Minimum: {minimum}\n",
        )

    def run(self, script: str) -> Said:
        """Runs a script with the functions of the image's entrypoint."""
        places = {
            "own_root": "root",
            "host_root": "host",
            "proc": "proc",
            "cache": "cache",
            "sources": "openzfs",
            "work": "work",
        }
        settings = "".join(f"{name}={self.directory}/{path}\n" for name, path in places.items())
        process = subprocess.run(
            [
                "sh",
                "-c",
                f". {PROJECT}/image/on-the-spot.sh\n{settings}scripts={PROJECT}/image\n{script}",
            ],
            env={
                "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
                "IMAGE": "myname/install-zfs",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return Said(process.returncode, process.stdout)

    def store(self, banner: str = BANNER, zfs: str = "2.3.4") -> Path:
        """What an earlier start has built."""
        directory = self.directory / "cache/kernels" / f"{RELEASE}-0123456789ab"
        self.write(
            directory / "kernel.env",
            f"kernel_release={RELEASE}\nkernel_banner={banner}\nzfs_version={zfs}\n",
        )
        self.write(directory / "zfs.ko", "module")
        assert self.run(
            f"read_running; find_headers; fingerprint >{directory}/headers;"
            f" cd {directory} && sha256sum * >/tmp/sums.$$ && mv /tmp/sums.$$ sums"
        ) == Said(0, "")
        return directory


Change = Callable[[Machine], None]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _compare(name: str, said: Said, machine: Machine) -> None:
    text = said.output.replace(str(machine.directory), "")
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_machine_with_all_that_is_needed(machine: Machine) -> None:
    said = machine.run(f'{PREPARE}; say "$headers" "$compiler" "$zfs_version"')
    assert said == Said(0, f"{machine.headers}\ngcc\n2.3.4\n")


@pytest.mark.parametrize("absolute", [False, True])
def test_headers_are_seen_where_the_machine_itself_sees_them(
    machine: Machine, absolute: bool
) -> None:
    (machine.directory / "root").rename(machine.directory / "host")
    machine.mount()
    build = machine.directory / "host/lib/modules" / RELEASE / "build"
    if absolute:
        (machine.directory / "host/usr/src" / f"linux-headers-{RELEASE}").rename(
            machine.directory / "host/usr/src/elsewhere"
        )
        build.symlink_to("/usr/src/elsewhere")
    said = machine.run(f'{PREPARE}; say "${{headers#$root}}"')
    name = "elsewhere" if absolute else f"linux-headers-{RELEASE}"
    assert said == Said(0, f"/usr/src/{name}\n")


def _hide_headers(machine: Machine) -> None:
    machine.headers.rename(machine.directory / "away")


def _no_options(machine: Machine) -> None:
    _hide_headers(machine)
    machine.mount()


def _one_option(machine: Machine) -> None:
    _hide_headers(machine)
    machine.mount("/lib/modules", "/usr/lib/modules")


def _no_modules(machine: Machine) -> None:
    (machine.directory / "root/lib/modules" / RELEASE).rmdir()
    machine.mount("/usr/src")


def _wsl2(machine: Machine) -> None:
    _hide_headers(machine)
    machine.write("proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2\n")


def _other_release(machine: Machine) -> None:
    machine.write(
        machine.headers / "include/generated/utsrelease.h", '#define UTS_RELEASE "6.10.11"\n'
    )


def _other_build(machine: Machine) -> None:
    machine.write(
        machine.headers / "include/generated/utsversion.h", '#define UTS_VERSION "#1 SMP Wed"\n'
    )


def _nameless_headers(machine: Machine) -> None:
    (machine.headers / "include/generated/compile.h").unlink()


def _other_compiler(machine: Machine) -> None:
    machine.gcc("gcc", "gcc (Alpine 14.2.0) 14.2.0")


def _clang(machine: Machine) -> None:
    machine.configure('CONFIG_CC_VERSION_TEXT="Alpine clang version 17.0.6"\n')


def _foreign_tool(machine: Machine) -> None:
    machine.program(machine.headers / "scripts/mod/modpost", "", shell="/lib/ld-musl-other.so.1")


def _no_plugin(machine: Machine) -> None:
    machine.configure(f'CONFIG_CC_VERSION_TEXT="{COMPILER}"\nCONFIG_RANDSTRUCT=y\n')


def _refused_plugin(machine: Machine) -> None:
    machine.write(machine.headers / "scripts/gcc-plugins/randomize_layout_plugin.so", "")
    machine.gcc("gcc", COMPILER, 'echo "cc1: error: incompatible gcc/plugin versions"; exit 1')


def _new_kernel(machine: Machine) -> None:
    machine.write("proc/sys/kernel/osrelease", "6.19.2-linuxkit\n")


@pytest.mark.parametrize(
    ("change", "exit_code"),
    [
        (_no_options, 2),
        (_one_option, 2),
        (_no_modules, 2),
        (_hide_headers, 3),
        (_wsl2, 3),
        (_other_release, 3),
        (_other_build, 3),
        (_nameless_headers, 3),
        (_other_compiler, 3),
        (_clang, 3),
        (_foreign_tool, 3),
        (_no_plugin, 3),
        (_refused_plugin, 3),
        (_new_kernel, 3),
    ],
)
def test_what_is_refused_before_anything_is_compiled(
    machine: Machine, change: Change, exit_code: int
) -> None:
    change(machine)
    said = machine.run(PREPARE)
    _compare(getattr(change, "__name__", "").strip("_").replace("_", "-"), said, machine)
    assert said.exit_code == exit_code


def test_another_compiler_in_the_image_may_be_the_one(machine: Machine) -> None:
    _other_compiler(machine)
    machine.gcc("gcc-13", COMPILER)
    assert machine.run(f'{PREPARE}; say "$compiler"') == Said(0, "gcc-13\n")


def test_a_plugin_that_the_compiler_takes(machine: Machine) -> None:
    machine.write(machine.headers / "scripts/gcc-plugins/randomize_layout_plugin.so", "")
    assert machine.run(PREPARE) == Said(0, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COMPILER, "gcc 13"),
        (BANNER, "gcc 13"),
        ("gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc 12"),
        ("x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0", "gcc 14"),
        ("gcc version 8.3.0 (Alpine 8.3.0) ", "gcc 8"),
        ("Linux version 5.4.39 (root@cc) (gcc version 9.2.0 (Alpine 9.2.0)) #1 SMP", "gcc 9"),
        ("Debian clang version 14.0.6", "clang 14"),
        ("gcc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", "gcc 11"),
        ("tcc version 0.9", ""),
    ],
)
def test_the_compiler_that_a_text_names(machine: Machine, text: str, expected: str) -> None:
    assert machine.run(f'family_and_major "{text}"').output.strip() == expected


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.18.0-linuxkit", "2.4.0"),
        ("6.12.118+deb13", "2.4.0"),
        ("6.10.14-linuxkit", "2.3.4"),
        ("4.18.0", "2.3.4"),
        ("4.9.184-linuxkit", "2.2.6"),
    ],
)
def test_the_newest_zfs_for_the_kernel(machine: Machine, release: str, expected: str) -> None:
    said = machine.run(f'running_release={release}; choose_zfs; say "$zfs_version"')
    assert said == Said(0, f"{expected}\n")


def test_what_was_built_is_found_again(machine: Machine) -> None:
    stored = machine.store()
    find = 'read_running; choose_zfs; find_headers; find_stored; say "$? $stored"'
    assert machine.run(find) == Said(0, f"0 {stored}\n")
    # Also where the headers are not mounted any more.
    _hide_headers(machine)
    assert machine.run(find) == Said(0, f"0 {stored}\n")


def _other_banner(machine: Machine) -> None:
    machine.store(banner=BANNER.replace("#1", "#2"))


def _older_zfs(machine: Machine) -> None:
    machine.store(zfs="2.2.6")


def _changed_headers(machine: Machine) -> None:
    machine.store()
    machine.write(machine.headers / "Module.symvers", "0x12345678\tprintk\n")


def _damaged_module(machine: Machine) -> None:
    machine.write(machine.store() / "zfs.ko", "")


def _half_finished(machine: Machine) -> None:
    (machine.store() / "sums").unlink()


@pytest.mark.parametrize(
    "change", [_other_banner, _older_zfs, _changed_headers, _damaged_module, _half_finished]
)
def test_what_is_not_whole_or_not_for_this_kernel_is_built_again(
    machine: Machine, change: Change
) -> None:
    change(machine)
    find = 'read_running; choose_zfs; find_headers; find_stored; say "$? $stored"'
    assert machine.run(find) == Said(0, "1 \n")


def test_two_do_not_build_at_once(machine: Machine) -> None:
    machine.write("cache/lock", "")
    with (machine.directory / "cache/lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        script = f". {PROJECT}/image/on-the-spot.sh; cache={machine.directory}/cache; lock"
        shell = subprocess.Popen(
            ["sh", "-c", script],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert shell.stderr
        assert "waiting" in shell.stderr.readline()
        time.sleep(0.2)
        assert shell.poll() is None
    assert shell.wait(10) == 0
    shell.stderr.close()


def test_a_volume_that_cannot_be_written_to(machine: Machine) -> None:
    machine.write("cache", "no directory")
    said = machine.run("lock")
    _compare("no-volume", said, machine)
    assert said.exit_code == 4


def test_a_container_that_may_not_mount(machine: Machine) -> None:
    # Without it, root may not do it either.
    machine.program(
        "bin/unshare",
        f'exec {shutil.which("setpriv")} --bounding-set=-sys_admin {shutil.which("unshare")} "$@"',
    )
    said = machine.run("command=load; check_mounting")
    _compare("no-mounting", said, machine)
    assert said.exit_code == 4


def test_progress(machine: Machine) -> None:
    lines = (
        'steps=5; progress_line 3 configure "$(percent 5 30 0 240)" 12;'
        ' progress_line 3 configure "$(percent 5 30 120 240)" 31;'
        ' progress_line 4 compile "$(percent 30 98 90 300)" 65;'
        ' progress_line 4 compile "$(percent 30 98 400 300)" 245;'
        ' progress_line 4 compile "$(percent 30 98 0 0)" 3'
    )
    _compare("progress", machine.run(lines), machine)


def test_a_compiler_that_refuses(machine: Machine) -> None:
    log = machine.write(
        "work/log",
        "  CC [M]  /zfs/module/os/linux/zfs/zpl_file.o\n"
        "/zfs/module/os/linux/zfs/zpl_file.c:31:10: error: 'struct inode' has no member 'i_pages'\n"
        "make[3]: *** [/zfs/module/zpl_file.o] Error 1\nmake[2]: *** [/zfs/module] Error 2\n"
        "modules: the compiler refused (see above)\n",
    )
    (machine.directory / "cache").mkdir()
    said = machine.run("zfs_version=2.3.4 number=4; give_up compile")
    _compare("refused", said, machine)
    assert said.exit_code == 1
    assert (machine.directory / "cache/build.log").read_text() == log.read_text()


@pytest.mark.parametrize(
    ("name", "arguments", "exit_code"),
    [
        ("help", "--help", 0),
        ("unknown-command", "frobnicate", 2),
        ("argument-of-build", "build zfs", 2),
    ],
)
def test_usage(machine: Machine, name: str, arguments: str, exit_code: int) -> None:
    said = machine.run(f"main {arguments}")
    _compare(name, said, machine)
    assert said.exit_code == exit_code
