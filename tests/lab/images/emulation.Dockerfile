# What `docker run --privileged tonistiigi/binfmt --install arm64` does, of Debian's parts: programs for
# linux/arm64 run on this kernel, in whatever container, by QEMU.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -qy qemu-user-static && rm -rf /var/lib/apt/lists/*
COPY emulate /usr/local/bin/
