#!/bin/sh
# Prints the banner of the kernel that headers are for, put together as init/version.c does it.
# usage: banner.sh HEADERS
set -eu
generated=$1/include/generated

define() {
    cat "$generated/utsrelease.h" "$generated/compile.h" "$generated/utsversion.h" 2>/dev/null |
        sed -n "s/^#define $1[[:space:]]*\"\(.*\)\"\$/\1/p"
}

for name in UTS_RELEASE LINUX_COMPILE_BY LINUX_COMPILE_HOST LINUX_COMPILER UTS_VERSION; do
    [ -n "$(define "$name")" ] || {
        echo "banner: the headers do not say $name, so not which kernel they are for" >&2
        exit 1
    }
done
echo "Linux version $(define UTS_RELEASE) ($(define LINUX_COMPILE_BY)@$(define LINUX_COMPILE_HOST))" \
    "($(define LINUX_COMPILER)) $(define UTS_VERSION)"
