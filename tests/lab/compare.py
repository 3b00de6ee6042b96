"""Where two images that should be the same differ: which layer, which file, and in what."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from release.layout import Layout


def image_differences(left: Layout, right: Layout) -> list[str]:
    """How two images differ, each as one line; nothing where they are the same bytes."""
    if left.manifest.digest == right.manifest.digest:
        return []
    found = list(_values("config", left.config, right.config))
    ours, theirs = left.layers, right.layers
    if len(ours) != len(theirs):
        return [*found, f"{len(ours)} layers and {len(theirs)} layers"]
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        found += [f"layer {number}: {line}" for line in tar_differences(one, other)]
    return found or ["only in how they are packed: the same files, another manifest"]


def tar_differences(left: Path, right: Path) -> list[str]:
    """How two tars (compressed by gzip or xz, or not) differ, each as one line."""
    if left.read_bytes() == right.read_bytes():
        return []
    ours, theirs = _members(left), _members(right)
    found = [f"{name}: only in the first" for name in ours if name not in theirs]
    found += [f"{name}: only in the second" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        (one, content), (other, others) = ours[name], theirs[name]
        for field in ("type", "mode", "uid", "gid", "mtime", "linkname"):
            was, now = getattr(one, field), getattr(other, field)
            if was != now:
                found.append(f"{name}: {field} is {was!r} and {now!r}")
        if content != others:
            found.append(f"{name}: {_first_difference(content, others)}")
    if not found and list(ours) != list(theirs):
        found = ["the same files in another order"]
    return sorted(found) or ["only in how they are packed: the same files"]


def _members(path: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return {
            member.name: (member, file.read() if (file := tar.extractfile(member)) else b"")
            for member in tar
            if not member.islnk()
        }


def _first_difference(left: bytes, right: bytes) -> str:
    place = next(
        (n for n, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )
    sums = (hashlib.sha256(content).hexdigest()[:12] for content in (left, right))
    near = [content[max(0, place - 8) : place + 24] for content in (left, right)]
    return (
        f"{len(left)} and {len(right)} bytes, {' and '.join(sums)}, from byte {place} on: "
        f"{near[0]!r} and {near[1]!r}"
    )


def _values(name: str, left: Any, right: Any) -> Iterator[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            yield from _values(f"{name}.{key}", left.get(key), right.get(key))
    elif left != right and not name.endswith("diff_ids"):
        yield f"{name}: {json.dumps(left)} and {json.dumps(right)}"


_ELSEWHERE = re.compile(rb"/(?:home|root|tmp|var|build|work|Users|mnt)/[\x21-\x7e]{0,60}")
_TIMES = re.compile(
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d{4}|\d\d:\d\d:\d\d"
)

_SHORTEST = 5


def traces(content: bytes, *names: str) -> list[str]:
    """What a file tells of the machine that made it: paths, times, and any of ``names``.

    A name of less than five letters is a part of too many words to be looked for.
    """
    found = [match[0] for pattern in (_ELSEWHERE, _TIMES) for match in pattern.finditer(content)]
    found += [
        name.encode() for name in names if len(name) >= _SHORTEST and name.encode() in content
    ]
    return sorted({one.decode(errors="replace") for one in found})


def modules(layout: Layout) -> dict[str, bytes]:
    """The kernel modules in an image, by name."""
    with tarfile.open(fileobj=io.BytesIO(layout.layers[-1].read_bytes())) as tar:
        return {
            member.name: file.read()
            for member in tar
            if member.name.endswith(".ko") and (file := tar.extractfile(member))
        }
