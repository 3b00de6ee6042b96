#!/bin/sh
# shellcheck shell=dash # busybox's shell has local, too
#
# The entrypoint of the image that builds ZFS on the spot: for a running kernel that no module image
# is published for, from that kernel's own headers, by the steps that published images are made by.
#
# What was built is kept in a volume, in the form that published images have (see the loader), and
# with two files more: `headers`, a sum over what the headers say of their kernel, and `sums`, one of
# each file. The loader loads it, at the first start and at every later one.

set -u
export PATH

readonly DONE=0 REFUSED=1 USAGE=2 NOT_THIS_KERNEL=3 NOT_ALLOWED=4

# Where things are; tests put other places here.
own_root=              # what the mounts of this container show
host_root=/proc/1/root # with --privileged --pid=host: what the machine itself sees
proc=/proc
cache=/var/cache/install-zfs
sources=/openzfs
scripts=/build
work=/spot
loader=/install-zfs
progress_seconds=10

readonly MODULES_MOUNT='-v /lib/modules:/lib/modules:ro'
readonly HEADERS_MOUNT='-v /usr/src:/usr/src:ro'
readonly CACHE_MOUNT='-v install-zfs:/var/cache/install-zfs'

say() { printf '%s\n' "$@"; }
note() { say "install-zfs: $1" >&2; }

# fail CODE WHAT FOUND EXPECTED NEXT: ends with CODE. Each of the last three may have several lines.
fail() {
    local code=$1
    {
        say "install-zfs: $2"
        labelled 'found:   ' "$3"
        labelled 'expected:' "$4"
        labelled 'next:    ' "$5"
    } >&2
    exit "$code"
}

labelled() {
    [ -z "$2" ] || say "$2" | sed "1s/^/  $1 /; 2,\$s/^/            /"
}

docker_run() {
    say "docker run --rm --privileged $MODULES_MOUNT $HEADERS_MOUNT $CACHE_MOUNT $(image)${1:+ $1}"
}

image() { say "${IMAGE:-install-zfs}:build"; }

docker_build() {
    say "docker build --target on-the-spot --build-arg BUILDER_IMAGE=<builder> \\" \
        "  --build-arg ZFS_VERSION=$zfs_version -t $(image) ."
}

restart() {
    say "restart Docker Desktop: it may have been updated while this kernel was running; then" \
        "$(docker_run)"
}

ready_made() {
    say "take an image that is built already:" \
        "docker run --rm --privileged ${IMAGE:-install-zfs}:desktop-<your Docker Desktop version>"
}

usage() {
    say \
        "usage: $(docker_run '[load|build|check|unload|info|zfs|zpool]')" \
        "" \
        "  load          build ZFS for the running kernel, unless that is done, and load it (the default)" \
        "  build         build it only" \
        "  check         say what load would do; builds and touches nothing" \
        "  unload        unload ZFS" \
        "  info [--json] say what was built and what this machine runs" \
        "  zfs, zpool    run these commands of ZFS, once it is loaded"
}

# --- The running kernel and its headers -----------------------------------------------------------

read_running() {
    running_release=$(cat "$proc/sys/kernel/osrelease")
    running_banner=$(cat "$proc/version")
}

is_mounted() {
    awk -v path="$(readlink -f "$1")" '$5 == path { found = 1 } END { exit !found }' \
        "$proc/self/mountinfo"
}

# Sets root to where the running kernel's files can be seen, and headers to their directory; empty
# where there is none.
find_headers() {
    local link
    for root in "$own_root" "$host_root"; do
        link=$(readlink "$root/lib/modules/$running_release/build")
        # Where root is the machine's, a link in it points to a place in it.
        for headers in "$root/lib/modules/$running_release/build" "$root$link" \
            "$root/usr/src/linux-headers-$running_release"; do
            [ ! -f "$headers/include/generated/utsrelease.h" ] || return 0
        done
    done
    headers='' root=''
}

