# A machine that runs a Docker engine, as a root file system: Debian's own packages of the engine, a
# kernel and its headers (build context "packages"), and an image for probes.
ARG BASE

FROM ${BASE}
ARG KERNEL_RELEASE
RUN apt-get update -q && \
    apt-get install -q -y --no-install-recommends busybox-static docker.io kmod python3-minimal && \
    apt-get install -q -y --no-install-recommends libpython3-stdlib && \
    rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/locale /usr/share/man
COPY pack-machine /usr/local/bin/
RUN --mount=from=packages,target=/packages pack-machine /packages
