"""What the module image's entrypoint does and says, on a real kernel.

Every message is compared with a file below golden/loader; ``UPDATE_GOLDEN=1`` writes them anew.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from release import guest, initramfs
from release.boot import Emulator
from release.guest import Command, Outcome, Transcript
from tests.lab.built import Built
from tests.lab.setup import Setup

pytestmark = pytest.mark.lab

GOLDEN = Path(__file__).parent / "golden" / "loader"

MODULES = Command("modules", "cut -d' ' -f1 /proc/modules")


def _inside(script: str) -> str:
    """Runs a script in the container, where it may change what the loader sees."""
    return f"container /bin/busybox sh -c '{script}'"


def _seeing(content: str, path: str, command: str) -> str:
    """Lets the loader see other content at a path: for what no kernel of the lab says by itself."""
    return _inside(
        f'/bin/busybox echo "{content}" >/dev/seen; /bin/busybox mount --bind /dev/seen {path};'
        f" exec /install-zfs {command}"
    )


def _changed(facts: str, command: str) -> str:
    """Runs a command while a sed script has changed the facts of the image's only kernel."""
    return (
        f"cd /image/kernels/*; cp kernel.env /tmp/env; sed -i '{facts}' kernel.env;"
        f" {command}; code=$?; cp /tmp/env kernel.env; exit $code"
    )


def _with_foreign_modules(facts: str) -> str:
    """A check where /lib/modules has a module of another build."""
    directory = "/lib/modules/$(/bin/busybox uname -r)/kernel"
    return _changed(
        facts,
        _inside(
            f"/bin/busybox mkdir -p {directory};"
            f' /bin/busybox printf "\\0vermagic=6.1.0 SMP other-seed\\0" >{directory}/fat.ko;'
            " /install-zfs check; code=$?; /bin/busybox rm -r /lib/modules; exit $code"
        ),
    )


FOR_ANOTHER_BUILD = "s/^build_id=.*/build_id=0000000000000000000000000000000000000000/"
WITHOUT_BUILD_ID = "/^build_id=/d"
FOR_ANOTHER_KERNEL = "s/^kernel_banner=.*/kernel_banner=Linux version 6.1.0-other (me@here) #1/"
SERVER = "http://127.0.0.1:8080"


def _download(catalogue: str, environment: str = "") -> str:
    """A load --download on a machine that the image has no modules for."""
    return (
        f"cp /assets/{catalogue} /image/catalogue;"
        + _changed(
            FOR_ANOTHER_KERNEL,
            f"container /bin/busybox env {environment} /install-zfs load --download",
        ).removesuffix("exit $code")
        + "rm /image/catalogue; exit $code"
    )


# The kernel refuses every further mount.
WITHOUT_MOUNTS = "/bin/busybox sh -c 'echo 1 >/proc/sys/fs/mount-max; exec \"$@\"' sh"

# The last module comes when the one before it is in use, and is none.
REFUSED_WHILE_IN_USE = """
cd /image/kernels/*
cp modules.load /tmp
mkfifo last.ko
echo last.ko >>modules.load
(
    until [ -c /dev/zfs ]; do sleep 0.1; done
    exec 3</dev/zfs
    while echo none >last.ko; do :; done
) &
container /install-zfs
code=$?
kill $!
wait
rm last.ko
mv /tmp/modules.load .
exit $code
"""

USERLAND = """
version=$(sed -n s/^zfs_version=//p /image/kernels/*/kernel.env)
mkdir -p /image/userland/$version
cat >/image/userland/$version/zpool <<'END'
#!/bin/busybox sh
[ -c /dev/zfs ] && [ -d /etc/zfs ] && echo "zpool was run: $*"
exit 7
END
chmod 755 /image/userland/$version/zpool
"""

