#!/bin/sh
# Puts what building kernel modules needs beside the compiler that the builder image brings.
# The compiler itself is never replaced: it must be the kernel's own.
set -eu

sh "$(dirname "$0")/packages.sh" \
    "bash bc build-base elfutils-dev findutils gawk kmod linux-headers openssl-dev perl tar xz zstd" \
    "bc busybox-static gawk gcc kmod libelf-dev libssl-dev make perl xz-utils zstd"

depmod --version 2>/dev/null | grep -q '^kmod' || {
    echo "toolchain: the builder image has no kmod, whose depmod checks the modules' symbols" >&2
    exit 1
}
for command in awk depmod gcc make modinfo perl strip tar xz; do
    command -v "$command" >/dev/null || {
        echo "toolchain: the builder image has no $command, and no package that brings it" >&2
        exit 1
    }
done
