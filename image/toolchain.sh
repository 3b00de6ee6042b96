#!/bin/sh
# Puts what building kernel modules needs beside the compiler that the builder image brings.
# The compiler itself is never replaced: it must be the kernel's own.
set -eu

if command -v apk >/dev/null; then
    # One by one: older builders carry a mirror of their own, in which some of these are missing.
    for package in bash bc build-base elfutils-dev findutils gawk kmod linux-headers \
        openssl-dev perl tar xz zstd; do
        apk add --no-cache "$package" >/dev/null || echo "toolchain: no package $package here"
    done
elif command -v apt-get >/dev/null; then
    missing=
    for package in bc busybox-static gawk gcc kmod libelf-dev libssl-dev make perl xz-utils zstd; do
        # dpkg also knows packages by name that others only recommend.
        # shellcheck disable=SC2016 # dpkg-query expands it
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        apt-get update -qq
        # shellcheck disable=SC2086 # a list of words
        apt-get install -y -qq --no-install-recommends $missing
        rm -rf /var/lib/apt/lists/*
    fi
fi

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
