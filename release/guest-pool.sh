#!/bin/sh
# Runs in a container of the image: a pool on a file, from its making to its end. Each step's time and
# the memory available after it are told at the end of its line.
#
# usage: guest-pool.sh DIRECTORY
# DIRECTORY takes the file. It is at the same path inside and outside of the container: the kernel opens
# the file from threads that are in none.
pool=$1

zfs() { /install-zfs zfs "$@"; }
zpool() { /install-zfs zpool "$@"; }
busybox() { /bin/busybox "$@"; }
mount_data() { busybox mkdir -p /data && busybox mount -t zfs smoke/data /data; }
sum() { busybox sha256sum /data/*; }

available() {
    busybox sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo
}

now() {
    read -r seconds rest </proc/uptime
    echo "${seconds%.*}${seconds#*.}"
}

step() { # NAME COMMAND...
    name=$1
    shift
    from=$(now)
    "$@" || {
        echo "step $name failed with $?"
        zpool status -v 2>&1
        busybox umount /data
        zpool destroy -f smoke
        exit 1
    }
    echo "step $name $(($(now) - from)) $(available)"
}

create() {
    busybox truncate -s 128M "$pool/disk" &&
        zpool create -f -m none smoke "$pool/disk" &&
        zfs create -o mountpoint=legacy -o compression=on smoke/data
}

# Half of it cannot be compressed, half of it can.
write() {
    mount_data && busybox dd if=/dev/urandom of=/data/random bs=64k count=128 2>/dev/null &&
        busybox dd if=/dev/zero of=/data/zero bs=64k count=128 2>/dev/null &&
        first=$(sum)
}

snapshot() { zfs snapshot smoke/data@first; }

overwrite() {
    busybox dd if=/dev/urandom of=/data/random bs=64k count=64 conv=notrunc 2>/dev/null &&
        second=$(sum) && [ "$second" != "$first" ]
}

export_pool() { busybox umount /data && zpool export smoke && [ ! -e /proc/spl/kstat/zfs/smoke ]; }
import_pool() { zpool import -d "$pool" smoke; }

scrub() {
    zpool scrub smoke || return
    while :; do
        status=$(zpool status smoke) || return
        case $status in
        *'scrub repaired '*) break ;;
        esac
        busybox usleep 100000
    done
    case $status in
    *'errors: No known data errors'*) ;;
    *) return 1 ;;
    esac
}

compare() {
    mount_data && found=$(sum) && [ "$found" = "$second" ] &&
        busybox umount /data && zfs rollback smoke/data@first &&
        mount_data && found=$(sum) && [ "$found" = "$first" ] && busybox umount /data
}

destroy() { zpool destroy smoke && busybox rm "$pool/disk"; }

step create create
step write write
step snapshot snapshot
step overwrite overwrite
step export export_pool
step import import_pool
step scrub scrub
step compare compare
step destroy destroy