# Ends unless there are headers of exactly the running kernel.
check_headers() {
    local missing='' release banner
    if [ -z "$headers" ]; then
        is_mounted /lib/modules || missing=$MODULES_MOUNT
        is_mounted /usr/src || missing="${missing:+$missing
}$HEADERS_MOUNT"
        [ -z "$missing" ] || fail $USAGE \
            "the headers of the running kernel cannot be seen from here." \
            "a container without
$missing" \
            "/lib/modules/$running_release/build or /usr/src/linux-headers-$running_release" \
            "$(docker_run)"
        case $running_release in
            *microsoft-standard-WSL2*)
                fail $NOT_THIS_KERNEL \
                    "the running kernel is Microsoft's for WSL 2; its headers are not there." \
                    "$running_release" \
                    "a kernel of Docker Desktop" \
                    "turn off Settings > General > Use the WSL 2 based engine (Docker Desktop then runs its own
kernel on Hyper-V); then
$(docker_run)"
                ;;
        esac
        fail $NOT_THIS_KERNEL \
            "this machine does not have the headers of its kernel." \
            "neither /lib/modules/$running_release/build nor /usr/src/linux-headers-$running_release" \
            "one of them; Docker Desktop has it since 4.31" \
            "update Docker Desktop, or
$(ready_made)"
    fi
    release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$headers/include/generated/utsrelease.h")
    [ "$release" = "$running_release" ] || fail $NOT_THIS_KERNEL \
        "the headers are another kernel's; nothing was built." \
        "$release ($headers)" \
        "$running_release" \
        "$(restart)"
    banner=$(sh "$scripts/banner.sh" "$headers" 2>&1)
    [ "$banner" = "$running_banner" ] || fail $NOT_THIS_KERNEL \
        "the headers are those of another build of the running kernel; nothing was built." \
        "$banner ($headers)" \
        "$running_banner" \
        "$(restart)"
    # depmod finds out with these what has to be loaded before zfs.
    [ -d "$root/lib/modules/$running_release" ] || is_mounted /lib/modules || fail $USAGE \
        "the modules of the running kernel cannot be seen from here." \
        "a container without $MODULES_MOUNT" \
        "/lib/modules/$running_release" \
        "$(docker_run)"
}

# A sum over what tells the kernel that the headers are for from all others.
fingerprint() {
    (
        cd "$headers" || exit
        for file in .config include/config/auto.conf include/generated/utsrelease.h \
            include/generated/compile.h include/generated/utsversion.h \
            include/generated/randomize_layout_hash.h include/generated/randstruct_hash.h \
            scripts/gcc-plugins/randomize_layout_seed.h Module.symvers; do
            [ ! -f "$file" ] || { say "$file" && cat "$file"; }
        done
    ) | sha256sum | cut -d ' ' -f 1
}

# --- The compiler ---------------------------------------------------------------------------------

# "gcc 12" of a compiler's name for itself or of a banner; empty where it names none.
family_and_major() {
    say "$1" | sed -n \
        -e 's/.*clang version \([0-9][0-9]*\)\..*/clang \1/p; t' \
        -e 's/.*gcc version \([0-9][0-9]*\)\..*/gcc \1/p; t' \
        -e 's/.*cc[^ (]* ([^)]*) \([0-9][0-9]*\)\..*/gcc \1/p'
}

kernel_compiler() {
    cat "$headers/include/config/auto.conf" "$headers/.config" 2>/dev/null |
        sed -n 's/^CONFIG_CC_VERSION_TEXT="\(.*\)"$/\1/p' | head -n 1
}

