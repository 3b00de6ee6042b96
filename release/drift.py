"""What differs between what was published and what is there. Pure, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from release.github import Release
from release.receipt import File, Receipt
from release.reference import Digest

LOOKS = 1
"""How many tags a run asks for their digests, which no list tells: a run with nothing to do makes
ten requests at most."""

MOST_SIGNATURES = 100
"""Of how many kernels a run asks at most whether they are signed: an attestation takes 1,024
subjects (actions/attest-build-provenance, "Attestation Limits"), of which a kernel has eight, and
GitHub takes 1,000 requests an hour of a workflow."""


def share(image_tags: Collection[str], minute: int, looks: int = LOOKS) -> tuple[str, ...]:
    """The tags, or kernels, to look at in this run: drawn by lot, so that all have their turn in
    the course of time, however often runs come. The same minute gives the same ones.

    Args:
        minute: of the run, since 1970.
    """
    names = sorted(image_tags)
    shares = -(-len(names) // looks)
    chosen = int.from_bytes(_lot(minute)[:8]) * shares >> 64
    return tuple(names[chosen * looks : (chosen + 1) * looks])


def is_turn_of_signatures(minute: int) -> bool:
    """Whether a run that has its work signed, and else nothing to do, looks at a signature in place
    of a tag: every second one does, by lot.

    Args:
        minute: of the run, since 1970.
    """
    return bool(_lot(minute)[8] & 1)


def _lot(minute: int) -> bytes:
    return hashlib.sha256(str(minute).encode()).digest()


def damaged_files(
    receipt: Receipt, release: Release, leave_out: Collection[str] = ()
) -> Iterator[str]:
    """The files of a release that are not what the receipt says, each with what is wrong."""
    for name, file in sorted(receipt.files.items()):
        if name not in leave_out and (wrong := _wrong(file, release, name)):
            yield f"the release's {name} {wrong}"


def _wrong(file: File, release: Release, name: str) -> str:
    asset = release.asset(name)
    if asset is None:
        return "was missing"
    if asset.state != "uploaded":
        return "was never uploaded to its end"
    if asset.size != file.size:
        return f"had {asset.size} bytes in place of {file.size}"
    return "" if file.is_in(asset) else "had another digest"


def lost_images(receipt: Receipt, found: Mapping[str, Digest | None]) -> Iterator[str]:
    """The images that are gone from behind their tags, as far as they were looked at."""
    for platform, part in sorted(receipt.platforms.items()):
        if found.get(part.manifest, part.manifest) is None:
            yield f"the image for {platform} was missing"
    if any(found.get(digest, digest) is None for digest in receipt.beside):
        yield "something else that its tags lead to was missing"


def moved_tags(wanted: Mapping[str, Digest], found: Mapping[str, Digest | None]) -> Iterator[str]:
    """The tags that point elsewhere, as far as they were looked at.

    Args:
        wanted: the digest that is to be behind each tag.
        found: what is behind those that were looked at.
    """
    for image_tag, digest in wanted.items():
        there = found.get(image_tag, digest)
        if there != digest:
            yield f"{image_tag} pointed to {there or 'nothing'}"


def as_sentence(repairs: Sequence[str]) -> str:
    """How a repair is reported."""
    return f"repaired: {', '.join(repairs)}" if repairs else ""
