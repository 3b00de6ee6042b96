# A kernel of the lab's own in LinuxKit's shape: struct layouts are random, by the seed given. The
# same release with another seed is what upstream publishes again and again. The source package is
# in the build context "packages".
ARG BUILDER

FROM ${BUILDER} AS source
RUN apt-get update -q \
    && apt-get install -qy g++ "gcc-$(gcc -dumpversion)-plugin-dev" \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=from=packages,target=/packages \
    mkdir /linux \
    && dpkg-deb --fsys-tarfile /packages/linux-source-*.deb \
        | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' \
        | tar -C /linux --strip-components=1 -xJ

# Each seed is compiled from clean: a new seed does not make kbuild compile again what depends on it.
FROM source AS pack
ARG BUILDER
ARG SEED
ARG SOURCE_DATE_EPOCH
COPY seeded.config build-seeded /usr/local/share/lab/
RUN sh /usr/local/share/lab/build-seeded /linux /out

FROM scratch
ARG BUILDER
ENTRYPOINT []
CMD []
COPY --from=pack /out/ /
LABEL org.mobyproject.linuxkit.kernel.buildimage=${BUILDER}
