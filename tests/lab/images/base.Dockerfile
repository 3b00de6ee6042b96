# A Debian suite with the components that the lab needs, on the mirror that this machine uses.
ARG ROOT
FROM ${ROOT}
ARG SUITE
ARG ARCHIVE
ARG SECURITY
COPY configure-apt /usr/local/bin/
RUN configure-apt
COPY patient-apt-get /usr/local/bin/apt-get