# Gives the image 99 more kernels: another build of the running release, three of the same version,
# and ninety-five older and newer ones.
MANY_KERNELS = """
set -- /image/kernels/*
other() { # RELEASE BANNER
    mkdir "/image/kernels/$1-other"
    sed "s/^kernel_release=.*/kernel_release=$1/; s/^kernel_banner=.*/kernel_banner=$2/;
         s/^build_id=.*/build_id=0000000000000000000000000000000000000000/" \
        "$template" >"/image/kernels/$1-other/kernel.env"
}
template=$1/kernel.env
release=$(uname -r)
version=${release%%-*}
line=${version%.*}
for number in $(seq 10 40); do
    other "$line.$number" "Linux version $line.$number (me@here) #1"
    other "5.$number.0" "Linux version 5.$number.0 (me@here) #1"
    other "4.$number.0" "Linux version 4.$number.0 (me@here) #1"
done
for suffix in one two three; do
    other "$version-$suffix" "Linux version $version-$suffix (me@here) #1"
done
for number in 1 2; do
    other "5.$number.0" "Linux version 5.$number.0 (me@here) #1"
done
other "$release" "Linux version $release (me@here) #1 SMP"
ls /image/kernels | wc -l
"""
FEWER_KERNELS = "rm -r /image/kernels/*-other"
SECONDS = """
read -r before rest </proc/uptime
for n in 1 2 3; do container /install-zfs check >/dev/null; done
read -r after rest </proc/uptime
echo $before $after
"""