# Ends unless the image has a compiler of the kernel's major version; sets compiler to it.
check_compiler() {
    local kernel own wanted major next
    kernel=$(kernel_compiler)
    wanted=$(family_and_major "${kernel:-$running_banner}")
    own=$(gcc --version | head -n 1)
    major=${wanted##* }
    compiler=gcc
    [ "$wanted" != "$(family_and_major "$own")" ] || return 0
    if [ "${wanted% *}" = gcc ] && command -v "gcc-$major" >/dev/null; then
        compiler=gcc-$major
        return 0
    fi
    next="make this image from a builder image that has ${wanted:-it}, in a checkout of its project:
$(docker_build)"
    [ "${wanted% *}" != clang ] || next=$(ready_made)
    fail $NOT_THIS_KERNEL \
        "this image has another compiler than the kernel was compiled by; nothing was built." \
        "$own" \
        "${wanted:-a compiler that the kernel names} (${kernel:-$running_banner})" \
        "$next"
}

# Ends unless the headers' own programs, which take part in the compilation, run in this image.
check_tools() {
    local tool said plugin
    for tool in scripts/basic/fixdep scripts/mod/modpost; do
        said=$("$headers/$tool" 2>&1 </dev/null)
        case $? in
            126 | 127) ;;
            *) continue ;;
        esac
        fail $NOT_THIS_KERNEL \
            "a program among the headers does not run in this image; nothing was built." \
            "$headers/$tool: ${said##*: }" \
            "an image with the C library that it is linked to" \
            "make this image from the builder image that the kernel was compiled in, in a checkout of its
project:
$(docker_build)"
    done
    if grep -q '^CONFIG_RANDSTRUCT=y\|^CONFIG_GCC_PLUGIN_RANDSTRUCT=y' \
        "$headers/include/config/auto.conf" 2>/dev/null &&
        [ ! -f "$headers/scripts/gcc-plugins/randomize_layout_plugin.so" ]; then
        fail $NOT_THIS_KERNEL \
            "the kernel's structs are laid out at random, and what does it is missing; nothing was built." \
            "no scripts/gcc-plugins/randomize_layout_plugin.so in $headers" \
            "the plugin that the kernel was compiled with" \
            "$(ready_made)"
    fi
    for plugin in "$headers"/scripts/gcc-plugins/*.so; do
        [ -e "$plugin" ] || continue
        said=$("$compiler" -fplugin="$plugin" -x c -c -o /dev/null /dev/null 2>&1) || fail $NOT_THIS_KERNEL \
            "this image's compiler does not take the kernel's plugin; nothing was built." \
            "$said" \
            "${plugin##*/}, made for $(kernel_compiler)" \
            "make this image from the builder image that the kernel was compiled in, in a checkout of its
project:
$(docker_build)"
    done
}

# --- Which ZFS ------------------------------------------------------------------------------------

# "VERSION MINIMUM MAXIMUM" for each OpenZFS in the image, the newest first.
list_zfs() {
    local meta
    for meta in "$sources"/zfs-*.meta; do
        awk '{ value[$1] = $2 }
            END { print value["Version:"], value["Linux-Minimum:"], value["Linux-Maximum:"] }' "$meta"
    done | sort -rV
}

