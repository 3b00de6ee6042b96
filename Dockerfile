# Builds a module image: ZFS for exactly one kernel, and the loader that puts it there.
#
#   docker build --build-arg ZFS_VERSION=2.1.5 \
#     --build-arg KERNEL_IMAGE=docker/for-desktop-kernel:5.15.49-... \
#     --build-arg BUILDER_IMAGE=linuxkit/alpine:... -t install-zfs:mine .
#
# LKT_VERSION and ALPINE_VERSION are shorthands for linuxkit/kernel:... and linuxkit/alpine:...
# HEADERS_IMAGE is another build of the same kernel release, whose headers are taken with the seed of
# struct randomisation put in that KERNEL_IMAGE has.

ARG LKT_VERSION=5.4.39
ARG ALPINE_VERSION=e2391e0b164c57db9f6c4ae110ee84f766edc430
ARG KERNEL_IMAGE=linuxkit/kernel:${LKT_VERSION}
ARG BUILDER_IMAGE=linuxkit/alpine:${ALPINE_VERSION}
ARG HEADERS_IMAGE=${KERNEL_IMAGE}

FROM ${KERNEL_IMAGE} AS kernel
FROM ${HEADERS_IMAGE} AS headers-image

# What the kernel image holds, for those who look at it from outside. A name in brackets may be
# missing without an error.
FROM scratch AS kernel-files
COPY --from=kernel /kerne[l] /kernel.ta[r] /kernel-dev.ta[r] /kernel-builde[r] /kernel-banne[r] /kernel-build-i[d] /

# `docker buildx build --build-context openzfs=DIR` puts a local file in this one's place.
FROM scratch AS openzfs
ARG ZFS_VERSION
ADD https://github.com/openzfs/zfs/releases/download/zfs-${ZFS_VERSION}/zfs-${ZFS_VERSION}.tar.gz /zfs.tar.gz

FROM ${BUILDER_IMAGE} AS toolchain
COPY image/packages.sh image/toolchain.sh /build/
RUN sh /build/toolchain.sh

# The compiler's name for itself, for those who look at it from outside.
FROM toolchain AS compiler-version
RUN mkdir /compiler && gcc --version >/compiler/gcc
FROM scratch AS compiler
COPY --from=compiler-version /compiler/ /

FROM toolchain AS base
COPY --chmod=755 loader/install-zfs /base/install-zfs
COPY image/base.sh /build/
RUN sh /build/base.sh /base

FROM toolchain AS userland
ARG ZFS_VERSION
COPY image/userland.sh /build/
RUN --mount=type=bind,from=openzfs,target=/openzfs \
    sh /build/userland.sh "${ZFS_VERSION}" /openzfs/zfs.tar.gz /out

FROM toolchain AS headers
COPY image/headers.sh /build/
RUN --mount=type=bind,from=kernel-files,target=/kernel \
    --mount=type=bind,from=headers-image,target=/headers-image \
    sh /build/headers.sh /kernel/kernel-dev.tar /headers-image/kernel-dev.tar /headers

# Kernels that differ only in release, seed or symbol versions have the same content here, and so
# share the next stage.
FROM toolchain AS alike
COPY image/alike.sh image/tests.mk /build/
RUN --mount=type=bind,from=headers,source=/headers,target=/headers \
    sh /build/alike.sh /headers /alike

FROM toolchain AS configured
ARG ZFS_VERSION
COPY image/configure.sh /build/
RUN --mount=type=bind,from=alike,source=/alike,target=/usr/src/linux,rw \
    --mount=type=bind,from=openzfs,target=/openzfs \
    sh /build/configure.sh "${ZFS_VERSION}" /openzfs/zfs.tar.gz /zfs

FROM toolchain AS modules
ARG ZFS_VERSION
COPY image/modules.sh image/modules.mk image/first.h image/first-zfs.h image/exports.sh image/banner.sh /build/
RUN --mount=type=bind,from=headers,source=/headers,target=/usr/src/linux,rw \
    --mount=type=bind,from=configured,source=/zfs,target=/zfs,rw \
    --mount=type=bind,from=kernel-files,target=/kernel \
    sh /build/modules.sh "${ZFS_VERSION}" /out

# Apart from the modules, because a name must not cost a compilation.
FROM toolchain AS described
ARG KERNEL_IMAGE
ARG LKT_VERSION
ARG KERNEL_NAME
ARG IMAGE
# The GNU build-id of the kernel, where it is known: it tells two builds with one banner apart.
ARG BUILD_ID
COPY image/describe.sh /build/
RUN --mount=type=bind,from=modules,source=/out,target=/modules \
    sh /build/describe.sh /modules /described/kernels \
    "${IMAGE:-}" "${KERNEL_NAME:-${KERNEL_IMAGE:-linuxkit/kernel:${LKT_VERSION:-}}}" "${BUILD_ID:-}"

# Builds modules where it runs, for a kernel that nobody publishes, from the headers that are there.
FROM toolchain AS openzfs-sources
COPY image/sources.sh /build/
RUN --mount=type=bind,from=openzfs,target=/tarballs \
    sh /build/sources.sh /tarballs /openzfs

FROM toolchain AS userlands
COPY image/userland.sh /build/
RUN --mount=type=bind,from=openzfs-sources,source=/openzfs,target=/openzfs \
    for tarball in /openzfs/*.tar.gz; do \
        version=${tarball##*/zfs-} && \
        sh /build/userland.sh "${version%.tar.gz}" "$tarball" /out || exit; \
    done

FROM toolchain AS on-the-spot
ARG IMAGE
ENV IMAGE=${IMAGE:-install-zfs}
COPY --from=openzfs-sources /openzfs/ /openzfs/
COPY --from=userlands /out/ /
COPY --chmod=755 loader/install-zfs /install-zfs
COPY --chmod=755 image/ /build/
ENTRYPOINT ["/build/on-the-spot.sh"]

FROM scratch
COPY --from=base /base/ /
COPY --from=userland /out/ /
COPY --from=described /described/ /
ENTRYPOINT ["/install-zfs"]
