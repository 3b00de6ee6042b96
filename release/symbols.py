"""Symbols: what a module imports, against what its kernel and the modules beside it export.

With ``CONFIG_MODVERSIONS`` each symbol has a CRC of its type, and the kernel refuses a module that
was compiled with another one (Linux, ``kernel/module/version.c``).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from release.errors import BuildError

_VERSION_BYTES = 64
"""Of an entry of ``__versions`` on 64-bit: an unsigned long, and the symbol's name."""


@dataclass(frozen=True)
class Module:
    """The symbols of a module.

    Attributes:
        imports: each symbol that it needs, with the CRC that it was compiled with, or None.
        exports: each symbol that it offers, with its CRC, or None.
    """

    imports: Mapping[str, int | None]
    exports: Mapping[str, int | None]


@dataclass(frozen=True)
class Misfit:
    """A symbol that a module needs, and nobody offers as it was compiled with it."""

    module: str
    symbol: str
    compiled_with: int | None
    offered: int | None
    known: bool

    def __str__(self) -> str:
        found = _hexadecimal(self.offered) if self.known else "not exported"
        return (
            f"{self.module} needs {self.symbol} {_hexadecimal(self.compiled_with)}, "
            f"the kernel's is {found}"
        )


def _hexadecimal(crc: int | None) -> str:
    return "without a CRC" if crc is None else f"0x{crc:08x}"


def read_symvers(text: str) -> dict[str, int | None]:
    """The symbols of a ``Module.symvers`` with their CRCs (Linux, ``scripts/mod/modpost.c``).

    Without ``CONFIG_MODVERSIONS`` every CRC in it is 0, which stands for none.
    """
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        crc, _, rest = line.partition("\t")
        if crc.startswith("0x") and rest:
            found[rest.partition("\t")[0]] = int(crc, 16) or None
    return found


def read_module(name: str, content: bytes) -> Module:
    """Reads a ``.ko``.

    Raises:
        BuildError: it is not a 64-bit ELF file with symbols.
    """
    try:
        elf = ELFFile(io.BytesIO(content))
        symbols = elf.get_section_by_name(".symtab")
        if not isinstance(symbols, SymbolTableSection) or elf.elfclass != 64:
            raise BuildError("is no 64-bit ELF file with symbols", on=name)
        imports: dict[str, int | None] = {}
        exports: dict[str, int | None] = {}
        for symbol in symbols.iter_symbols():
            section, binding = symbol["st_shndx"], symbol["st_info"]["bind"]
            if section == "SHN_UNDEF":
                if binding == "STB_GLOBAL" and symbol.name != "_GLOBAL_OFFSET_TABLE_":
                    imports[symbol.name] = None
            elif symbol.name.startswith("__ksymtab_"):
                exports.setdefault(symbol.name.removeprefix("__ksymtab_"), None)
            elif symbol.name.startswith("__crc_"):
                exports[symbol.name.removeprefix("__crc_")] = _crc(elf, section, symbol["st_value"])
        imports.update(_versions(elf))
    except (ELFError, struct.error, UnicodeDecodeError) as error:
        raise BuildError("cannot be read as a module", on=name, detail=str(error)) from error
    return Module(imports, exports)


def _crc(elf: ELFFile, section: int | str, value: int) -> int:
    """A CRC is a symbol's value itself, or at its place in ``__kcrctab`` (Linux 5.19 and arm64)."""
    if isinstance(section, str):
        return value & 0xFFFFFFFF
    (crc,) = struct.unpack_from("<I", elf.get_section(section).data(), value)
    return int(crc)


def _versions(elf: ELFFile) -> Iterator[tuple[str, int]]:
    if section := elf.get_section_by_name("__versions"):
        for crc, name in struct.iter_unpack(f"<Q{_VERSION_BYTES - 8}s", section.data()):
            yield name.partition(b"\0")[0].decode(), crc & 0xFFFFFFFF
    # Linux 6.14 and later, where CONFIG_EXTENDED_MODVERSIONS is set: for names of any length.
    crcs = elf.get_section_by_name("__version_ext_crcs")
    names = elf.get_section_by_name("__version_ext_names")
    if crcs and names:
        for (crc,), name in zip(
            struct.iter_unpack("<I", crcs.data()), names.data().split(b"\0"), strict=False
        ):
            yield name.decode(), crc


def misfits(modules: Mapping[str, Module], kernel: Mapping[str, int | None]) -> Iterator[Misfit]:
    """The symbols that neither the kernel nor one of the modules exports as they are needed.

    Args:
        modules: those that are carried together, by name.
        kernel: what the kernel exports, from its ``Module.symvers``.
    """
    for name, module in modules.items():
        for symbol, crc in module.imports.items():
            offers = [
                source[symbol]
                for source in (kernel, *(other.exports for other in modules.values()))
                if symbol in source
            ]
            if not offers:
                yield Misfit(name, symbol, crc, None, known=False)
            elif crc is not None and crc not in offers and offers != [None]:
                yield Misfit(name, symbol, crc, offers[0], known=True)
