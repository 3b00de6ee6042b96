# Debian packages, to be written to a directory of the machine that runs the lab.
ARG BASE

FROM ${BASE} AS kernels-fetch
ARG KERNELS
ARG COUNT
COPY fetch-kernels /usr/local/bin/
RUN fetch-kernels /out

FROM ${BASE} AS openzfs-fetch
COPY fetch-openzfs /usr/local/bin/
RUN fetch-openzfs /out

FROM ${BASE} AS sources-fetch
ARG SOURCE
RUN apt-get update -q && mkdir /out && cd /out && apt-get download -q "$SOURCE"

FROM scratch AS kernels
COPY --from=kernels-fetch /out/ /

FROM scratch AS openzfs
COPY --from=openzfs-fetch /out/ /

FROM scratch AS sources
COPY --from=sources-fetch /out/ /
