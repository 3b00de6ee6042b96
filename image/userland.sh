#!/bin/sh
# Compiles the commands zfs and zpool, and puts the libraries that they need beside them; and beside
# those the program through which busybox's wget speaks TLS, which shares the largest of them.
# usage: userland.sh ZFS_VERSION TARBALL DIRECTORY
# Leaves them in DIRECTORY/userland/ZFS_VERSION, which is at /userland/ZFS_VERSION in the image.
set -eu
version=$1
root=$3
place=/userland/$version

sh "$(dirname "$0")/packages.sh" \
    "libtirpc-dev openssl openssl-dev pkgconf util-linux-dev zlib-dev" \
    "libblkid-dev libssl-dev libtirpc-dev openssl pkg-config uuid-dev zlib1g-dev"

mkdir -p /userland-of-zfs "$root$place/lib"
tar -xzf "$2" -C /userland-of-zfs --strip-components=1
cd /userland-of-zfs
# The kernel does the work of these commands, so that better code would take longer to make than it saves.
./configure --no-create --with-config=user --disable-shared --enable-static --disable-nls \
    --disable-pyzfs --disable-pam --disable-systemd --disable-sysvinit --disable-dependency-tracking \
    --without-python --prefix=/usr --sysconfdir=/etc --runstatedir=/run CFLAGS=-O1 || {
    echo "userland: ZFS $version's configure refused (see above)" >&2
    exit 1
}
# Of some hundred files that configure would make, the commands need these.
files=$(sed -n 's/^ *"\(Makefile\|libtool\|zfs_config\.h\|\(lib\|cmd\)\/[^"]*\)").*/\1/p' config.status)
# shellcheck disable=SC2086 # a list of words
./config.status $files

# The commands run with the libraries beside them, whatever the image holds otherwise. A RUNPATH
# would not count for the libraries of libraries.
interpreter=$(ldd "$(command -v make)" | sed -n 's/^[[:space:]]*\(\/[^ ]*\).*/\1/p' | head -n 1)
flags="-Wl,--disable-new-dtags -Wl,-rpath,$place/lib -Wl,--dynamic-linker=$place/lib/${interpreter##*/}"

# Makes the libraries of ZFS that the Makefile.am in a directory names, and theirs before them.
make_libraries() {
    # shellcheck disable=SC2013 # words: no file's name has a blank
    for library in $(grep -o 'lib/lib[a-z_]*/lib[a-z_]*\.la' "$1/Makefile.am" | sort -u); do
        [ ! -f "$library" ] || continue
        (make_libraries "${library%/*}")
        make -s -C "${library%/*}" -j"$(nproc)"
    done
}

if [ -f cmd/zpool/Makefile ]; then
    # Until 2.1 each directory has a makefile of its own.
    for command in zfs zpool; do
        make_libraries "cmd/$command"
        make -s -C "cmd/$command" -j"$(nproc)" LDFLAGS="$flags"
        cp "cmd/$command/$command" "$root$place/"
    done
else
    make -s -j"$(nproc)" zfs zpool LDFLAGS="$flags"
    cp zfs zpool "$root$place/"
fi
strip "$root$place/zfs" "$root$place/zpool"
cp "$interpreter" "$root$place/lib/"
# What busybox speaks itself is refused by servers of today. Which of the two it runs is its builder's
# choice; both look for their interpreter where the image has none.
for command in openssl ssl_client; do
    program=$(command -v "$command") || continue
    cp "$program" "$root$place/lib/$command"
    cat >"$root$place/$command" <<WRAPPER
#!/bin/busybox sh
exec $place/lib/${interpreter##*/} --library-path $place/lib $place/lib/$command "\$@"
WRAPPER
    chmod 755 "$root$place/$command"
done
for program in "$root$place/zfs" "$root$place/zpool" "$root$place"/lib/*; do
    # Not ldd: it runs the command, whose interpreter is not there before it is in the image.
    "$interpreter" --list "$program"
done | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' |
    sort -u | while read -r library; do cp -L "$library" "$root$place/lib/"; done

found=$(chroot "$root" "$place/zpool" --version | head -n 1)
case $found in
"zfs-$version" | "zfs-$version"-*) ;;
*)
    echo "userland: zpool says that it is ${found:-nothing}, not zfs-$version" >&2
    exit 1
    ;;
esac
rm -rf /userland-of-zfs

# The same files make the same layer, whatever kernel's image they are in.
find "$root" -exec touch -h -d @0 {} +
