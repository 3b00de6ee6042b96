"""Relocatable ELF files of a few bytes, as kernel modules are."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

UNDEFINED, ABSOLUTE = 0, 0xFFF1
GLOBAL, WEAK = 1, 2


def elf(
    sections: Mapping[str, bytes] | None = None,
    symbols: Sequence[tuple[str, int, int | str, int]] = (),
) -> bytes:
    """A relocatable ELF file (elf(5)).

    Args:
        symbols: name, binding, section (by name, or a number that stands for none), value.
    """
    contents = {"": b"", **(sections or {})}
    strings = b"\0"
    table = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    names = list(contents)
    for name, binding, section, value in symbols:
        number = names.index(section) if isinstance(section, str) else section
        table += struct.pack("<IBBHQQ", len(strings), binding << 4, 0, number, value, 0)
        strings += name.encode() + b"\0"
    contents |= {".symtab": table, ".strtab": strings, ".shstrtab": b""}
    names = list(contents)
    contents[".shstrtab"] = b"".join(name.encode() + b"\0" for name in names)
    headers, body, at = b"", b"", 0
    for name, content in contents.items():
        kind = {"": 0, ".symtab": 2, ".strtab": 3, ".shstrtab": 3}.get(name, 1)
        link = names.index(".strtab") if name == ".symtab" else 0
        size = 24 if name == ".symtab" else 0
        headers += struct.pack(
            "<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(body), len(content), link, 1, 1, size
        )
        body += content
        at += len(name) + 1
    ident = b"\x7fELF\2\1\1" + bytes(9)
    last = len(names) - 1
    header = struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(names), last
    )
    return ident + header + body + headers
