# Compiles the smallest module against a kernel image, with nothing but its builder image.
ARG KERNEL
ARG BUILDER
FROM ${KERNEL} AS kernel

FROM ${BUILDER} AS compile
ARG KERNEL_RELEASE
COPY hello /hello
WORKDIR /out
RUN --mount=from=kernel,target=/kernel-image \
    tar -C / --keep-directory-symlink -xf /kernel-image/kernel-dev.tar \
    && make -C "/usr/src/linux-headers-$KERNEL_RELEASE" M=/hello modules >make.log 2>&1 \
    && modinfo -F vermagic /hello/hello.ko >vermagic \
    && cc --version >compiler

FROM scratch
COPY --from=compile /out/ /
