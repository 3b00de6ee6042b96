#!/bin/sh
# Copies a kernel's headers without what sets it apart from other builds of the same source: the
# release's suffix, the build's date and salt, the seed of struct randomisation, and the versions
# of symbols. ZFS's configure, which asks for interfaces, finds the same answers in the copy; the
# modules are compiled against the real headers.
# usage: alike.sh HEADERS ALIKE
set -eu
tests=$(dirname "$(readlink -f "$0")")/tests.mk
cp -a "$1" "$2"
cd "$2"

blank() {
    for file in "$@"; do
        [ ! -f "$file" ] || : >"$file"
    done
}

edit() {
    script=$1
    shift
    for file in "$@"; do
        [ ! -f "$file" ] || sed -i "$script" "$file"
    done
}

release='s/^\(#define UTS_RELEASE "\)\{0,1\}\([0-9.]*[0-9]\)[^"]*/\1\2-alike/'
edit "$release" include/generated/utsrelease.h include/config/kernel.release
blank include/generated/compile.h include/generated/utsversion.h include/generated/rustc_cfg
edit 's/".*"/""/' include/generated/package.h
salt='\(CONFIG_BUILD_SALT\|CONFIG_LOCALVERSION\)'
edit "/RANDSTRUCT/d; /^#\$/d; /^# Linux\//d; s/$salt=.*/\1=/; s/$salt \".*\"/\1 \"\"/" \
    .config include/config/auto.conf include/generated/autoconf.h
rm -f scripts/basic/randstruct.seed scripts/gcc-plugins/randomize_layout_seed.h \
    scripts/gcc-plugins/randomize_layout_plugin.so
blank include/generated/randomize_layout_hash.h include/generated/randstruct_hash.h
# configure compiles some two hundred modules to see which compile, and looks whether there is a .ko.
# Whether the symbols are there, modpost has found out before; the linking is left out, and so is
# what is done to an object afterwards. This only works the way it has since Linux 5.4.
edit '/^CONFIG_\(OBJTOOL\|STACK_VALIDATION\|MODVERSIONS\|DEBUG_INFO.*\)=/d' include/config/auto.conf
if [ -f scripts/Makefile.modfinal ]; then
    {
        echo 'PHONY := __modfinal'
        echo '__modfinal:'
        printf '\t@%s\n' "sed 's/\\.k*o\$\$/.ko/' \$(KBUILD_EXTMOD)/modules.order | xargs -r touch"
    } >scripts/Makefile.modfinal
fi
edit 's/^0x[0-9a-f]*/0x00000000/' Module.symvers
# This header only sees to it that nobody includes it twice.
blank include/linux/compiler-version.h
awk -v tests="$tests" '
    /^include .*scripts\/Makefile\.lib$/ { while ((getline line < tests) > 0) print line }
    { print }
' scripts/Makefile.build >scripts/Makefile.build.new
mv scripts/Makefile.build.new scripts/Makefile.build
find . -name '.*.cmd' -delete
