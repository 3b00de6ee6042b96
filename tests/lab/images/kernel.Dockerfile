# A kernel image in LinuxKit's shape, made from Debian packages (build context "packages").
ARG BUILDER

# Nothing in it is run, whatever platform it is for.
FROM --platform=$BUILDPLATFORM ${BUILDER} AS pack
ARG BUILDER
ARG KERNEL_RELEASE
COPY pack-kernel /usr/local/bin/
RUN --mount=from=packages,target=/packages pack-kernel /packages /out

FROM scratch
ARG BUILDER
ENTRYPOINT []
CMD []
COPY --from=pack /out/ /
LABEL org.mobyproject.linuxkit.kernel.buildimage=${BUILDER}
