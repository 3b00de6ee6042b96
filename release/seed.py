"""Struct randomisation: one kernel's seed over the headers of another build of the same release.

Linux lays out structs by a seed that is made once for each build (Linux, ``scripts/basic`` and
``scripts/gcc-plugins``). All else in the headers of two builds of one release may be equal, and
must be, where one build's modules are compiled against the other's headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from release.kernel import SYMVERS, UTS_RELEASE, read_members

PLUGIN = "scripts/gcc-plugins/randomize_layout_plugin.so"
"""GCC's plugin, which has the seed compiled in."""
SEED_FILES = {
    # Linux before 5.19, and since.
    "scripts/gcc-plugins/randomize_layout_seed.h": "include/generated/randomize_layout_hash.h",
    "scripts/basic/randstruct.seed": "include/generated/randstruct_hash.h",
}
"""A build's seed, and the file with its hash, which is in the vermagic of modules."""

_COMPILE = "include/generated/compile.h"
_CONFIG = ".config"
_SHOWN = 3
_PLUGIN_IN_USE = re.compile(r"^CONFIG_GCC_PLUGIN_RANDSTRUCT=y$", re.MULTILINE)
_RANDOM = re.compile(r"^CONFIG_(GCC_PLUGIN_)?RANDSTRUCT(_FULL|_PERFORMANCE)?=y$", re.MULTILINE)


@dataclass(frozen=True)
class Misfit:
    """Why a kernel's modules cannot be compiled against other headers.

    Attributes:
        what: as an end of the sentence "the headers …".
        detail: the first lines that differ.
    """

    what: str
    detail: str


def misfits(own: Path, other: Path) -> Iterator[Misfit]:
    """What forbids compiling a kernel's modules against other headers with just its seed put in.

    Args:
        own: the kernel's own ``kernel-dev.tar``, which has its seed.
        other: the ``kernel-dev.tar`` of another build of the same release.
    """
    compared = (UTS_RELEASE, _CONFIG, SYMVERS, _COMPILE)
    ours = read_members(own, (*compared, PLUGIN, *SEED_FILES, *SEED_FILES.values()))
    theirs = read_members(other, compared)
    for file in compared:
        left, right = _telling(file, ours.get(file)), _telling(file, theirs.get(file))
        if left != right:
            yield Misfit(f"differ in {_SAID.get(file, file)}", _first_differences(left, right))
        elif not left:
            yield Misfit(f"do not say {_SAID.get(file, file)}", f"{file} is missing or empty")
    config = ours.get(_CONFIG, "")
    if not _RANDOM.search(config):
        return
    if not any(seed in ours and hashed in ours for seed, hashed in SEED_FILES.items()):
        wanted = "\n".join(f"{seed} and {hashed}" for seed, hashed in SEED_FILES.items())
        yield Misfit("have no seed to be put in", f"the kernel's own lack\n{wanted}")
    elif _PLUGIN_IN_USE.search(config) and PLUGIN not in ours:
        yield Misfit("have no plugin to be put in", f"the kernel's own lack\n{PLUGIN}")


_SAID = {UTS_RELEASE: "the kernel release", _COMPILE: "the compiler"}


def _telling(file: str, text: str | None) -> list[str]:
    """The lines of a file that have to be equal."""
    lines = (text or "").splitlines()
    if file == _COMPILE:
        # Who compiled it, where and when may differ.
        return [line for line in lines if re.match(r"#define\s+LINUX_COMPILER\s", line)]
    return lines


def _first_differences(ours: list[str], theirs: list[str]) -> str:
    our_set, their_set = set(ours), set(theirs)
    only_ours = [line for line in ours if line not in their_set]
    only_theirs = [line for line in theirs if line not in our_set]
    if not only_ours and not only_theirs:
        return "the same lines in another order"
    lines = [f"this kernel    {line}" for line in only_ours[:_SHOWN]]
    lines += [f"other headers  {line}" for line in only_theirs[:_SHOWN]]
    more = len(only_ours[_SHOWN:]) + len(only_theirs[_SHOWN:])
    return "\n".join([*lines, *([f"and {more} lines more"] if more else [])])