# Sets zfs_version to the newest whose META has the running kernel in its range, of which the first
# two numbers count.
choose_zfs() {
    zfs_version=$(list_zfs | awk -v kernel="$running_release" '
        function series(text, numbers) {
            split(text, numbers, /[^0-9]/)
            return numbers[1] * 1000 + numbers[2]
        }
        series($2) <= series(kernel) && series(kernel) <= series($3) { print $1; exit }')
    [ -n "$zfs_version" ] || fail $NOT_THIS_KERNEL \
        "no ZFS in this image is for the running kernel." \
        "Linux $running_release" \
        "$(list_zfs | awk '{ print "Linux " $2 " to " $3 ", which ZFS " $1 " is for" }')" \
        "docker pull $(image)   (there may be one with a newer ZFS)"
}

# --- What is kept ---------------------------------------------------------------------------------

# Sets stored to the directory of what was built for the running kernel; fails where there is none.
find_stored() {
    for stored in "$cache"/kernels/*; do
        if [ -f "$stored/sums" ] &&
            grep -qxF "kernel_banner=$running_banner" "$stored/kernel.env" &&
            grep -qxF "kernel_release=$running_release" "$stored/kernel.env" &&
            grep -qxF "zfs_version=$zfs_version" "$stored/kernel.env" &&
            { [ -z "$headers" ] || [ "$(cat "$stored/headers")" = "$(fingerprint)" ]; } &&
            (cd "$stored" && sha256sum -c sums >/dev/null 2>&1); then
            return 0
        fi
    done
    stored=''
    return 1
}

# One at a time; the lock goes with the process that has it.
lock() {
    mkdir -p "$cache/kernels" 2>/dev/null
    [ -w "$cache/kernels" ] || fail $NOT_ALLOWED \
        "what is built cannot be kept." \
        "$cache cannot be written to" \
        "a volume that can" \
        "$(docker_run)"
    exec 9>>"$cache/lock"
    flock -n 9 || {
        note "another container builds at this moment; waiting for it"
        flock 9
    }
}

# --- Building -------------------------------------------------------------------------------------

now() { cut -d . -f 1 "$proc/uptime"; }

# A count of seconds, as people read it.
clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Percents of the whole and the time left, as far as they can be told: the share done so far took so
# long, so the rest takes as long in proportion.
progress_line() { # NUMBER NAME PERCENT SECONDS
    local left=''
    if [ "$3" -ge 10 ] && [ "$4" -ge 5 ]; then
        left=", about $(clock $(($4 * (100 - $3) / $3))) left"
    fi
    say "[$1/$steps] $2: $3 % ($(clock "$4")$left)"
}

# Percents of a step that lies between two percents of the whole.
percent() { # FROM TO DONE TOTAL
    local done=$3
    [ "$done" -le "$4" ] || done=$4
    if [ "$4" -gt 0 ]; then
        say $(($1 + ($2 - $1) * done / $4))
    else
        say "$1"
    fi
}

# step NAME FROM TO COUNT COMMAND...: runs the command; COUNT sets files_done and files, of which they
# are. What is shown never goes back.
step() {
    local name=$1 from=$2 to=$3 count=$4 pid shown said='' reached files_done=0 files=1
    shift 4
    number=$((number + 1))
    "$@" >>"$work/log" 2>&1 9>&- &
    pid=$!
    reached=$from
    shown=-$progress_seconds
    while kill -0 $pid 2>/dev/null; do
        $count
        said=$(percent "$from" "$to" "$files_done" "$files")
        [ "$said" -le "$reached" ] || reached=$said
        said=$(progress_line "$number" "$name" "$reached" $(($(now) - began)))
        if [ -t 2 ]; then
            printf '\r\033[K%s' "$said" >&2
        elif [ $(($(now) - shown)) -ge "$progress_seconds" ]; then
            say "$said" >&2
            shown=$(now)
        fi
        sleep 1
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
    wait $pid || give_up "$name"
}

give_up() {
    local telling kept=''
    telling=$(grep -E 'error:|\*\*\*|: fatal |ERROR: |No space left|^(configure|modules|headers|banner): ' "$work/log" |
        awk '!seen[$0]++' | tail -n 12)
    cp "$work/log" "$cache/build.log" 2>/dev/null && kept="
the whole log is build.log in the volume install-zfs"
    fail $REFUSED \
        "ZFS $zfs_version could not be built for this kernel (step $number, $1); nothing was loaded." \
        "${telling:-$(tail -n 12 "$work/log")}" \
        "" \
        "report these lines to the maintainer of this image, and what this prints:
$(docker_run info)$kept"
}

count_nothing() { files_done=0 files=1; }

# configure compiles one file for each of its questions, many of which do not compile.
count_questions() {
    [ "$questions" -gt 0 ] || questions=$(grep -o 'mkdir -p build/[A-Za-z0-9_]*' /zfs/configure 2>/dev/null |
        sort -u | grep -vc '_license$')
    files=$questions
    files_done=$(cat /zfs/build/build.log* 2>/dev/null | grep -c '\[M\]')
}

count_objects() {
    files=${objects:-0}
    files_done=$(find /zfs/module -name '*.o' 2>/dev/null | wc -l)
}

# How many files the modules are made of: those that kbuild's files name and that there are sources of.
expect_objects() {
    (
        cd /zfs/module || exit
        find . \( -name 'Kbuild*' -o -name Makefile \) -exec cat {} + | grep -o '[A-Za-z0-9_./-]*\.o\>' | sort -u |
            while read -r object; do
                name=${object##*/}
                say "${name%.o}"
            done | sort -u >"$work/names"
        find . -name '*.[cS]' | sed 's/.*\///; s/\.[cS]$//' | sort -u | grep -cxFf "$work/names"
    )
}