# One after the other in one boot, so that each finds what those before it have left.
SCENARIOS = (
    Command("info", "container /install-zfs info"),
    Command("info-json", "container /install-zfs info --json"),
    Command("help", "container /install-zfs --help"),
    Command("usage-unknown-command", "container /install-zfs frobnicate"),
    Command("usage-load-option", "container /install-zfs load --frobnicate"),
    Command("parameter-syntax", "container /install-zfs load zfs_arc_max"),
    Command("parameter-quotes", _inside('/install-zfs load "zfs_arc_max=1 2"')),
    Command("parameter-unknown", "container /install-zfs load zfs_arc_mx=1073741824"),
    Command("parameter-of-other-module", "container /install-zfs load spl.zfs_arc_max=1"),
    Command(
        "parameter-from-environment",
        _inside('ZFS_MODULE_OPTIONS="zfs_arc_min=1 nonsense=1" exec /install-zfs'),
    ),
    Command("usage-argument", "container /install-zfs unload --force"),
    Command("usage-arguments-of-info", "container /install-zfs info --json x"),
    Command("usage-info-option", "container /install-zfs info --frobnicate"),
    Command(
        "userland-missing", "mv /image/userland /userland; container /install-zfs zpool status"
    ),
    Command("userland-installed", USERLAND),
    Command("zpool-not-loaded", "container /install-zfs zpool status -v"),
    Command("architecture", "container /bin/busybox linux32 /install-zfs check"),
    Command(
        "not-privileged",
        "mkdir /image/etc; echo nobody:x:65534:65534:::/ >/image/etc/passwd;"
        " container /bin/busybox start-stop-daemon -S -c nobody -x /install-zfs -- load",
    ),
    Command("user-namespace", "container /bin/busybox unshare -U -r /install-zfs load"),
    Command(
        "wsl2", _seeing("5.15.90.1-microsoft-standard-WSL2", "/proc/sys/kernel/osrelease", "check")
    ),
    Command("built-in-parameter", _seeing("nodev zfs", "/proc/filesystems", "load zfs_arc_max=1")),
    Command("built-in", _seeing("nodev zfs", "/proc/filesystems", "load")),
    Command("other-build", _changed(FOR_ANOTHER_BUILD, "container /install-zfs")),
    Command("other-vermagic", _with_foreign_modules(WITHOUT_BUILD_ID)),
    Command("other-vermagic-same-build-id", _with_foreign_modules("")),
    Command(
        "download-no-catalogue",
        _changed(FOR_ANOTHER_KERNEL, "container /install-zfs load --download"),
    ),
    Command("download-not-listed", _download("others")),
    Command("download-no-network", _download("good")),
    Command("server", "ifconfig lo up; httpd -p 127.0.0.1:8080 -h /assets"),
    Command("check-catalogued", _download("good").replace("load --download", "check")),
    Command("download-not-found", _download("missing")),
    Command("download-checksum", _download("changed")),
    Command("download-no-image", _download("no-image")),
    Command("download-other-kernel", _download("other-kernel")),
    Command("download-insecure", _download("insecure")),
    Command("download-no-room", _download("good", WITHOUT_MOUNTS)),
    Command("mounts-again", "echo 100000 >/proc/sys/fs/mount-max"),
    Command(
        "download-silent",
        (
            "nc -l -p 8081 -e sleep 100 & "
            + _download(
                "good",
                "INSTALL_ZFS_DOWNLOAD_URL=http://127.0.0.1:8081 INSTALL_ZFS_SILENCE_SECONDS=2",
            )
        ),
    ),
    Command("modules-after-failed-downloads", MODULES.script),
    Command("download", _download("good")),
    Command("unload-downloaded", "container /install-zfs unload"),
    Command(
        "download-from-elsewhere", _download("insecure", f"INSTALL_ZFS_DOWNLOAD_URL={SERVER}/")
    ),
    Command("unload-from-elsewhere", "container /install-zfs unload"),
    Command("unload-built-in", _seeing("nodev zfs", "/proc/filesystems", "unload")),
    Command(
        "built-in-parameter-fixed",
        _inside(
            "/bin/busybox mount -t tmpfs tmpfs /sys/module;"
            " cd /sys/module; /bin/busybox mkdir -p zfs/parameters; cd zfs/parameters;"
            " /bin/busybox touch zvol_threads; /bin/busybox chmod 444 zvol_threads;"
            ' /bin/busybox echo "nodev zfs" >/dev/seen;'
            " /bin/busybox mount --bind /dev/seen /proc/filesystems;"
            " exec /install-zfs load zvol_threads=7"
        ),
    ),
    Command("unload-without-zfs", "container /install-zfs unload"),
    Command("modules-untouched", MODULES.script),
    Command("check", "container /install-zfs check"),
    Command("modules-after-check", MODULES.script),
    Command("seconds-of-one", SECONDS),
    Command("many", MANY_KERNELS),
    Command("check-among-many", "container /install-zfs check"),
    Command("seconds-of-many", SECONDS),
    Command("fewer", FEWER_KERNELS),
    Command(
        "refused",
        "cd /image/kernels/*; mv zfs.ko /tmp; head -c 100000 /tmp/zfs.ko >zfs.ko;"
        " container /install-zfs; code=$?; mv /tmp/zfs.ko .; exit $code",
    ),
    Command("refused-in-use", REFUSED_WHILE_IN_USE),
    Command("unload-stuck", "container /install-zfs unload"),
    Command("refused-parameter", "container /install-zfs load zfs_arc_max=lots"),
    Command("modules-after-refusal", MODULES.script),
    Command(
        "load-parameters",
        _inside(
            "ZFS_MODULE_OPTIONS=spl_taskq_thread_priority=0"
            " exec /install-zfs load zfs_arc_max=134217728 spl.spl_hostid=7"
        ),
    ),
    Command(
        "parameters",
        "cd /sys/module; cat zfs/parameters/zfs_arc_max spl/parameters/spl_hostid"
        " spl/parameters/spl_taskq_thread_priority",
    ),
    Command("set-parameter", "container /install-zfs load zfs_arc_max=150000000"),
    Command("set-parameter-value", "cat /sys/module/zfs/parameters/zfs_arc_max"),
    Command("set-parameter-refused", "container /install-zfs load zfs_arc_max=lots"),
    Command(
        "set-parameter-fixed", "container /install-zfs load zfs_arc_min=40000000 zvol_threads=7"
    ),
    Command("unload-with-parameters", "container /install-zfs unload"),
    Command("load", "container /install-zfs"),
    Command("modules-loaded", MODULES.script),
    Command("load-again", "container /install-zfs load"),
    Command("modules-after-load-again", MODULES.script),
    Command(
        "load-without-device",
        _inside(
            "/bin/busybox mount -t tmpfs tmpfs /dev; /bin/busybox mknod /dev/null c 1 3;"
            " /bin/busybox mount -o remount,ro /dev; exec /install-zfs load"
        ),
    ),
    Command("check-loaded", "container /install-zfs check"),
    Command("info-loaded", "container /install-zfs info"),
    Command("zpool", "container /install-zfs zpool import -d /dev tank"),
    Command(
        "zpool-no-device",
        _inside("/bin/busybox mount -t tmpfs -o nodev tmpfs /dev; exec /install-zfs zpool status"),
    ),
    Command(
        "zpool-user-namespace",
        "container /bin/busybox unshare -U -r /install-zfs zpool list tank",
    ),
    Command(
        "zpool-other-version",
        "cd /image/userland; mv * 0.6.5; container /install-zfs zpool status",
    ),
    Command(
        "unload-pools",
        "rm -r /image/userland; mv /userland /image; mkdir /image/pools; ln -s image/pools /pools;"
        " for pool in tank backup; do truncate -s 128M /pools/$pool;"
        " container /install-zfs zpool create -f -m none $pool /pools/$pool || exit; done;"
        " container /install-zfs unload",
    ),
    Command(
        "zpool-destroy",
        "for pool in tank backup; do container /install-zfs zpool destroy $pool || exit; done;"
        " container /install-zfs zpool list",
    ),
    Command("unload-in-use", "container /install-zfs unload 3</dev/zfs"),
    Command(
        "other-version",
        "sed -i.saved s/^zfs_version=.*/zfs_version=0.6.5/ /image/kernels/*/kernel.env;"
        " container /install-zfs",
    ),
    Command("other-version-in-use", "container /install-zfs check 3</dev/zfs"),
    Command(
        "modules-after-refusals",
        f"cd /image/kernels/*; mv kernel.env.saved kernel.env; {MODULES.script}",
    ),
    Command("unload", "container /install-zfs unload"),
    Command("modules-after-unload", MODULES.script),
    Command("load-the-rest", "insmod /image/kernels/*/spl.ko; container /install-zfs"),
    Command("unload-the-rest", "container /install-zfs unload"),
    Command("device", _inside("/install-zfs && [ -c /dev/zfs ] && /bin/busybox echo there")),
    Command("unload-at-last", "container /install-zfs unload"),
    # From here on the kernel takes nothing more: these can be turned on, but not off.
    Command(
        "signatures",
        "echo Y >/sys/module/module/parameters/sig_enforce; container /install-zfs",
    ),
    Command(
        "signatures-unseen",
        _seeing("N", "/sys/module/module/parameters/sig_enforce", "load"),
    ),
    Command(
        "modules-disabled", "echo 1 >/proc/sys/kernel/modules_disabled; container /install-zfs"
    ),
    Command("unload-modules-disabled", "container /install-zfs unload"),
    Command(
        "lockdown",
        "mount -t securityfs securityfs /sys/kernel/security;"
        " echo integrity >/sys/kernel/security/lockdown; container /install-zfs",
    ),
    Command("modules-at-last", MODULES.script),
)

