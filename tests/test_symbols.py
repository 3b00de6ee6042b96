"""The symbols of modules against those of the kernel."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from release.errors import BuildError
from release.symbols import Misfit, Module, misfits, read_module, read_symvers
from tests.elf import ABSOLUTE, GLOBAL, UNDEFINED, WEAK, elf


def versions(**crcs: int) -> bytes:
    """The section ``__versions``: ``struct modversion_info`` of include/linux/module.h."""
    return b"".join(struct.pack("<Q56s", crc, name.encode()) for name, crc in crcs.items())


def test_imports_have_the_crc_that_the_module_was_compiled_with() -> None:
    content = elf(
        {"__versions": versions(kfree=0x37A0CBA, module_layout=0xFFFFFFFF)},
        [
            ("kfree", GLOBAL, UNDEFINED, 0),
            ("unversioned", GLOBAL, UNDEFINED, 0),
            ("perhaps", WEAK, UNDEFINED, 0),
            ("_GLOBAL_OFFSET_TABLE_", GLOBAL, UNDEFINED, 0),
        ],
    )
    imports = {"kfree": 0x37A0CBA, "module_layout": 0xFFFFFFFF, "unversioned": None}
    assert read_module("a.ko", content).imports == imports


def test_names_that_are_too_long_for_the_old_section() -> None:
    name = "a" * 80
    sections = {
        "__version_ext_crcs": struct.pack("<II", 1, 2),
        "__version_ext_names": f"{name}\0kfree\0".encode(),
    }
    assert read_module("a.ko", elf(sections)).imports == {name: 1, "kfree": 2}


def test_a_crc_is_a_value_or_at_its_place() -> None:
    content = elf(
        {"__kcrctab": struct.pack("<II", 7, 8), "__ksymtab": bytes(24)},
        [
            ("__crc_new", 0, "__kcrctab", 4),
            ("__crc_old", GLOBAL, ABSOLUTE, 0xCAFE),
            ("__ksymtab_old", GLOBAL, "__ksymtab", 0),
            ("__ksymtab_unversioned", GLOBAL, "__ksymtab", 12),
        ],
    )
    assert read_module("a.ko", content).exports == {"new": 8, "old": 0xCAFE, "unversioned": None}


@pytest.mark.parametrize("content", [b"", b"\x7fELF", elf()[:-70], b"\0vermagic=1 \0"])
def test_what_is_no_module_is_an_error(content: bytes) -> None:
    with pytest.raises(BuildError, match=r"spl\.ko"):
        read_module("spl.ko", content)


def test_symvers() -> None:
    text = "0x037a0cba\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n0x00000000\tx\tfs/a\tEXPORT_SYMBOL_GPL\n\n"
    assert read_symvers(text) == {"kfree": 0x37A0CBA, "x": None}


KERNEL = {"kfree": 1, "unversioned": None}


@pytest.mark.parametrize(
    ("imports", "says"),
    [
        ({"kfree": 1, "unversioned": None}, []),
        ({"kfree": None, "unversioned": 5}, []),
        ({"spl_x": 9}, []),
        ({"kfree": 2}, ["zfs.ko needs kfree 0x00000002, the kernel's is 0x00000001"]),
        ({"spl_x": 8}, ["zfs.ko needs spl_x 0x00000008, the kernel's is 0x00000009"]),
        ({"gone": 3}, ["zfs.ko needs gone 0x00000003, the kernel's is not exported"]),
        ({"gone": None}, ["zfs.ko needs gone without a CRC, the kernel's is not exported"]),
    ],
)
def test_each_import_is_exported_as_it_is_needed(
    imports: Mapping[str, int | None], says: list[str]
) -> None:
    modules = {"spl.ko": Module({}, {"spl_x": 9}), "zfs.ko": Module(imports, {})}
    assert list(map(str, misfits(modules, KERNEL))) == says


def test_a_misfit_names_the_module() -> None:
    (misfit,) = misfits({"zfs.ko": Module({"kfree": 2}, {})}, KERNEL)
    assert misfit == Misfit("zfs.ko", "kfree", 2, 1, known=True)
