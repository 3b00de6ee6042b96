"""A real registry that can be damaged: the counterpart of
:class:`~tests.lab.small_registry.SmallRegistry`, with the same two sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from tests.lab.gateway import Gateway
from tests.lab.registry import MANIFESTS, Registry
from tests.lab.server import EffectCounter
from tests.lab.small_registry import MANIFEST, digest_of, image_config, image_manifest
from tests.lab.world import REGISTRY_IMAGE, World

_OCTETS = "application/octet-stream"


class RealRegistry(Gateway):
    """Distribution in a container of its own, empty at first, behind a gateway.

    Args:
        directory: tells its data from those of others.
    """

    def __init__(
        self, world: World, directory: Path, *, effects: EffectCounter | None = None
    ) -> None:
        world.registry()
        self._registry = Registry(world.client, REGISTRY_IMAGE, directory)
        super().__init__(f"http://{self._registry.host}", effects=effects)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._registry.remove()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    # Behind the gateway's back

    @property
    def manifests(self) -> Mapping[str, MutableMapping[str, tuple[str, bytes]]]:
        """Media type and content by repository and tag or digest; of these, tags are listed."""
        return _Repositories(self._registry)

    def put(self, repository: str, tag: str, content: object, media_type: str = MANIFEST) -> str:
        """Put a manifest under a tag and its digest, which is returned."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        _Manifests(self._registry, repository)[tag] = media_type, raw
        return digest_of(raw)

    def put_blob(self, content: bytes, repository: str) -> dict[str, Any]:
        """Put a blob; returns its descriptor."""
        root = f"http://{self._registry.host}/v2/{repository}/blobs/uploads/"
        begun = requests.post(root, timeout=30)
        begun.raise_for_status()
        where = urljoin(root, begun.headers["Location"])
        digest = digest_of(content)
        requests.put(
            where,
            params={"digest": digest},
            data=content,
            headers={"Content-Type": _OCTETS},
            timeout=30,
        ).raise_for_status()
        return {"digest": digest, "size": len(content)}

    def put_image(
        self, repository: str, tag: str, config: object, architecture: str = "amd64"
    ) -> str:
        """Put an image of nothing but a configuration."""
        blob = self.put_blob(image_config(config, architecture), repository)
        return self.put(repository, tag, image_manifest(blob))

    def delete(self, repository: str) -> None:
        """Deletes a repository with all that it holds."""
        held = _Manifests(self._registry, repository)
        digests = [digest_of(content) for _, content in held.values()]
        blobs: set[str] = set()
        for digest in digests:
            _, content = held[digest]
            document = json.loads(content)
            digests += [one["digest"] for one in document.get("manifests", ())]
            parts = [document.get("config"), *document.get("layers", ())]
            blobs |= {one["digest"] for one in parts if one}
        for digest in dict.fromkeys(digests):
            del held[digest]
        for digest in blobs:
            url = f"http://{self._registry.host}/v2/{repository}/blobs/{digest}"
            requests.delete(url, timeout=30).raise_for_status()


class _Repositories(Mapping[str, MutableMapping[str, tuple[str, bytes]]]):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __getitem__(self, name: str) -> MutableMapping[str, tuple[str, bytes]]:
        return _Manifests(self._registry, name)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        answer = requests.get(f"http://{self._registry.host}/v2/_catalog", timeout=30)
        yield from answer.json()["repositories"]

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Manifests(MutableMapping[str, tuple[str, bytes]]):
    def __init__(self, registry: Registry, repository: str) -> None:
        self._registry, self._repository = registry, repository
        self._root = f"http://{registry.host}/v2/{repository}"

    def __getitem__(self, reference: str) -> tuple[str, bytes]:
        url = f"{self._root}/manifests/{reference}"
        answer = requests.get(url, headers={"Accept": MANIFESTS}, timeout=30)
        if answer.status_code == requests.codes.not_found:
            raise KeyError(reference)
        answer.raise_for_status()
        return answer.headers["Content-Type"], answer.content

    def __setitem__(self, reference: str, manifest: tuple[str, bytes]) -> None:
        media_type, content = manifest
        url = f"{self._root}/manifests/{reference}"
        headers = {"Content-Type": media_type}
        answer = requests.put(url, data=content, headers=headers, timeout=30)
        assert answer.status_code == requests.codes.created, answer.text

    def __delitem__(self, reference: str) -> None:
        if ":" in reference:
            url = f"{self._root}/manifests/{reference}"
            requests.delete(url, timeout=30).raise_for_status()
        else:
            self._registry.untag(self._repository, reference)

    def __iter__(self) -> Iterator[str]:
        answer = requests.get(f"{self._root}/tags/list", timeout=30)
        if answer.status_code != requests.codes.not_found:
            yield from answer.json()["tags"] or ()

    def __len__(self) -> int:
        return sum(1 for _ in self)