EXIT_CODES = {
    "info": 0,
    "info-json": 0,
    "help": 0,
    "usage-unknown-command": 2,
    "usage-load-option": 2,
    "usage-argument": 2,
    "usage-arguments-of-info": 2,
    "usage-info-option": 2,
    "parameter-syntax": 2,
    "parameter-quotes": 2,
    "parameter-unknown": 2,
    "parameter-of-other-module": 2,
    "parameter-from-environment": 2,
    "userland-missing": 2,
    "zpool-not-loaded": 5,
    "other-build": 3,
    "other-vermagic": 3,
    "other-vermagic-same-build-id": 0,
    "download-no-catalogue": 3,
    "download-not-listed": 3,
    "download-no-network": 3,
    "check-catalogued": 3,
    "download-not-found": 3,
    "download-checksum": 3,
    "download-no-image": 3,
    "download-other-kernel": 3,
    "download-insecure": 3,
    "download-no-room": 4,
    "download-silent": 3,
    "download": 0,
    "download-from-elsewhere": 0,
    "refused-in-use": 1,
    "unload-stuck": 0,
    "refused-parameter": 1,
    "load-parameters": 0,
    "set-parameter": 0,
    "set-parameter-refused": 1,
    "set-parameter-fixed": 5,
    "zpool": 7,
    "zpool-no-device": 4,
    "zpool-user-namespace": 4,
    "zpool-other-version": 5,
    "unload-pools": 5,
    "zpool-destroy": 0,
    "architecture": 3,
    "not-privileged": 4,
    "user-namespace": 4,
    "wsl2": 3,
    "built-in-parameter": 2,
    "built-in": 0,
    "unload-built-in": 5,
    "built-in-parameter-fixed": 5,
    "unload-without-zfs": 0,
    "check": 0,
    "check-among-many": 0,
    "refused": 1,
    "load": 0,
    "load-again": 0,
    "load-without-device": 0,
    "check-loaded": 0,
    "info-loaded": 0,
    "unload-in-use": 5,
    "other-version": 5,
    "other-version-in-use": 5,
    "unload": 0,
    "load-the-rest": 0,
    "device": 0,
    "signatures": 4,
    "signatures-unseen": 4,
    "modules-disabled": 4,
    "unload-modules-disabled": 4,
    "lockdown": 4,
}

