"""All that a recorded setup has out there, to be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.recorded import Recorded


@dataclass(frozen=True)
class Published:
    """All that is out there, as far as anybody can tell."""

    tags: dict[str, str]
    releases: list[tuple[str, bool, str | None, dict[str, bytes | Path | None]]]
    git_tags: frozenset[str]
    versions: str

    @classmethod
    def by(cls, setup: Recorded) -> Published:
        return cls(
            setup.tags(),
            sorted(
                (one.tag_name, one.draft, one.body, {a.name: a.content for a in one.assets})
                for one in setup.releases.releases
            ),
            frozenset(setup.releases.git_tags),
            setup.path.read_text(),
        )
