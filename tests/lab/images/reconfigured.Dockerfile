# A kernel image whose headers have another configuration.
ARG KERNEL
ARG BUILDER
FROM ${KERNEL} AS kernel

FROM ${BUILDER} AS change
RUN --mount=from=kernel,target=/kernel-image \
    mkdir /tree /out \
    && tar -C /tree -xf /kernel-image/kernel-dev.tar \
    && sed -i 's/^CONFIG_LOG_BUF_SHIFT=.*/CONFIG_LOG_BUF_SHIFT=21/' /tree/usr/src/*/.config \
    && tar -C /tree -cf /out/kernel-dev.tar usr

FROM scratch
COPY --from=change /out/ /
