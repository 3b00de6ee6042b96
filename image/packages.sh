#!/bin/sh
# Installs what is missing of the packages of the distribution that the builder image is of.
# usage: packages.sh ALPINE-PACKAGES DEBIAN-PACKAGES
set -eu

if command -v apk >/dev/null; then
    # One by one: older builders carry a mirror of their own, in which some of these are missing.
    for package in $1; do
        apk add --no-cache "$package" >/dev/null || echo "packages: no $package here"
    done
elif command -v apt-get >/dev/null; then
    missing=
    for package in $2; do
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
