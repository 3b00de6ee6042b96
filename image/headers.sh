#!/bin/sh
# Unpacks a kernel's headers.
# usage: headers.sh KERNEL-DEV.TAR DIRECTORY
set -eu

[ -f "$1" ] || {
    echo "headers: the kernel image has no kernel-dev.tar" >&2
    exit 1
}
# By way of a directory of their own: the tar is not to reach anything else.
mkdir /unpacked
tar -xf "$1" -C /unpacked
for directory in /unpacked/usr/src/linux-headers-*; do
    if [ -f "$directory/include/generated/utsrelease.h" ]; then
        mv "$directory" "$2"
        break
    fi
done
rm -rf /unpacked
[ -d "$2" ] || {
    echo "headers: kernel-dev.tar has no include/generated/utsrelease.h" >&2
    exit 1
}
# With a vmlinux beside the headers kbuild would want pahole, for type information nobody reads.
rm -f "$2/vmlinux"
