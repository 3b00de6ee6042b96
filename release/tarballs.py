"""``openzfs.yaml``: the digest of each OpenZFS tarball, as it was when it was first used.

What is published under a version has to stay what it is. A tarball that changed is found out here,
whoever changed it, and whatever digest is published beside it.
"""

from __future__ import annotations

import threading
from pathlib import Path

from release.errors import ResolveError
from release.reference import Digest, parse_digest
from release.versions import ZFS_VERSION
from release.yamlfile import Node, appended, compose, read, write

NAME = "openzfs.yaml"
_BEGIN = "tarballs: []"
_HEADER = """\
# The digests of OpenZFS's source tarballs, as they were when they were first used.
#
# Appended to by the pipeline, which builds nothing from a tarball with another digest than the one
# here. Remove an entry only after you found out why the tarball was replaced.

"""


class Tarballs:
    """The digests that are recorded. Safe to share by threads.

    Args:
        path: of ``openzfs.yaml``; one that is not there is empty, and made with the first digest.

    Raises:
        ConfigurationError: it cannot be read, or says something that makes no sense.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known = _parse(path, _text(path))

    def check(self, version: str, digest: Digest, on: str) -> None:
        """Makes sure that a tarball is the one that it was before.

        Args:
            on: where it is from, for the message.

        Raises:
            ResolveError: it has another digest.
        """
        with self._lock:
            known = self._known.get(version, digest)
        if known != digest:
            raise ResolveError(
                f"the tarball of ZFS {version} is another one than before",
                on=on,
                detail=f"recorded {known}\nfound    {digest}",
                hint="find out upstream why it was replaced; if it is right, remove its entry from "
                f"{self.path.name}, and run again",
            )

    def known(self, version: str) -> Digest | None:
        """The digest that is recorded."""
        with self._lock:
            return self._known.get(version)

    def record(self, version: str, digest: Digest, on: str) -> None:
        """Writes down a digest that is not known yet. Every byte above stays.

        Raises:
            ResolveError: another one is known.
            ConfigurationError: the file was changed into a shape that cannot be appended to.
        """
        self.check(version, digest, on)
        with self._lock:
            if version in self._known:
                return
            text = _text(self.path)
            if version not in _parse(self.path, text):
                items = [(f"version: {version}", f"digest: {digest}")]
                text = appended(self.path, text, "tarballs", items, begin=_BEGIN)
                write(self.path, text)
            self._known = _parse(self.path, text)
        self.check(version, digest, on)


def _text(path: Path) -> str:
    return read(path, hint="run again") if path.exists() else f"{_HEADER}{_BEGIN}\n"


def _parse(path: Path, text: str) -> dict[str, Digest]:
    top = Node(path, compose(path, text, begin=_BEGIN)).mapping("tarballs", required=["tarballs"])
    found: dict[str, Digest] = {}
    for node in top["tarballs"].items():
        keys = node.mapping("version", "digest", required=["version", "digest"])
        version = keys["version"].match(ZFS_VERSION, "an OpenZFS version", "2.1.5")
        if version in found:
            raise node.error(f"ZFS {version} is there twice", "remove one of the two")
        found[version] = keys["digest"].parse(parse_digest)
    return found
