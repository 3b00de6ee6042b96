#!/bin/sh
# Puts tarballs of OpenZFS into a directory by their versions, each with its META beside it.
# usage: sources.sh TARBALLS DIRECTORY
set -eu

mkdir -p "$2"
for tarball in "$1"/*.tar.gz; do
    meta=$(tar -tzf "$tarball" | sed -n '/^[^/]*\/META$/p')
    [ -n "$meta" ] || {
        echo "sources: no OpenZFS sources in $tarball" >&2
        exit 1
    }
    tar -xzOf "$tarball" "$meta" >"$2/META"
    version=$(sed -n 's/^Version: *//p' "$2/META")
    cp "$tarball" "$2/zfs-$version.tar.gz"
    mv "$2/META" "$2/zfs-$version.meta"
done
