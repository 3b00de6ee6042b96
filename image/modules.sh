#!/bin/sh
# Compiles the configured ZFS in /zfs for the kernel whose headers are at /usr/src/linux and whose
# image is at /kernel.
# usage: modules.sh ZFS_VERSION OUT
# Leaves in OUT: the modules (*.ko, in-tree dependencies included), modules.load, and facts.
set -eu
here=$(dirname "$(readlink -f "$0")")
zfs_version=$1
out=$2
headers=/usr/src/linux
root=/root-of-modules
mkdir -p "$root" "$out"

fail() {
    echo "modules: $*" >&2
    exit 1
}

release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$headers/include/generated/utsrelease.h")

# modules.mk precompiles headers; the first one only sees to it that nobody includes it twice.
[ ! -f "$headers/include/linux/compiler-version.h" ] || : >"$headers/include/linux/compiler-version.h"
awk -v more="$here/modules.mk" '
    { print }
    /^include .*scripts\/Makefile\.lib$/ { while ((getline line < more) > 0) print line }
' "$headers/scripts/Makefile.build" >/Makefile.build
cat /Makefile.build >"$headers/scripts/Makefile.build"
export FIRST="$here/first.h"

# Debug information is stripped in the end; not making it saves a quarter of the time.
export KCFLAGS=-g0
make -C /zfs/module -j"$(nproc)" || fail "the compiler refused (see above)"

if grep -q '^CONFIG_MODVERSIONS=y' "$headers/include/config/auto.conf" &&
    grep '^0x00000000' /zfs/module/Module.symvers >&2; then
    fail "these symbols were given no version"
fi

# modules.dep knows what must be there before zfs, and depmod checks every symbol and its version
# against what the kernel and the modules export.
if [ -f /kernel/kernel.tar ]; then
    tar -xf /kernel/kernel.tar -C "$root"
fi
if [ ! -e "$root/lib" ] && [ -d "$root/usr/lib" ]; then
    ln -s usr/lib "$root/lib"
fi
tree=$root/lib/modules/$release
mkdir -p "$tree/extra"
touch "$tree/modules.order" "$tree/modules.builtin"
find /zfs/module -name '*.ko' -exec cp {} "$tree/extra/" \;
strip --strip-debug "$tree"/extra/*.ko
depmod -b "$root" -e -E "$headers/Module.symvers" "$release" 2>/depmod.log || {
    cat /depmod.log >&2
    fail "depmod refused"
}
if grep '/extra/' /depmod.log >&2; then
    fail "the modules do not fit the kernel's symbols (see above)"
fi

# A line of modules.dep names what a module needs, the first to load last.
sed -n 's/:/ /; s/^extra\/zfs\.ko\( .*\)*$/&/p' "$tree/modules.dep" |
    awk '{ for (i = NF; i > 0; i--) print $i }' >/order
[ -s /order ] || fail "zfs.ko is not among the compiled modules"
: >"$out/modules.load"
while read -r path; do
    name=$(basename "$path")
    case $name in
    *.ko.xz) name=${name%.xz} && xz -dc "$tree/$path" >"$out/$name" ;;
    *.ko.zst) name=${name%.zst} && zstd -qdc "$tree/$path" >"$out/$name" ;;
    *.ko.gz) name=${name%.gz} && gzip -dc "$tree/$path" >"$out/$name" ;;
    *) cp "$tree/$path" "$out/$name" ;;
    esac
    echo "$name" >>"$out/modules.load"
done </order

banner=$(sh "$(dirname "$0")/banner.sh" "$headers")
{
    echo "kernel_release=$release"
    echo "kernel_banner=$banner"
    echo "vermagic=$(modinfo -F vermagic "$out/zfs.ko" | sed 's/ *$//')"
    echo "architecture=$(uname -m)"
    echo "zfs_version=$zfs_version"
} >"$out/facts"
rm -rf "$root" /depmod.log /order /Makefile.build
