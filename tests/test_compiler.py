"""Compilers, in the words of the kernels and builders that have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.compiler import Compiler, banner_compiler

DEBIAN = Compiler("gcc", "12.2.0", "Debian 12.2.0-14+deb12u1")
SNAPSHOT = Compiler("gcc", "10.3.1 20210424", "Alpine 10.3.1_git20210424")


@pytest.mark.parametrize(
    ("text", "compiler"),
    [
        ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", DEBIAN),
        ("gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0", DEBIAN),
        ("x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0", DEBIAN),
        ("cc (Debian 12.2.0-14+deb12u1) 12.2.0", DEBIAN),
        ("gcc (Alpine 10.3.1_git20210424) 10.3.1 20210424", SNAPSHOT),
        ("x86_64-alpine-linux-musl-gcc (Alpine 10.3.1_git20210424) 10.3.1 20210424", SNAPSHOT),
        ("gcc version 10.3.1 20210424 (Alpine 10.3.1_git20210424)", SNAPSHOT),
        ("gcc version 8.3.0 (Alpine 8.3.0) ", Compiler("gcc", "8.3.0", "Alpine 8.3.0")),
        ("gcc version 6.3.0 (GCC)", Compiler("gcc", "6.3.0")),
        ("gcc (GCC) 13.2.0", Compiler("gcc", "13.2.0")),
        ("gcc version 12.2.0", Compiler("gcc", "12.2.0")),
        ("Debian clang version 14.0.6", Compiler("clang", "14.0.6", "Debian")),
        ("clang version 17.0.6 (https://x 6009708b)", Compiler("clang", "17.0.6")),
        ("rustc 1.80", None),
        ("gcc", None),
        ("", None),
    ],
)
def test_reads(text: str, compiler: Compiler | None) -> None:
    assert Compiler.parse(text) == compiler


@pytest.mark.parametrize(
    ("banner", "compiler"),
    [
        (
            "Linux version 4.9.184-linuxkit (root@a8c33e955a82) (gcc version 8.3.0 (Alpine 8.3.0) )"
            " #1 SMP Tue Jul 2 22:58:16 UTC 2019",
            Compiler("gcc", "8.3.0", "Alpine 8.3.0"),
        ),
        (
            "Linux version 5.15.49-linuxkit (root@buildkitsandbox) (gcc (Alpine 10.2.1_pre1) 10.2.1"
            " 20201203, GNU ld (GNU Binutils) 2.35.2) #1 SMP Tue Sep 13 07:51:46 UTC 2022",
            Compiler("gcc", "10.2.1 20201203", "Alpine 10.2.1_pre1"),
        ),
        (
            "Linux version 6.5.11-linuxkit (root@buildkitsandbox) (gcc (Alpine"
            " 12.2.1_git20220924-r10) 12.2.1 20220924, GNU ld (GNU Binutils) 2.40) #1 SMP",
            Compiler("gcc", "12.2.1 20220924", "Alpine 12.2.1_git20220924-r10"),
        ),
        (
            "Linux version 6.1.0-1 (gcc@debian.org) (clang version 16.0.1, LLD 16.0.1) #1",
            Compiler("clang", "16.0.1"),
        ),
        ("Linux version 6.1.0 (gcc (A) 1.2@x) #1 SMP", None),
        ("Linux version 6.1.0", None),
    ],
)
def test_reads_a_banner(banner: str, compiler: Compiler | None) -> None:
    assert banner_compiler(banner) == compiler


@pytest.mark.parametrize(
    "other",
    [
        Compiler("gcc", "12.2.1", DEBIAN.packager),
        Compiler("gcc", "12.2.0 20220924", DEBIAN.packager),
        Compiler("clang", "12.2.0", DEBIAN.packager),
        Compiler("gcc", "12.2.0", "Debian 12.2.0-13"),
    ],
)
def test_what_makes_another_compiler(other: Compiler) -> None:
    assert not DEBIAN.same(other)
    assert DEBIAN.same(Compiler("gcc", "12.2.0"))


def test_another_revision_of_the_package_resembles_it() -> None:
    assert DEBIAN.resembles(Compiler("gcc", "12.2.0", "Debian 12.2.0-13"))
    assert not DEBIAN.resembles(Compiler("gcc", "12.2.0", "Alpine 12.2.0"))


WORDS = st.sampled_from(
    ["gcc", "clang", "cc", "-", "version", "(", ")", " ", "12", ".", "2", "20201203", "Alpine"]
)


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)))
def test_any_text_can_be_read(text: str) -> None:
    for compiler in (Compiler.parse(text), banner_compiler(text)):
        if compiler:
            assert compiler.same(compiler)


WORD = st.from_regex(r"[A-Za-z][\w.+~-]{0,20}( [\w.+~-]{1,20})?", fullmatch=True)
VERSION = st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}\.[0-9]( 20[0-9]{6})?", fullmatch=True).filter(
    str.isascii
)


@given(VERSION, WORD)
def test_what_is_printed_is_read_again(version: str, packager: str) -> None:
    compiler = Compiler("gcc", version, "" if packager == "GCC" else packager)
    if compiler.packager:
        assert Compiler.parse(str(compiler)) == compiler
