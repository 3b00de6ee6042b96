"""Image references, digests and platforms: parsed once, at the edge, into typed values.

The grammar is that of the OCI distribution specification and of
``github.com/distribution/reference``, which every Docker tool shares.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import NewType, Self
from urllib.parse import urlsplit

from release.errors import ConfigurationError

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits."""

Platform = NewType("Platform", str)
"""``os/architecture`` or ``os/architecture/variant``, as in ``linux/amd64``."""

DOCKER_HUB = "docker.io"

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
)
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9]+(?:/[a-z0-9]+)?")


def parse_digest(text: str) -> Digest:
    """Returns ``text`` as a digest.

    Raises:
        ConfigurationError: it is not ``sha256:`` and 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(text):
        raise ConfigurationError(
            "is not a digest", on=repr(text), hint="write sha256: and 64 lower-case hex digits"
        )
    return Digest(text)


def parse_platform(text: str) -> Platform:
    """Returns ``text`` as a platform.

    Raises:
        ConfigurationError: it does not look like ``linux/amd64``.
    """
    if not _PLATFORM.fullmatch(text):
        raise ConfigurationError(
            "is not a platform", on=repr(text), hint="write os/architecture, as in linux/amd64"
        )
    return Platform(text)


def architecture(platform: Platform) -> str:
    """The middle of a platform: ``amd64`` of ``linux/amd64``."""
    return platform.split("/")[1]


def machine(platform: Platform) -> str:
    """What ``uname -m`` says on a platform: ``x86_64`` on ``linux/amd64``."""
    name = architecture(platform)
    return _MACHINES.get(name, name)


def platform_fields(platform: Platform) -> dict[str, str]:
    """How OCI documents name a platform (image-spec, "image-index.md" and "config.md")."""
    os, arch, *variant = platform.split("/")
    # In this order: it is part of what digests are made of.
    return {"architecture": arch, "os": os, **({"variant": variant[0]} if variant else {})}


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without a port) is ``localhost`` or a loopback address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, order=True)
class Reference:
    """A repository in a registry, with a tag, a digest, both or neither.

    ``registry`` is always written out (``docker.io`` where the text left it out), and so is
    Docker Hub's ``library/``.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``[registry/]repository[:tag][@digest]``.

        Raises:
            ConfigurationError: ``text`` is not a reference.
        """

        def refuse(why: str) -> ConfigurationError:
            return ConfigurationError(
                f"is not an image reference: {why}",
                on=repr(text),
                hint="write [registry/]repository[:tag][@sha256:...]",
            )

        name, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise refuse("what follows @ is not a digest")
        first, slash, rest = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, path = first, rest
        else:
            registry, path = DOCKER_HUB, name
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DOCKER_HUB
        if not _HOST.fullmatch(registry):
            raise refuse("the registry's host is malformed")
        path, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise refuse("the tag may hold letters, digits, '_', '.' and '-', at most 128")
        if registry == DOCKER_HUB and path and "/" not in path:
            path = f"library/{path}"
        if not _REPOSITORY.fullmatch(path) or len(path) > 255:
            raise refuse("the repository must be lower-case words joined by '/', '.', '_' or '-'")
        return cls(registry, path, tag or None, Digest(digest) if digest else None)

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text

    @property
    def familiar(self) -> str:
        """As ``docker images`` shows it: without Docker Hub's name, and its ``library/``."""
        return str(self).removeprefix(f"{DOCKER_HUB}/").removeprefix("library/")

    @property
    def name(self) -> Self:
        """The repository alone, without tag and digest."""
        return replace(self, tag=None, digest=None)

    def with_tag(self, tag: str) -> Self:
        """The same repository with ``tag`` and without digest.

        Raises:
            ConfigurationError: ``tag`` is not a tag (a slug may be too long for one).
        """
        if not _TAG.fullmatch(tag):
            raise ConfigurationError("is not an image tag", on=repr(tag))
        return replace(self, tag=tag, digest=None)

    def at(self, digest: Digest) -> Self:
        """The same repository, pinned to ``digest`` and nothing else."""
        return replace(self, tag=None, digest=digest)

    @property
    def api(self) -> str:
        """The root URL of the registry's API.

        Docker Hub's registry answers at ``registry-1.docker.io``; loopback registries are
        spoken to over plain HTTP, as the Docker engine does.
        """
        if self.registry == DOCKER_HUB:
            return "https://registry-1.docker.io"
        scheme = "http" if is_loopback(self.registry) else "https"
        return f"{scheme}://{self.registry}"
