#!/bin/sh
# Stands in for the preprocessor before genksyms, which makes of a symbol's declaration the version that
# an importing module has to agree with. The types in a declaration would have to be read from all of the
# kernel's headers, for each file anew: a quarter of the whole time. Here a symbol's type is named by a
# checksum of how ZFS was configured instead, so that modules of two builds never go together, whatever
# their types are.
# usage: exports.sh COMPILER-FLAGS...
set -eu

for flag in "$@"; do
    case $flag in
    -Wp,-M*,*.d) depends=${flag##*,} ;;
    esac
done
name=${depends##*/.}
build=$(sha256sum </zfs/zfs_config.h)
for object in "${depends%/*}/.tmp_${name%.d}" "${depends%/*}/${name%.d}"; do
    [ ! -f "$object" ] || nm "$object"
done | sed -n 's/.* __\(ksymtab\|export_symbol\)_//p' | while read -r symbol; do
    echo "extern char ${symbol}[0x${build%% *}];"
    # Genksyms goes by one or the other, by the age of the kernel.
    echo "EXPORT_SYMBOL($symbol);"
    echo "__GENKSYMS_EXPORT_SYMBOL($symbol);"
done
