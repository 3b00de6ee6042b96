"""What failed too often with the same inputs waits until one of them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from release.plan import Target
from release.reference import Digest, Platform, Reference
from release.state import MOST_ATTEMPTS, Attempt, Inputs, State
from release.versions import Entry

_CODE = ("Dockerfile", "builders.yaml", "image/*", "loader/*", "release/*.py", "release/*.sh")
"""What of our own has a say in how a build or a test ends."""


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


def held(
    targets: Iterable[Target], state: State, code: str, head: Callable[[Reference], Digest | None]
) -> dict[str, Mapping[Platform, str]]:
    """By slug and platform, why what is to be done has to wait.

    Args:
        code: what :func:`code_digest` is now.
        head: the digest behind an image; asked of builders whose kernel would wait otherwise.
    """
    found: dict[str, Mapping[Platform, str]] = {}
    for target in targets:
        slug = target.entry.slug
        waiting = {
            platform: _reason(attempt)
            for platform in target.platforms
            if target.to_do
            and (attempt := state.attempts.get((slug, platform)))
            and attempt.times >= MOST_ATTEMPTS
            and _same(target, platform, attempt.inputs, code, head)
        }
        if waiting:
            found[slug] = waiting
    return found


def _reason(attempt: Attempt) -> str:
    return (
        f"failed {attempt.times} times with the same inputs ({attempt.reason}); waits until the "
        "kernel image, the ZFS version, the builder or the code changes, or for --force-rebuild"
    )


def _same(
    target: Target,
    platform: Platform,
    inputs: Inputs,
    code: str,
    head: Callable[[Reference], Digest | None],
) -> bool:
    known = (target.entry.platforms.get(platform), target.zfs, code, settings(target.entry))
    if known != (inputs.kernel, inputs.zfs, inputs.code, inputs.settings):
        return False
    named = target.entry.builder
    if not inputs.builder:
        return named is None
    builder = Reference.parse(inputs.builder)
    # Where another platform was published meanwhile, the entry names what had been found before.
    if named and named.digest is None and named != replace(builder, digest=None):
        return False
    return not builder.tag or head(builder.name.with_tag(builder.tag)) == builder.digest
