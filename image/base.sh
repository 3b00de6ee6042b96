#!/bin/sh
# Puts busybox into the image's base: the shell and the few tools that the loader is written for.
# usage: base.sh DIRECTORY
set -eu
base=$1

mkdir -p "$base/bin"
busybox=$(command -v busybox.static || command -v busybox)
cp "$(readlink -f "$busybox")" "$base/bin/busybox"
chmod 755 "$base/bin/busybox"

# Alpine's busybox is linked to musl, which is a single file.
for library in /lib/ld-musl-*.so.1; do
    if [ -e "$library" ] && ! chroot "$base" /bin/busybox true 2>/dev/null; then
        mkdir -p "$base/lib"
        cp "$library" "$base/lib/"
    fi
done
chroot "$base" /bin/busybox true

# The applets that the loader is written for.
chroot "$base" /bin/busybox --list >/applets
for applet in awk dmesg find grep gunzip insmod mkdir mknod mount od rm rmmod sed sha256sum sh \
    sleep sort stat tail tar tr uname unxz wget; do
    grep -qx "$applet" /applets || {
        echo "base: busybox has no $applet, which the loader needs" >&2
        exit 1
    }
done
rm /applets

# The same files make the same layer, whatever kernel's image they are in.
find "$base" -exec touch -h -d @0 {} +
