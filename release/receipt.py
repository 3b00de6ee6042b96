"""What was published for a kernel, for programs: a part of its GitHub release's notes.

One list of releases so tells of all kernels which digests are to be behind their tags, which files
belong to their releases, and what ``versions.yaml`` said of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from release.errors import ConfigurationError
from release.github import Asset
from release.reference import Digest, Platform, parse_digest, parse_platform
from release.versions import Entry, entry_lines, modules_tag, parse_entry

_BEGIN, _END = "<!-- install-zfs.receipt ", " -->"
_PART = re.compile(re.escape(_BEGIN) + "(.*)" + re.escape(_END))
# A file is named by it on disk, too.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class File:
    """A file of a release. ``size`` is in bytes."""

    size: int
    digest: Digest

    def is_in(self, asset: Asset | None) -> bool:
        """Whether an asset is this file, as far as GitHub's list tells: assets from before June
        2025 have no digest there.
        """
        return (
            asset is not None
            and asset.state == "uploaded"
            and asset.size == self.size
            and asset.digest in (None, self.digest)
        )


@dataclass(frozen=True)
class Part:
    """The module image of one platform, and the kernel that it was tested with.

    Attributes:
        manifest: of the module image.
        to_sign: whether the run that built it has its work signed; what others built, nobody may.
    """

    manifest: Digest
    kernel_release: str
    kernel_banner: str
    to_sign: bool = False


@dataclass(frozen=True)
class Receipt:
    """What was published for a kernel.

    Attributes:
        entry: what is recorded of it in ``versions.yaml``.
        image: what the tag SLUG points to: an index, or the manifest of the only platform.
        modules: what SLUG-modules points to; None where that tag is not published.
        platforms: what the image is made of.
        files: of the release, by name; open for more than this version knows of.
        instead_of: of which release it takes the place and why, or empty.
        beside: what else the tags lead to: the images for SLUG-modules, those of other platforms
            with an older ZFS, and what attests all of them; empty in receipts from before it was
            told.
    """

    entry: Entry
    image: Digest
    modules: Digest | None
    platforms: Mapping[Platform, Part]
    files: Mapping[str, File]
    instead_of: str = ""
    beside: tuple[Digest, ...] = ()

    def __str__(self) -> str:
        """The line in a release's notes. The same facts give the same line."""
        facts = {
            "entry": "".join(f"{line}\n" for line in entry_lines(self.entry)),
            "image": self.image,
            "modules": self.modules,
            "platforms": {
                platform: {
                    "manifest": part.manifest,
                    "kernel_release": part.kernel_release,
                    "kernel_banner": part.kernel_banner,
                    # Left out where it is not so, as in all receipts from before there was any.
                    **({"to_sign": True} if part.to_sign else {}),
                }
                for platform, part in sorted(self.platforms.items())
            },
            "files": {
                name: {"size": file.size, "digest": file.digest}
                for name, file in sorted(self.files.items())
            },
            "instead_of": self.instead_of,
            **({"beside": self.beside} if self.beside else {}),
        }
        # Nothing in it may end the comment.
        text = json.dumps(facts, separators=(",", ":")).replace(">", "\\u003e")
        return f"{_BEGIN}{text}{_END}"

    @classmethod
    def find(cls, notes: str) -> Receipt | None:
        """The receipt in a release's notes; None where there is none, or none that is whole."""
        match = _PART.search(notes)
        if not match:
            return None
        try:
            return cls._of(json.loads(match[1]))
        except (
            ConfigurationError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ):
            return None

    @classmethod
    def _of(cls, facts: Mapping[str, Any]) -> Receipt:
        if unsafe := [name for name in facts["files"] if not _FILE_NAME.fullmatch(name)]:
            raise ValueError(f"no name of a file: {unsafe[0]!r}")
        return cls(
            parse_entry(facts["entry"]),
            parse_digest(facts["image"]),
            parse_digest(facts["modules"]) if facts["modules"] else None,
            {
                parse_platform(platform): Part(
                    parse_digest(part["manifest"]),
                    str(part["kernel_release"]),
                    str(part["kernel_banner"]),
                    part.get("to_sign") is True,
                )
                for platform, part in facts["platforms"].items()
            },
            {
                name: File(int(file["size"]), parse_digest(file["digest"]))
                for name, file in facts["files"].items()
            },
            str(facts["instead_of"]),
            tuple(map(parse_digest, facts.get("beside", ()))),
        )

    def only(self, platform: Platform) -> Receipt:
        """The same, of one platform's image alone."""
        return replace(self, platforms={platform: self.platforms[platform]}, beside=())

    @property
    def to_sign(self) -> frozenset[Platform]:
        """The platforms whose images are to be signed."""
        return frozenset(one for one, part in self.platforms.items() if part.to_sign)

    def digests(self, entry: Entry, image_tags: tuple[str, ...]) -> dict[str, Digest]:
        """What is to be behind each of a kernel's tags.

        Args:
            entry: as it is now; its slug is the receipt's.
            image_tags: the tags that are to point to the image itself.
        """
        wanted = dict.fromkeys(image_tags, self.image)
        if self.modules:
            wanted[modules_tag(entry.slug)] = self.modules
        return wanted
