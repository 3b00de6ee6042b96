"""What was published and is no longer recorded, as after a bad merge. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from release.identity import Changes
from release.plan import Observed, git_tag, row_of
from release.receipt import Receipt
from release.reference import Digest, Reference
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
    index = _index((*old, *new))
    for receipt, tag in _receipts(observed):
        entry = _entry_of(receipt, index)
        if entry and (entry.resolved or entry.skip):
            continue
        others = [one for one in (*old, *new) if one is not entry]
        whole = _whole(entry, receipt.entry, others)
        # A tag or a version that stands for something else now is none of the receipt's.
        if git_tag(whole.slug, whole.zfs or "") != tag:
            continue
        if entry:
            old, new = ([whole if one is entry else one for one in part] for part in (old, new))
        else:
            new.append(whole)
        index = _index((*old, *new))
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


def _index(entries: Sequence[Entry]) -> Mapping[Digest | Reference, tuple[int, Entry]]:
    """The first entry with each digest, and of those without any with each image; with its place.
    A list of thousands is so gone through once.
    """
    found: dict[Digest | Reference, tuple[int, Entry]] = {}
    for place, entry in enumerate(entries):
        found.setdefault(entry.digest or entry.image, (place, entry))
    return found


def _entry_of(
    receipt: Receipt, index: Mapping[Digest | Reference, tuple[int, Entry]]
) -> Entry | None:
    """The first entry of a receipt's kernel, under whichever of its tags."""
    keys = (receipt.entry.digest, receipt.entry.image)
    found = [index[key] for key in keys if key and key in index]
    return min(found, key=lambda one: one[0])[1] if found else None


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
