"""Whether what was published is what was tested: read back from outside, as a user would get it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from release.attest import PROVENANCE, SPDX, attached
from release.errors import PublishError
from release.github import GitHub, Release
from release.http import bytes_digest
from release.plan import SUMS
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import MALFORMED, Document, Registry

_HINT = "do not use it; find out who pushed there, and run again to repair it"
_HINT_ASSETS = "do not use it; delete what is not to be there, and run again to repair the rest"


def verify_image(
    registry: Registry,
    reference: Reference,
    pushed: Document,
    tested: Mapping[Platform, Digest],
) -> None:
    """Reads a published image back, and what attests it.

    Args:
        pushed: the index that the tag is to point to.
        tested: the digest of the manifest that was tested, of each platform.

    Raises:
        PublishError: it is not the image that was tested, or an attestation is about another one.
    """
    # Not read: that would be a pull, and the digest says as much.
    found = registry.head(reference)
    if found != pushed.digest:
        raise PublishError(
            "is not what was pushed",
            on=str(reference),
            detail=f"pushed {pushed.digest}\nfound  {found or 'nothing'}",
            hint=_HINT,
        )
    platforms = registry.platforms(reference, pushed)
    descriptors = attached(pushed)
    for platform, digest in tested.items():
        if platforms.get(platform) != digest:
            raise PublishError(
                f"is another image for {platform} than was tested",
                on=str(reference),
                detail=f"tested {digest}\nfound  {platforms.get(platform) or 'none'}",
                hint=_HINT,
            )
        if digest not in descriptors:
            raise PublishError("is not attested", on=str(reference.at(digest)), hint=_HINT)
        _verify_attestation(registry, reference, descriptors[digest], digest)


def lost(
    registry: Registry, reference: Reference, document: Document | None = None
) -> list[Digest]:
    """What an index holds and that is not there: an image, or what attests one.

    Args:
        document: the index; what the tag points to without it.
    """
    document = document or registry.find(reference)
    if not document:
        return []
    held = (parse_digest(one["digest"]) for one in document.content.get("manifests", ()))
    return [one for one in held if registry.head(reference.at(one)) is None]


def _verify_attestation(
    registry: Registry, reference: Reference, descriptor: Mapping[str, Any], digest: Digest
) -> None:
    at = reference.at(parse_digest(descriptor["digest"]))
    kinds = set()
    try:
        for item in registry.get(at).content["layers"]:
            statement = json.loads(registry.blob(reference, parse_digest(item["digest"])))
            kinds.add(statement["predicateType"])
            subjects = {one["digest"]["sha256"] for one in statement["subject"]}
            if subjects != {digest.removeprefix("sha256:")}:
                raise PublishError(
                    "is attested by a statement about another image",
                    on=str(reference.at(digest)),
                    detail=f"the statement is about {', '.join(sorted(subjects))}",
                    hint=_HINT,
                )
    except MALFORMED as error:
        raise PublishError(
            "is attested by what is no statement", on=str(at), detail=repr(error), hint=_HINT
        ) from error
    if kinds != {SPDX, PROVENANCE}:
        raise PublishError(
            "lacks an SBOM or a provenance",
            on=str(reference.at(digest)),
            detail=f"found {', '.join(sorted(kinds)) or 'nothing'}",
            hint=_HINT,
        )


def verify_sums(github: GitHub, release: Release) -> None:
    """Compares every asset of a release with its ``SHA256SUMS``, read back.

    Raises:
        PublishError: one has another digest, or is not listed, or not there.
    """
    on = f"{github} release {release.git_tag}"
    sums = release.asset(SUMS)
    text = github.read(sums).decode(errors="replace") if sums else ""
    listed = dict(line.split("  ", 1)[::-1] for line in text.splitlines() if "  " in line)
    found = {
        asset.name: (asset.digest or bytes_digest(github.read(asset))).removeprefix("sha256:")
        for asset in release.assets
        if asset.name != SUMS and asset.state == "uploaded"
    }
    differing = {name for name, digest in listed.items() if found.get(name) != digest}
    # What a release had before its assets were xz may lie there unused.
    differing |= {name for name in found.keys() - listed.keys() if not name.endswith(".tar.zst")}
    if differing or not listed:
        raise PublishError(
            f"its assets are not those of its {SUMS}",
            on=on,
            detail="\n".join(sorted(differing)),
            hint=_HINT_ASSETS,
        )