ON_ANOTHER_KERNEL = (
    MODULES,
    Command("other-kernel", "container /install-zfs"),
    Command("other-kernel-check", "container /install-zfs check"),
    Command("other-kernel-info", "container /install-zfs info"),
    Command("many", MANY_KERNELS),
    Command("other-kernel-of-many", "container /install-zfs"),
    Command("none-near", "rm -r /image/kernels/6.*; container /install-zfs check"),
    Command("no-kernels", "rm -r /image/kernels; container /install-zfs check"),
    Command("no-kernels-zpool", "rm -r /image/userland; container /install-zfs zpool status"),
    Command("modules-afterwards", MODULES.script),
    Command("banner", "cat /proc/version"),
)

EXIT_CODES_ON_ANOTHER_KERNEL = {
    "other-kernel": 3,
    "other-kernel-check": 3,
    "other-kernel-info": 0,
    "other-kernel-of-many": 3,
    "none-near": 3,
    "no-kernels": 3,
    "no-kernels-zpool": 2,
}


def _run(
    commands: Sequence[Command],
    kernel: Path,
    built: Built,
    log: Path,
    files: Sequence[initramfs.Entry] = (),
) -> Transcript:
    return guest.run(
        commands,
        kernel=kernel,
        layers=built.layers,
        architecture="amd64",
        log=log,
        emulator=Emulator(),
        files=files,
        memory_mib=768,
        timeout_seconds=600.0,
    )


def _tar(files: dict[str, bytes]) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tar.getvalue()


def _assets(tar: bytes, facts: dict[str, str]) -> list[initramfs.Entry]:
    """What the server has, and catalogues: the one good, the others each with one thing wrong."""
    env = gzip.compress(_tar({"kernels/other/kernel.env": b"kernel_banner=Linux version 6.1.0\n"}))
    assets = {
        "good": lzma.compress(tar, preset=0),
        "no-image": lzma.compress(_tar({"readme": b"nothing here"})),
        "other-kernel": lzma.compress(_tar({"blobs/sha256/1": env})),
    }

    def line(name: str, **changes: str) -> str:
        asset = assets[name]
        fields = {
            "architecture": "x86_64",
            "kernel_release": facts["kernel_release"],
            "zfs_version": facts["zfs_version"],
            "slug": "some-slug",
            "size": str(len(asset)),
            "sha256": hashlib.sha256(asset).hexdigest(),
            "url": f"{SERVER}/{name}.tar.xz",
            "banner": facts["kernel_banner"],
        }
        return "\t".join((fields | changes).values())

    others = line("good", architecture="aarch64"), line("good", banner="Linux version 5.4.39")
    catalogues = {
        "others": others,
        "good": (*others, line("good")),
        "missing": (line("good", url=f"{SERVER}/missing.tar.xz"),),
        "changed": (line("good", sha256="0" * 64),),
        "no-image": (line("no-image"),),
        "other-kernel": (line("other-kernel"),),
        "insecure": (line("good", url="http://example.org/good.tar.xz"),),
    }
    return [
        *(initramfs.regular_file(f"assets/{n}.tar.xz", a) for n, a in assets.items()),
        *(
            initramfs.regular_file(f"assets/{name}", "".join(f"{x}\n" for x in lines).encode())
            for name, lines in catalogues.items()
        ),
    ]