# The scripts expect the headers at /usr/src/linux, where the machine's own /usr/src may be mounted.
with_headers() { # DIRECTORY-THAT-HAS-linux COMMAND...
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare -m sh -c 'mount -o bind "$1" /usr/src && shift && exec "$@"' sh "$@"
}

unpack() {
    sh "$scripts/headers.sh" "$headers" "$headers" "$work/real/linux" || return
    if [ -d "$root/lib/modules/$running_release" ]; then
        mkdir -p /kernel
        tar -C "${root:-/}" --exclude="lib/modules/$running_release/build" \
            --exclude="lib/modules/$running_release/source" \
            -cf /kernel/kernel.tar "lib/modules/$running_release"
    fi
}

keep() {
    local new
    sh "$scripts/describe.sh" "$work/out" "$cache/.new" "${IMAGE:-install-zfs}" "$headers" '' || return
    for new in "$cache"/.new/*; do
        grep -qxF "kernel_banner=$running_banner" "$new/kernel.env" || return
        fingerprint >"$new/headers"
        (cd "$new" && sha256sum -- * >/tmp/sums && mv /tmp/sums .) || return
        # A name that is there stands for files that are there, also after a machine that went down.
        sync
        for stored in "$cache"/kernels/*; do
            if grep -qsxF "kernel_banner=$running_banner" "$stored/kernel.env"; then
                rm -rf "$stored"
            fi
        done
        mv "$new" "$cache/kernels/" || return
    done
    rm -rf "$cache/.new"
}

check_mounting() {
    unshare -m true 2>/dev/null || fail $NOT_ALLOWED \
        "this container may not mount anything, which building needs." \
        "no capability CAP_SYS_ADMIN" \
        "a privileged container" \
        "$(docker_run "$command")"
}

# Leaves in stored the directory of the modules for the running kernel.
build() {
    local questions=0 objects number=0 steps=5 began
    lock
    # Somebody else may have built it meanwhile.
    ! find_stored || return 0
    check_mounting
    rm -rf "$cache/.new" "$work" /zfs /kernel /root-of-modules
    mkdir -p "$work/real" "$work/alike" "$work/bin"
    if [ "$compiler" != gcc ]; then
        ln -s "$(command -v "$compiler")" "$work/bin/gcc"
        export PATH="$work/bin:$PATH"
    fi
    note "building ZFS $zfs_version for $running_release on $(nproc) processors"
    began=$(now)
    step headers 0 3 count_nothing unpack
    step 'headers for configure' 3 5 count_nothing \
        sh "$scripts/alike.sh" "$work/real/linux" "$work/alike/linux"
    step configure 5 35 count_questions with_headers "$work/alike" \
        sh "$scripts/configure.sh" "$zfs_version" "$sources/zfs-$zfs_version.tar.gz" /zfs
    objects=$(expect_objects)
    step compile 35 98 count_objects with_headers "$work/real" \
        sh "$scripts/modules.sh" "$zfs_version" "$work/out"
    step keep 98 100 count_nothing keep
    find_stored || give_up keep
    rm -rf "$work" /zfs /kernel
    note "ZFS $zfs_version was built in $(clock $(($(now) - began)))"
    is_mounted "$cache" ||
        note "it goes with this container; kept in a volume ($CACHE_MOUNT), the next start would take a second"
}

# --- Commands -------------------------------------------------------------------------------------

# The loader with what is in directory $1, as if in an image that holds that alone.
run_loader() {
    local kernels
    kernels=$(mktemp -d)
    ln -s "$1" "$kernels/"
    shift
    KERNELS=$kernels DOCKER_RUN=$(docker_run) "$loader" "$@"
}

# What would be built, for the loader to hold against this machine before anything is.
announce() {
    announced=$(mktemp -d)
    : >"$announced/modules.load"
    say "image=${IMAGE:-install-zfs}" "kernel_image=build" "kernel_release=$running_release" \
        "kernel_banner=$running_banner" "vermagic=$(running_vermagic)" "architecture=$(uname -m)" \
        "zfs_version=${zfs_version-}" >"$announced/kernel.env"
}

running_vermagic() {
    find "$own_root/lib/modules/$running_release/kernel" -name '*.ko' 2>/dev/null | head -n 1 |
        xargs -r modinfo -F vermagic 2>/dev/null | sed 's/ *$//'
}

is_in_kernel() { [ -d /sys/module/zfs ] || grep -qw zfs "$proc/filesystems"; }

# Ends where the loader would: what is not allowed here is told before anything is built.
preflight() {
    local said code=0
    announce
    said=$(run_loader "$announced" check 2>&1) || code=$?
    if [ $code -ne 0 ]; then
        say "$said" >&2
        exit $code
    fi
}

prepare() {
    check_headers
    check_compiler
    check_tools
}

main() {
    command=${1:-load}
    [ $# -eq 0 ] || shift
    case $command in
        load | zfs | zpool) ;; # the loader knows what they take
        build | check | unload) [ $# -eq 0 ] || usage_error "$command takes no argument: $1" ;;
        info) [ $# -le 1 ] || usage_error "too many arguments: $2" ;;
        help | --help | -h) usage && exit $DONE ;;
        *) usage_error "unknown command: $command" ;;
    esac
    trap 'exit 130' INT
    trap 'exit 143' TERM
    read_running
    "do_$command" "$@"
}

usage_error() {
    note "$1"
    usage >&2
    exit $USAGE
}

do_load() {
    choose_zfs
    preflight
    if is_in_kernel; then
        run_loader "$announced" load "$@"
        return
    fi
    find_headers
    if ! find_stored; then
        prepare
        build
    fi
    run_loader "$stored" load "$@"
}

do_build() {
    choose_zfs
    find_headers
    if find_stored; then
        say "ZFS $zfs_version is already built for this kernel ($running_release)."
        return
    fi
    prepare
    build
}

do_check() {
    choose_zfs
    preflight
    find_headers
    if is_in_kernel; then
        run_loader "$announced" check
    elif find_stored; then
        run_loader "$stored" check
    else
        prepare
        say "ZFS $zfs_version can be built for this kernel ($running_release) by $compiler, from $headers." \
            "load would do that, which takes minutes, and insert it."
    fi
}

do_unload() {
    announce
    run_loader "$announced" unload
}

do_zfs() { run_userland zfs "$@"; }
do_zpool() { run_userland zpool "$@"; }

run_userland() {
    choose_zfs
    announce
    run_loader "$announced" "$@"
}

do_info() {
    if [ $# -eq 0 ]; then
        say "This image has the sources of"
        list_zfs | awk '{ print "  ZFS " $1 " for Linux " $2 " to " $3 }'
        ls "$cache"/kernels/*/kernel.env >/dev/null 2>&1 || say "and nothing was built yet"
    fi
    KERNELS=$cache/kernels DOCKER_RUN=$(docker_run) "$loader" info "$@"
}

case $0 in
    *on-the-spot.sh) main "$@" ;;
esac
