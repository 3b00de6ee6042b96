"""The lab's registry: Distribution in a container, on loopback."""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import docker
import docker.errors
import requests

from tests.lab.steps import LabError, alone

LABEL = "install-zfs-lab"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = ", ".join(
    [
        DOCKER_INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
    ]
)


class Registry:
    """A running registry, one for each directory of a lab. Its data outlives it in a volume.

    Processes of one lab share it: the first one starts it, the last one stops it.

    Attributes:
        host: ``127.0.0.1:PORT``, the first part of references. The port is remembered in
            the lab's directory, so that references and digests stay the same, unless it is taken.
    """

    def __init__(self, client: docker.DockerClient, image: str, directory: Path) -> None:
        """Uses what another process has started, or starts it in place of what a run has left.

        Raises:
            LabError: it does not answer.
        """
        self._client = client
        self._directory = directory
        self._name = f"{LABEL}-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"
        self._users = (directory / "registry.users").open("w")
        remembered = directory / "registry.port"
        with self._changing():
            if self._used_by_others():
                self.host = f"127.0.0.1:{int(remembered.read_text())}"
            else:
                self._start(image, _free_port(remembered))
            self._wait()
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def _start(self, image: str, port: int) -> None:
        self._remove_container()
        labels = {LABEL: str(self._directory)}
        self._client.volumes.create(self._name, labels=labels)
        self.host = f"127.0.0.1:{port}"
        self._client.containers.run(
            image,
            name=self._name,
            labels=labels,
            ports={"5000/tcp": ("127.0.0.1", port)},
            volumes={self._name: {"bind": "/var/lib/registry"}},
            detach=True,
        )

    def stop(self) -> bool:
        """Removes the container, unless another process uses it; the data stays.

        Returns:
            Whether this was the last one to use it.
        """
        with self._changing(), self._users:
            last = not self._used_by_others()
            if last:
                self._remove_container()
        return last

    def _remove_container(self) -> None:
        try:
            self._client.containers.get(self._name).remove(force=True)
        except docker.errors.NotFound:
            return

    def _changing(self) -> AbstractContextManager[None]:
        """Nobody else starts or stops it meanwhile."""
        return alone(self._directory / "registry.lock")

    def _used_by_others(self) -> bool:
        """Each user holds a lock that is shared, which the kernel drops when its process ends."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def remove(self) -> None:
        """Removes the container and the data."""
        self.stop()
        self._client.volumes.get(self._name).remove(force=True)

    def untag(self, repository: str, image_tag: str) -> None:
        """Deletes a tag and leaves what it points to, which Distribution's API cannot do."""
        tags = f"/var/lib/registry/docker/registry/v2/repositories/{repository}/_manifests/tags"
        container = self._client.containers.get(self._name)
        done = container.exec_run(["rm", "-r", f"{tags}/{image_tag}"])
        if done.exit_code != 0:
            raise LabError("has no such tag", on=f"{repository}:{image_tag}")

    def digest(self, repository: str, image_tag: str) -> str | None:
        """Returns the digest of the index or manifest that a tag points to; None without the tag.

        Raises:
            requests.RequestException: the registry gave no clear answer.
        """
        path = f"{repository}/manifests/{image_tag}"
        try:
            answer = self._call("HEAD", path, headers={"Accept": MANIFESTS})
        except requests.HTTPError as error:
            if error.response.status_code == requests.codes.not_found:
                return None
            raise
        return answer.headers["Docker-Content-Digest"]

    def copy(
        self, source: str, digest: str, repository: str, image_tag: str, *, index: bool
    ) -> str:
        """Gives a manifest of one repository a tag in another one, or in the same.

        Args:
            source: the repository that holds the manifest.
            index: put an index for linux/amd64 around the manifest, and point the tag at that.

        Returns:
            The digest that the tag points to.

        Raises:
            requests.RequestException: the registry refused.
        """
        if index:
            return self.join(source, {"amd64": digest}, repository, image_tag)
        manifest = self._mounted(source, digest, repository)
        media_type = manifest.headers["Content-Type"]
        return self._put(repository, image_tag, media_type, manifest.content)

    def join(self, source: str, digests: Mapping[str, str], repository: str, image_tag: str) -> str:
        """Puts an index around manifests, one for each architecture, and a tag on the index.

        Args:
            source: the repository that holds the manifests.

        Returns:
            The digest of the index.

        Raises:
            requests.RequestException: the registry refused.
        """
        entries = []
        for architecture, digest in digests.items():
            manifest = self._mounted(source, digest, repository)
            media_type = manifest.headers["Content-Type"]
            self._put(repository, digest, media_type, manifest.content)
            entries.append(
                {
                    "mediaType": media_type,
                    "size": len(manifest.content),
                    "digest": digest,
                    "platform": {"architecture": architecture, "os": "linux"},
                }
            )
        whole = {"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": entries}
        return self._put(repository, image_tag, DOCKER_INDEX, json.dumps(whole, indent=3).encode())

    def _mounted(self, source: str, digest: str, repository: str) -> requests.Response:
        """A manifest of one repository, after its blobs were made known to another."""
        manifest = self._call("GET", f"{source}/manifests/{digest}", headers={"Accept": MANIFESTS})
        content = manifest.json()
        for blob in [content["config"], *content["layers"]]:
            mount = {"mount": blob["digest"], "from": source}
            self._call("POST", f"{repository}/blobs/uploads/", params=mount)
        return manifest

    def _put(self, repository: str, name: str, media_type: str, content: bytes) -> str:
        path = f"{repository}/manifests/{name}"
        answer = self._call("PUT", path, data=content, headers={"Content-Type": media_type})
        return answer.headers["Docker-Content-Digest"]

    def _call(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> requests.Response:
        answer = requests.request(
            method,
            f"http://{self.host}/v2/{path}",
            headers=headers,
            params=params,
            data=data,
            timeout=10,
        )
        answer.raise_for_status()
        return answer

    def _wait(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._call("GET", "")
            except requests.RequestException as error:
                if time.monotonic() > deadline:
                    output = self._client.containers.get(self._name).logs(tail=20).decode()
                    raise LabError(
                        f"the registry does not answer: {error}", on=self.host, detail=output
                    ) from error
                time.sleep(0.05)
            else:
                return


def _free_port(remembered: Path) -> int:
    candidates = [int(remembered.read_text())] if remembered.exists() else []
    for port in [*candidates, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen = int(probe.getsockname()[1])
        remembered.write_text(f"{chosen}\n")
        return chosen
    raise LabError("no port is free", on="127.0.0.1")
