# What linuxkit/alpine offers for building kernel modules, with the compiler that built the suite's
# kernels.
ARG BASE
FROM ${BASE}
RUN apt-get update -q \
    && apt-get install -qy \
        bc bison busybox-static dwarves flex gawk gcc kmod libc6-dev libelf-dev libssl-dev \
        make patch perl xz-utils zstd \
        libblkid-dev libtirpc-dev pkg-config uuid-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
