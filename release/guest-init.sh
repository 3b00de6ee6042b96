#!/image/bin/busybox sh
# The init of a guest that tries out a module image: plays the machine that runs containers.
#
# /image is the image's root file system; its busybox is the only program here. The scripts in
# /commands run in the order of their names; what each printed, what the kernel logged meanwhile
# and its exit code go to the console in lines that start with the content of /nonce, which
# nothing else knows.

export PATH=/bin
/image/bin/busybox mkdir -p /bin /proc /sys /dev /tmp /lib/modules
/image/bin/busybox mount -t proc proc /proc
/image/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o ro tmpfs /lib/modules
mkdir -p /image/proc /image/sys /image/dev

# From here on the kernel writes to its log alone, not between our lines.
dmesg -n 1
read -r nonce </nonce

report() { # NAME EXIT_CODE
    {
        sed "s/^/$nonce $1 output /" /tmp/output
        echo
        sed "s/^/$nonce $1 kernel /" /tmp/kernel
    } >/tmp/report
    cat /tmp/report
    echo "$nonce $1 exit $2 $(grep -c "^$nonce" /tmp/report)"
}

dmesg -c >/dev/null
for script in /commands/*; do
    sh "$script" >/tmp/output 2>&1 </dev/null
    code=$?
    dmesg -c >/tmp/kernel
    report "${script##*/}" $code
done
reboot -f