@pytest.fixture(scope="module")
def transcript(
    built: Built,
    built_in: Setup,
    facts: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Transcript:
    (tar,) = (built_in.directory / "cache").glob("zfs-*.tar")
    log = tmp_path_factory.mktemp("loader") / "serial.log"
    return _run(SCENARIOS, built.kernel, built, log, _assets(tar.read_bytes(), facts))


@pytest.fixture(scope="module")
def elsewhere(
    built: Built, other_kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Transcript:
    log = tmp_path_factory.mktemp("loader") / "serial.log"
    return _run(ON_ANOTHER_KERNEL, other_kernel, built, log)


@pytest.fixture(scope="module")
def facts(built: Built) -> dict[str, str]:
    """The facts in the image."""
    (env,) = (
        entry.data.decode()
        for entry in initramfs.from_layers(built.layers, under="image")
        if entry.path.endswith("/kernel.env")
    )
    pairs = (line.partition("=") for line in env.splitlines())
    return {key: value for key, _, value in pairs}


def _neutral(text: str, facts: dict[str, str], other_banner: str = "") -> str:
    """The text without what differs from one kernel, image and run to the next."""
    host, _, path = facts["kernel_image"].partition("/")
    replacements = {
        facts["kernel_banner"]: "<banner>",
        facts["kernel_image"]: "<kernel image>",
        re.sub("[/:]", "-", path if re.search("[.:]|^localhost$", host) else f"{host}/{path}"): (
            "<slug>"
        ),
    }
    if facts["image"]:
        replacements[facts["image"]] = "<image>"
    if other_banner:
        other_release = other_banner.split()[2]
        replacements |= {
            other_banner: "<other banner>",
            other_release: "<other release>",
            other_release.partition("-")[0]: "<other version>",
        }
    replacements |= {
        facts["kernel_release"]: "<release>",
        facts["zfs_version"]: "<zfs>",
        facts["build_id"]: "<build-id>",
    }
    for value, name in replacements.items():
        text = text.replace(value, name)
    text = re.sub(r"<release>-[0-9a-f]{12}", "<id>", text)
    text = re.sub(r"[0-9]+ bytes, sha256 0{64}", "<size and another sha256>", text)
    text = re.sub(r"[0-9]+ bytes, sha256 [0-9a-f]{64}", "<size and sha256>", text)
    return re.sub(r"( *\[ *[0-9]+\.[0-9]+\] .*\n)+", "            <kernel log>\n", text)


def _compare(outcome: Outcome, facts: dict[str, str], other_banner: str = "") -> None:
    golden = GOLDEN / f"{outcome.name}.txt"
    text = f"{_neutral(outcome.output, facts, other_banner)}\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_code_and_message(name: str, transcript: Transcript, facts: dict[str, str]) -> None:
    assert transcript[name].exit_code == EXIT_CODES[name], transcript[name].output
    _compare(transcript[name], facts)


@pytest.mark.parametrize("name", EXIT_CODES_ON_ANOTHER_KERNEL)
def test_exit_code_and_message_on_another_kernel(
    name: str, elsewhere: Transcript, facts: dict[str, str]
) -> None:
    assert elsewhere[name].exit_code == EXIT_CODES_ON_ANOTHER_KERNEL[name], elsewhere[name].output
    _compare(elsewhere[name], facts, elsewhere["banner"].output)


def test_another_kernel_is_left_alone(elsewhere: Transcript) -> None:
    assert elsewhere["modules"].output == elsewhere["modules-afterwards"].output
    assert "install-zfs" not in elsewhere["other-kernel"].kernel_log


@pytest.mark.parametrize(
    "name",
    [
        "modules-after-failed-downloads",
        "modules-after-check",
        "modules-after-refusal",
        "modules-after-unload",
    ],
)
def test_nothing_stays_loaded(name: str, transcript: Transcript) -> None:
    assert transcript[name].output == transcript["modules-untouched"].output


@pytest.mark.parametrize("name", ["modules-after-load-again", "modules-after-refusals"])
def test_what_is_loaded_stays_as_it_is(name: str, transcript: Transcript) -> None:
    assert "zfs" in transcript["modules-loaded"].output.split()
    assert transcript[name].output == transcript["modules-loaded"].output


def test_nothing_is_loaded_where_it_is_not_allowed(transcript: Transcript) -> None:
    assert transcript["modules-at-last"].output == transcript["modules-untouched"].output


def test_the_kernel_log_says_who_loaded_zfs(transcript: Transcript, facts: dict[str, str]) -> None:
    assert f"install-zfs: loading ZFS {facts['zfs_version']}" in transcript["load"].kernel_log


def test_info_is_json(transcript: Transcript, facts: dict[str, str]) -> None:
    info = json.loads(transcript["info-json"].output)
    (kernel,) = info["kernels"]
    assert kernel["running"]
    assert kernel["build_id"] == info["running"]["build_id"] == facts["build_id"]


def test_parameters_reach_the_modules_that_have_them(transcript: Transcript) -> None:
    assert transcript["parameters"].output.split() == ["134217728", "7", "0"]


def test_a_parameter_of_a_loaded_module_is_set(transcript: Transcript) -> None:
    assert transcript["set-parameter-value"].output == "150000000"


def test_a_hundred_kernels_cost_no_time(transcript: Transcript) -> None:
    assert transcript["many"].output == "100"
    assert _seconds(transcript["seconds-of-many"]) < 2 * _seconds(transcript["seconds-of-one"]) + 3


def _seconds(outcome: Outcome) -> float:
    before, after = outcome.output.split()
    return float(after) - float(before)
