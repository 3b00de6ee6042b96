"""Where secrets got to: looks for them in whatever a run leaves behind."""

from __future__ import annotations

import base64
import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it is, percent-encoded, and in base64 wherever it begins in what was encoded."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + secret.encode())
        # The first and last characters depend on what stands beside it.
        yield encoded.rstrip(b"=")[(before * 8 + 5) // 6 : -1]


def found_in(content: bytes, secrets: Mapping[str, str]) -> list[str]:
    """The names of the secrets that bytes hold, packed or not."""
    layers = [content]
    for unpack in (gzip.decompress, lzma.decompress):
        try:
            layers.append(unpack(content))
        except (OSError, EOFError, lzma.LZMAError, zlib.error):
            continue
    return [
        name
        for name, secret in secrets.items()
        if any(form in layer for form in forms(secret) for layer in layers)
    ]


def leaks(
    secrets: Mapping[str, str],
    texts: Mapping[str, str | bytes],
    directories: Iterable[Path] = (),
) -> list[str]:
    """Each place that holds a secret, with the secret's name.

    Args:
        secrets: by a name for messages.
        texts: by a name for messages.
        directories: all files below them are looked at, their names too.
    """
    contents = {
        name: text.encode(errors="surrogateescape") if isinstance(text, str) else text
        for name, text in texts.items()
    }
    for directory in directories:
        for path in directory.rglob("*"):
            contents[str(path)] = path.read_bytes() if path.is_file() else b""
    return [
        f"{name} in {place}"
        for place, content in contents.items()
        for name in found_in(place.encode() + content, secrets)
    ]
