#!/bin/sh
# Puts the modules of one kernel into the directory that the loader looks for.
# usage: describe.sh MODULES KERNELS IMAGE KERNEL_IMAGE BUILD_ID
set -eu
modules=$1
kernels=$2

mkdir -p "$kernels/new"
cp "$modules"/*.ko "$modules/modules.load" "$kernels/new/"
{
    echo "image=$3"
    echo "kernel_image=$4"
    cat "$modules/facts"
    [ -z "$5" ] || echo "build_id=$5"
} >"$kernels/new/kernel.env"

release=$(sed -n 's/^kernel_release=//p' "$kernels/new/kernel.env")
id=$(sha256sum "$kernels/new/kernel.env" | cut -c 1-12)
mv "$kernels/new" "$kernels/$release-$id"
