#!/bin/sh
# Lets ZFS's configure find out what the kernel whose headers are at /usr/src/linux offers.
# usage: configure.sh ZFS_VERSION TARBALL DIRECTORY
set -eu

mkdir "$3"
tar -xzf "$2" -C "$3" --strip-components=1
cd "$3"
found=$(sed -n 's/^Version: *//p' META)
[ "$found" = "$1" ] || {
    echo "configure: the OpenZFS sources are $found, not $1" >&2
    exit 1
}
export KCFLAGS=-g0
./configure --no-create --with-config=kernel --disable-dependency-tracking \
    --with-linux=/usr/src/linux --with-linux-obj=/usr/src/linux || {
    echo "configure: ZFS $1 refused (see above)" >&2
    exit 1
}
# Of some hundred files that configure would make, the modules need these.
files=$(sed -n 's/^ *"\(module\/[^"]*\)").*/\1/p' config.status)
# shellcheck disable=SC2086 # a list of words
./config.status zfs_config.h $files
rm -rf build
