"""Brings back what was published, byte for byte: nothing is built.

The module image of a platform is in the registry under its digest, whatever became of the tags, and
in the release's sideload tar; either is as good, where it has the digest that was tested.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from release import bounded, publish
from release.build import Built
from release.errors import NotFoundError, OtherBytesError, PublishError
from release.github import GitHub, Release
from release.layout import Layout
from release.plan import asset_name
from release.receipt import Receipt
from release.reference import Digest, Platform, Reference, architecture, parse_digest
from release.registry import MALFORMED, Registry

_LACKING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Restorer:
    """Where to look.

    Args:
        image: the repository of the module images.
        cache: takes what is found.
    """

    registry: Registry
    image: Reference
    github: GitHub
    cache: Path

    def restore(self, slug: str, receipt: Receipt, release: Release) -> Iterator[Built]:
        """The images of the platforms that can be brought back.

        Raises:
            UpstreamError: registry or GitHub could not be read, which does not mean that something
                is not there.
            OSError: this machine could not keep what is there.
        """
        for platform, part in sorted(receipt.platforms.items()):
            to = self.cache / "published" / f"{slug}-{architecture(platform)}"
            shutil.rmtree(to, ignore_errors=True)
            layout = self._from_registry(part.manifest, to) or self._from_release(
                slug, platform, receipt, release, to
            )
            if layout and layout.manifest.digest == part.manifest:
                yield Built(platform, layout, layout.labels(), None)

    def restorable(self, slug: str, receipt: Receipt, release: Release) -> Iterator[Platform]:
        """The platforms that :meth:`restore` will bring back, as far as that can be told without a
        download.

        Raises:
            UpstreamError: the registry could not be read.
        """
        for platform, part in receipt.platforms.items():
            name = asset_name(slug, platform)
            file = receipt.files.get(name)
            if (file and file.is_in(release.asset(name))) or self.is_whole(part.manifest):
                yield platform

    def is_whole(self, manifest: Digest) -> bool:
        """Whether the registry has an image with all its blobs."""
        try:
            content = self.registry.get(self.image.at(manifest)).content
            blobs = [parse_digest(one["digest"]) for one in (content["config"], *content["layers"])]
        except (NotFoundError, OtherBytesError, *MALFORMED):
            return False
        return all(self.registry.has(self.image, one) for one in blobs)

    def _from_registry(self, manifest: Digest, to: Path) -> Layout | None:
        try:
            document = self.registry.get(self.image.at(manifest))
            return publish.fetch(self.registry, self.image, document, to)
        except (NotFoundError, OtherBytesError, PublishError):
            return None

    def _from_release(
        self, slug: str, platform: Platform, receipt: Receipt, release: Release, to: Path
    ) -> Layout | None:
        name = asset_name(slug, platform)
        asset, file = release.asset(name), receipt.files.get(name)
        if not asset or not file or not file.is_in(asset):
            return None
        tar = to.with_name(f".{name}")
        tar.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.github.download(asset, tar, file.digest)
            bounded.unpack(tar, to)
            layout = Layout(to)
            # Reading checks every blob against its digest.
            _ = (layout.config, layout.layers)
        except (NotFoundError, OtherBytesError, PublishError):
            return None
        except bounded.CORRUPT as error:
            # A full disk, say, tells nothing of what is out there; a file that the tar lacks does.
            if isinstance(error, OSError) and error.errno not in (None, *_LACKING):
                raise
            return None
        finally:
            tar.unlink(missing_ok=True)
        return layout
