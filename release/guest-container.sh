#!/image/bin/busybox sh
# container [-v DIRECTORY:PLACE]... COMMAND [ARGUMENT]...
#
# Runs the command in the image as `docker run --rm --privileged` would: in namespaces of its own,
# with every capability, and in /dev the devices that exist now, not those that appear later.

if [ "${CONTAINER-}" != inside ]; then
    CONTAINER=inside exec unshare -m -u -i -p -f "$0" "$@"
fi

# The root is moved over the old one, as a container's is: in a mere chroot the kernel would
# refuse what it allows in a container.
mount -o bind /image /image
while [ "$1" = -v ]; do
    mkdir -p "/image${2#*:}"
    mount -o bind "${2%%:*}" "/image${2#*:}"
    shift 2
done
mount -t proc proc /image/proc
mount -t sysfs sysfs /image/sys
mount -t tmpfs tmpfs /image/dev
cp -a /dev/. /image/dev
cd /image || exit
mount -o move . /
exec env -i chroot . "$@"
