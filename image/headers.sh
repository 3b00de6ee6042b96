#!/bin/sh
# Unpacks the headers of a kernel, or those of another build of it with this one's seed put in.
# usage: headers.sh KERNEL-DEV.TAR OTHER-KERNEL-DEV.TAR DIRECTORY
# A tree of headers in a tar's place is copied.
set -eu

# Leaves the tree of headers of a tar in a directory.
unpack() {
    if [ -d "$1" ]; then
        cp -a "$1/." "$2"
        return
    fi
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
}

unpack "$2" "$3"
if [ "$1" != "$2" ] && ! cmp -s "$1" "$2"; then
    # The seed, the plugin that it is compiled into, its hash, and what makes the banner. What kbuild
    # knows of their making goes along, and their times stay: it would make them anew.
    unpack "$1" /own
    for file in \
        scripts/gcc-plugins/randomize_layout_seed.h \
        scripts/gcc-plugins/randomize_layout_plugin.so \
        scripts/basic/randstruct.seed \
        include/generated/randomize_layout_hash.h \
        include/generated/randstruct_hash.h \
        include/generated/compile.h \
        include/generated/utsversion.h; do
        for path in "$file" "${file%/*}/.${file##*/}.cmd"; do
            rm -f "$3/$path"
            [ ! -f "/own/$path" ] || cp -p "/own/$path" "$3/$path"
        done
    done
    rm -rf /own
fi
# With a vmlinux beside the headers kbuild would want pahole, for type information nobody reads.
rm -f "$3/vmlinux"
