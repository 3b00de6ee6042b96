"""What was published and is no longer recorded, as after a bad merge. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from release.identity import Changes
from release.plan import Observed, git_tag, row_of
from release.receipt import Receipt
from release.report import Outcome, Status
from release.versions import Entry

_FACTS = ("digest", "platforms", "builder", "headers_from", "zfs", "policy", "smoke")


@dataclass(frozen=True)
class Recollected:
    """What a poll changes, completed from what was published.

    Attributes:
        kernels: whose entries, or the facts in them, were lost.
    """

    changes: Changes
    kernels: frozenset[str] = frozenset()


def recollect(recorded: Sequence[Entry], changes: Changes, observed: Observed) -> Recollected:
    """Completes what is recorded, and what a poll found, from the receipts of releases.

    A kernel that is published and has no entry gets one; a kernel whose entry lacks facts gets
    them. Nothing that an entry says is changed.
    """
    revised = {id(was): now for was, now in changes.revised}
    old = [revised.get(id(entry), entry) for entry in recorded]
    new = list(changes.new)
    found = []
    for receipt, tag in _receipts(observed):
        known = (*old, *new)
        entry = next((one for one in known if _is_of(receipt, one)), None)
        if entry and (entry.resolved or entry.skip):
            continue
        others = [one for one in known if one is not entry]
        whole = _whole(entry, receipt.entry, others)
        # A tag or a version that stands for something else now is none of the receipt's.
        if git_tag(whole.slug, whole.zfs or "") != tag:
            continue
        if entry:
            old, new = ([whole if one is entry else one for one in part] for part in (old, new))
        else:
            new.append(whole)
        found.append(str(whole.image))
    return Recollected(
        replace(
            changes,
            new=tuple(new),
            revised=tuple(
                (was, now) for was, now in zip(recorded, old, strict=True) if was is not now
            ),
            notes=(*changes.notes, *(f"{name} is published: recorded again" for name in found)),
        ),
        frozenset(found),
    )


def tell(outcomes: Iterable[Outcome], kernels: frozenset[str]) -> list[Outcome]:
    """The outcomes, those of kernels that were recorded again among them."""
    return [
        replace(
            one,
            status=Status.PUBLISHED,
            reason="repaired: what versions.yaml had lost of it is recorded again",
        )
        if one.kernel in kernels and one.status is Status.UNCHANGED
        else one
        for one in outcomes
    ]


def _receipts(observed: Observed) -> Iterator[tuple[Receipt, str]]:
    """Of each kernel the receipt of its newest published release, with the name of the release."""
    published = [release for release in observed.releases or () if not release.draft]
    seen = set()
    for release in sorted(published, key=lambda release: release.id, reverse=True):
        receipt = observed.receipts.get(release.id)
        if receipt and (key := (receipt.entry.image, receipt.entry.digest)) not in seen:
            seen.add(key)
            yield receipt, row_of(release.git_tag)


def _is_of(receipt: Receipt, entry: Entry) -> bool:
    """Whether an entry is of a receipt's kernel, under whichever of its tags."""
    if entry.digest:
        return entry.digest == receipt.entry.digest
    return entry.image == receipt.entry.image


def _whole(entry: Entry | None, known: Entry, others: Sequence[Entry]) -> Entry:
    """An entry with the facts that it lacks; what other entries have meanwhile stays theirs."""
    twins = [one for one in others if one.image == known.image]
    entry = entry or replace(known, moved=bool(twins), desktop=(), aliases=())
    facts = {name: getattr(entry, name) or getattr(known, name) for name in _FACTS}
    taken = {image for one in (*others, entry) for image in one.references}
    versions = {version for one in (*others, entry) for version in one.desktop}
    return replace(
        entry,
        **facts,
        desktop=(*entry.desktop, *(one for one in known.desktop if one not in versions)),
        aliases=(*entry.aliases, *(one for one in known.aliases if one not in taken)),
    )
