"""What failed too often with the same inputs waits until one of them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from release.plan import Held, Target
from release.reference import Digest, Platform, Reference
from release.state import MOST_ATTEMPTS, Attempt, Inputs, State
from release.versions import Entry

_CODE = ("Dockerfile", "builders.yaml", "image/*", "loader/*", "release/*.py", "release/*.sh")
"""What of our own has a say in how a build or a test ends."""
_NOT_THERE = "-"


def code_digest(project: Path) -> str:
    """Of our own files; that of a commit would change with each one of the pipeline's own."""
    digest = hashlib.sha256()
    for file in sorted(path for pattern in _CODE for path in project.glob(pattern)):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{content} {file.relative_to(project).as_posix()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def settings(entry: Entry) -> str:
    """The words of an entry that change how it is built and tested, beside its builder."""
    named = {"headers_from": entry.headers_from, "smoke": entry.smoke}
    return "; ".join(f"{name}: {value}" for name, value in named.items() if value)


def as_text(looked_at: Mapping[str, str | None]) -> str:
    """How :class:`Inputs` has what was looked at in place of a builder."""
    return ", ".join(f"{image} {digest or _NOT_THERE}" for image, digest in looked_at.items())


def held(
    targets: Iterable[Target],
    state: State,
    code: str,
    digests: Callable[[Collection[Reference]], Mapping[Reference, Digest | None]],
) -> Held:
    """Why what is to be done has to wait.

    Args:
        code: what :func:`code_digest` is now.
        digests: what is behind images, of those that it looks at, None where nothing is; asked of
            builders whose kernels would wait otherwise.
    """
    waiting = {
        (target.entry.slug, target.zfs, platform): attempt
        for target in targets
        for platform in target.platforms
        if target.to_do
        and (attempt := state.attempts.get((target.entry.slug, platform, target.zfs or "")))
        and attempt.times >= MOST_ATTEMPTS
        and _same(target, platform, attempt.inputs, code)
    }
    before = {key: _builders(attempt.inputs) for key, attempt in waiting.items()}
    now = digests({image for images in before.values() for image in images})
    found: dict[tuple[str, str | None], dict[Platform, str]] = {}
    for (slug, zfs, platform), attempt in waiting.items():
        images = before[slug, zfs, platform]
        if all(now.get(image, digest) == digest for image, digest in images.items()):
            found.setdefault((slug, zfs), {})[platform] = _reason(attempt)
    return found


def _reason(attempt: Attempt) -> str:
    return (
        f"failed {attempt.times} times with the same inputs ({attempt.reason}); waits until the "
        "kernel image, the ZFS version, the builder or the code changes, or for --force-rebuild"
    )


def _same(target: Target, platform: Platform, inputs: Inputs, code: str) -> bool:
    """Whether all is as it was but, maybe, the digests of builders."""
    known = (target.entry.platforms.get(platform), target.zfs, code, settings(target.entry))
    if known != (inputs.kernel, inputs.zfs, inputs.code, inputs.settings):
        return False
    named = target.entry.builder
    if not inputs.builder:
        return named is None
    builder = Reference.parse(inputs.builder)
    # Where another platform was published meanwhile, the entry names what had been found before.
    return not named or named.digest is not None or named == replace(builder, digest=None)


def _builders(inputs: Inputs) -> dict[Reference, str | None]:
    """The images that an attempt had its compiler from, or might have had, with their digests."""
    if not inputs.builder:
        each = (one.partition(" ") for one in inputs.looked_at.split(", ") if one)
        return {
            Reference.parse(image): None if digest == _NOT_THERE else digest
            for image, _, digest in each
        }
    builder = Reference.parse(inputs.builder)
    return {builder.name.with_tag(builder.tag): builder.digest} if builder.tag else {}
