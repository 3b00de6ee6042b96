# The Distribution registry. It answers on port 5000 and keeps its data in /var/lib/registry.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -qy docker-registry && rm -rf /var/lib/apt/lists/*
COPY registry.yml /etc/docker/registry/config.yml
ENTRYPOINT ["docker-registry", "serve", "/etc/docker/registry/config.yml"]
