"""Publishes what was smoke-tested: the image by digest, the GitHub release, ``desktop-X`` last."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from semver import Version

from release.attest import (
    Attestation,
    Origin,
    Subject,
    attached,
    attest,
    beside,
    provenance_name,
    sbom_name,
)
from release.build import Built
from release.errors import ConfigurationError, NotFoundError, PublishError
from release.github import Asset, GitHub, Release
from release.http import bytes_digest, checksums, file_digest
from release.layers import START_BYTES, Assembled, Image, without_userland
from release.layout import Layout
from release.notes import printable
from release.plan import (
    SUMS,
    asset_name,
    git_tag,
    next_git_tag,
    old_asset_name,
    release_in,
    row_of,
)
from release.receipt import File, Part, Receipt
from release.reference import (
    Digest,
    Platform,
    Reference,
    architecture,
    parse_digest,
    platform_fields,
)
from release.registry import MALFORMED, OCI_INDEX, Document, Registry
from release.resolve import Kernel
from release.verify import lost, verify_image, verify_sums
from release.versions import PLATFORMS, ZFS_VERSION, Entry, modules_tag

_XZ_PRESET = 6
"""Layers are compressed already: 6 is 0.4 % below 0, and nothing above it is any smaller."""


# The image


def push(
    registry: Registry,
    image: Reference,
    slug: str,
    kernel: Kernel,
    built: Sequence[Built],
    receipt: Receipt | None = None,
    others: Sequence[Built] = (),
    *,
    tags: bool = True,
    named: Callable[[], Collection[Digest]] | None = None,
) -> Pushed:
    """Pushes what was built, and moves the tag ``slug`` to it.

    The tag points to an index of the platforms' manifests, with an attestation of each; it keeps
    the platforms that others pushed before.

    Args:
        receipt: what was published before: where all of it was brought back, its index is as
            good as ever.
        others: what was brought back of other platforms, which the receipt does not have: taken
            where the tag has nothing, or an older ZFS, for them.
        tags: whether tags are moved; the images are there by their digests otherwise.
        named: gives the images that may be kept of what the tag leads to; None for all that say
            they are ours.

    Raises:
        PublishError: a tag reads back differently.
    """
    for one in (*others, *built):
        for digest, blob in one.layout.blobs():
            registry.upload(image, digest, blob)
        registry.put(image.at(one.digest), one.layout.manifest)
    document = _before(registry, image, receipt, built, others)
    manifests = {one.platform: one.layout.manifest for one in built}
    labels = {one.platform: one.labels for one in built}
    reference = image.with_tag(slug) if tags else image
    if document and tags:
        registry.put(reference, document)
        verify_image(registry, reference, document, {p: m.digest for p, m in manifests.items()})
    elif not document:
        fill = {one.platform: one.layout.manifest for one in others}
        document = _push_index(registry, reference, kernel, manifests, labels, fill, named)
    made = {one.platform: modules_alone(one) for one in (*others, *built)}
    if named:
        made = _kept_alone(registry, image, document, made) | made
    reference = image.with_tag(modules_tag(slug)) if tags else image
    modules = _push_modules(registry, reference, kernel, labels, made, named)
    return Pushed(document, modules)


@dataclass(frozen=True)
class Pushed:
    """The indexes that a kernel's tags point to. ``modules`` is None where the image has no
    userland that it could be without.
    """

    image: Document
    modules: Document | None

    @property
    def held(self) -> frozenset[Digest]:
        """What the indexes lead to: images, and what attests them."""
        documents = filter(None, (self.image, self.modules))
        return frozenset(
            parse_digest(item["digest"])
            for document in documents
            for item in document.content.get("manifests", ())
        )


def _before(
    registry: Registry,
    image: Reference,
    receipt: Receipt | None,
    built: Iterable[Built],
    others: Iterable[Built],
) -> Document | None:
    """The index that a receipt names, where all that it holds is there again, and the others are
    in it.
    """
    pushed = {one.platform: one.digest for one in built}
    if not receipt or pushed != {
        platform: part.manifest for platform, part in receipt.platforms.items()
    }:
        return None
    document = registry.find(image.at(receipt.image))
    if not document or lost(registry, image, document):
        return None
    held = {one["digest"] for one in document.content.get("manifests", ())}
    return document if held.issuperset(one.digest for one in others) else None


def _push_index(
    registry: Registry,
    reference: Reference,
    kernel: Kernel,
    manifests: Mapping[Platform, Document],
    labels: Mapping[Platform, Mapping[str, str]],
    fill: Mapping[Platform, Document],
    named: Callable[[], Collection[Digest]] | None,
) -> Document:
    """Points a tag to manifests that are there, each with what attests it, beside those of other
    platforms that others pushed before.

    Args:
        reference: without a tag, the index is there by its digest alone.
        labels: of the manifests' images.
        fill: manifests of other platforms, where the tag has none, or an older ZFS, for them.
        named: gives the images that may be kept of what the tag leads to; None for all that say
            they are ours.
    """
    descriptors: dict[Digest, Mapping[str, Any]] = {}
    there: dict[Platform, Document] = {}
    if reference.tag and len(kernel.platforms) > 1 and (before := registry.find(reference)):
        there = _published_in(before, registry, reference, kernel)
        if not named:
            descriptors = attested(registry, reference, before)
        elif there.keys() - manifests.keys():
            known = named()
            there = {platform: one for platform, one in there.items() if one.digest in known}
    for platform, manifest in fill.items():
        # Another machine may have published a newer one meanwhile; an older one is damage.
        held = there.get(platform)
        if not held or _zfs(registry, reference, held) <= _zfs(registry, reference, manifest):
            there[platform] = manifest
    for platform, manifest in {**there, **manifests}.items():
        if platform in manifests:
            about = labels[platform]
        elif manifest.digest not in descriptors:
            about = registry.labels(reference, manifest.digest)
        else:
            continue
        origin = Origin(reference.name, platform, manifest.digest, about)
        attestation = attest(origin.made)
        put_attestation(registry, reference, attestation)
        descriptors[manifest.digest] = attestation.descriptor
    document = index({**there, **manifests}, descriptors)
    reference = reference if reference.tag else reference.at(document.digest)
    registry.put(reference, document)
    verify_image(registry, reference, document, {p: m.digest for p, m in manifests.items()})
    return document


def _zfs(registry: Registry, image: Reference, manifest: Document) -> Version:
    return Version.parse(registry.labels(image, manifest.digest)["install-zfs.zfs-version"])


def attested(
    registry: Registry, reference: Reference, document: Document
) -> dict[Digest, Mapping[str, Any]]:
    """The descriptors in an index of what attests its images, as far as that is there."""
    return {
        of: one
        for of, one in attached(document).items()
        if registry.head(reference.at(parse_digest(one["digest"])))
    }


def modules_alone(built: Built) -> Assembled | None:
    """A built image without its userland; None where it has none."""
    layout = built.layout

    def start_of(digest: Digest) -> bytes:
        with layout.blob(digest).open("rb") as file:
            return file.read(START_BYTES)

    return without_userland(Image.read(layout.manifest, layout.config, start_of))


def _push_modules(
    registry: Registry,
    reference: Reference,
    kernel: Kernel,
    labels: Mapping[Platform, Mapping[str, str]],
    made: Mapping[Platform, Assembled | None],
    named: Callable[[], Collection[Digest]] | None,
) -> Document | None:
    """Puts the tag for the modules alone beside the one of the image. Its layers are there.

    Args:
        labels: of the images that are new.
        made: of these, and of other platforms.
    """
    alone = {platform: one for platform, one in made.items() if one}
    for one in alone.values():
        put_assembled(registry, reference, one)
    manifests = {platform: alone[platform].manifest for platform in labels if platform in alone}
    if not manifests:
        return None
    fill = {platform: one.manifest for platform, one in alone.items() if platform not in manifests}
    # Those that are kept were made of the images, and not found under this tag.
    named = frozenset[Digest] if named else None
    return _push_index(registry, reference, kernel, manifests, labels, fill, named)


def _kept_alone(
    registry: Registry, image: Reference, document: Document, made: Collection[Platform]
) -> dict[Platform, Assembled | None]:
    """What an index keeps of platforms of which nothing was made here, without its userland."""
    found: dict[Platform, Assembled | None] = {}
    for platform, digest in registry.platforms(image, document).items():
        if platform in made:
            continue
        with suppress(NotFoundError):  # an index can outlive what it names
            manifest = registry.get(image.at(digest))
            whole = Image.read(
                manifest,
                registry.config(image, manifest),
                lambda layer: registry.blob(image, layer, first=START_BYTES),
            )
            found[platform] = without_userland(whole)
    return found


def put_assembled(registry: Registry, image: Reference, assembled: Assembled) -> None:
    """Puts the manifest and the configuration of an image whose layers are there."""
    registry.upload(image, assembled.config_digest, assembled.config)
    registry.put(image.at(assembled.manifest.digest), assembled.manifest)


def put_attestation(registry: Registry, image: Reference, attestation: Attestation) -> None:
    """Puts what attests a manifest beside it."""
    for blob in attestation.blobs:
        registry.upload(image, bytes_digest(blob), blob)
    registry.put(image.at(attestation.manifest.digest), attestation.manifest)


def published(registry: Registry, reference: Reference, kernel: Kernel) -> dict[Platform, Document]:
    """The manifest of each platform that is out there under a tag and is for this very kernel."""
    document = registry.find(reference)
    return _published_in(document, registry, reference, kernel) if document else {}


def _published_in(
    document: Document, registry: Registry, reference: Reference, kernel: Kernel
) -> dict[Platform, Document]:
    found = {}
    for platform, manifest in registry.platforms(reference, document).items():
        try:
            labels = registry.labels(reference, manifest)
        except NotFoundError:
            continue  # an index can outlive what it names
        if platform in kernel.platforms and _is_ours(labels, kernel.platforms[platform]):
            found[platform] = registry.get(reference.at(manifest))
    return found


def _is_ours(labels: Mapping[str, str], manifest: Digest) -> bool:
    """Whether an image's labels say that it is ours, and for this very kernel."""
    if labels.get("install-zfs.kernel-digest") != manifest:
        return False
    # They become a git tag and names of files, so that anything else than these is nobody's of us.
    try:
        for name in ("install-zfs.builder-image", "install-zfs.kernel-image"):
            Reference.parse(labels.get(name, ""))
    except ConfigurationError:
        return False
    return bool(ZFS_VERSION.fullmatch(labels.get("install-zfs.zfs-version", "")))


def index(
    manifests: Mapping[Platform, Document],
    attestations: Mapping[Digest, Mapping[str, Any]] = MappingProxyType({}),
) -> Document:
    """An OCI index (image-spec, "image-index.md") of the platforms' manifests.

    Args:
        attestations: descriptors of what attests the manifests, by their digests.
    """
    items: list[Mapping[str, Any]] = []
    for platform, manifest in sorted(manifests.items()):
        items.append(
            {
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": len(manifest.raw),
                "platform": platform_fields(platform),
            }
        )
    # Behind all that can be run (buildkit, "attestation-storage.md").
    items += [attestations[item["digest"]] for item in items if item["digest"] in attestations]
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": items}
    raw = json.dumps(content, separators=(",", ":")).encode()
    return Document(bytes_digest(raw), OCI_INDEX, raw)


def tag(
    registry: Registry, image: Reference, image_tags: Iterable[str], document: Document
) -> None:
    """Points more tags to what the kernel's slug points to."""
    for image_tag in image_tags:
        registry.put(image.with_tag(image_tag), document)


def fetch(registry: Registry, image: Reference, manifest: Document, to: Path) -> Layout:
    """Downloads a published image to an OCI layout, every blob checked against its digest.

    Raises:
        PublishError: the manifest is none, or a blob is not of the size that it says.
    """
    layout = Layout(to)
    on = str(image.at(manifest.digest))
    try:
        content = manifest.content
        blobs = [
            (parse_digest(item["digest"]), item["size"])
            for item in (content["config"], *content["layers"])
        ]
    except MALFORMED as error:
        raise PublishError("is no image's manifest", on=on, detail=repr(error)) from error
    for digest, size in blobs:
        blob = layout.blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        registry.download(image, digest, blob)
        if (found := blob.stat().st_size) != size:
            raise PublishError(
                "a blob does not have the size that the manifest says",
                on=on,
                detail=f"{digest}\nexpected {size} bytes\nfound    {found}",
                hint="no engine can pull this image; delete its tag, and run again",
            )
    layout.blob(manifest.digest).write_bytes(manifest.raw)
    (to / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": len(manifest.raw),
            }
        ],
    }
    (to / "index.json").write_text(json.dumps(index))
    return layout


# The release


def attest_asset(image: Reference, built: Built, asset: Path) -> list[Path]:
    """Writes the SBOM and the provenance of a release asset beside it."""
    origin = Origin(image.name, built.platform, built.digest, built.labels)
    files = []
    for name, content in beside(origin.made, Subject(asset.name, file_digest(asset))).items():
        files.append(asset.with_name(name))
        files[-1].write_bytes(content)
    return files


def compress(tar: Path, to: Path) -> None:
    """Compresses a sideload tar as a release asset; the same tar gives the same bytes.

    ``docker load`` reads xz itself, and so does busybox, which knows no other check than CRC32.
    ``to`` appears whole or not at all.
    """
    part = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        compressed = lzma.compress(tar.read_bytes(), check=lzma.CHECK_CRC32, preset=_XZ_PRESET)
        part.write_bytes(compressed)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def publish_release(
    github: GitHub,
    entry: Entry,
    image: Reference,
    built: Sequence[Built],
    pushed: Pushed,
    assets: Sequence[Path],
    directory: Path,
    before: Receipt | None = None,
    to_sign: Collection[Platform] = (),
) -> Release:
    """Brings the release of a kernel and a ZFS version to where it has to be.

    A draft takes all assets, is read back and compared, and only then published. A release that
    an earlier run left half-made is completed; what broke in it is replaced. A published one from
    before the assets were xz keeps those that it has. One that is wrong and immutable stays as it
    is, and another with the next number takes its place.

    Args:
        assets: what the release is to have; what is whole there already may be left out.
        directory: takes the sums, and what is copied from one release to another.
        before: what was published earlier.
        to_sign: the platforms whose images were built now and are to be signed.

    Raises:
        PublishError: the release reads back differently.
    """
    assert entry.zfs
    name = git_tag(entry.slug, entry.zfs)
    title = f"ZFS {entry.zfs} for {entry.image.repository}:{entry.image.tag}"
    release = _ours(github, name)
    if release:
        # Another machine may have added its platform since this run looked.
        before = Receipt.find(release.body) or before
        assets = _without_old(github, release, entry.slug, built, assets)
        if not release.draft:
            assets = _with_its_attestations(release, assets, before)
    kept = _kept(github, release, entry, before)
    files = {**kept, **{path.name: _file(path) for path in assets}}
    parts = _parts(built, pushed, before, to_sign)
    if release and not release.immutable:
        release = _without_leftovers(github, release, entry.slug, files)
    sums = _write_sums(directory, files)
    receipt = Receipt(
        entry,
        pushed.image.digest,
        pushed.modules.digest if pushed.modules else None,
        parts,
        {**files, SUMS: _file(sums)},
        before.instead_of if before else "",
        tuple(sorted(pushed.held.difference(part.manifest for part in parts.values()))),
    )
    if release and release.immutable and (wrong := _wrong(github, release, (*assets, sums))):
        copied = _copy(github, release, receipt, {path.name for path in assets}, directory)
        assets = [*assets, *copied]
        files = {path.name: _file(path) for path in assets}
        sums = _write_sums(directory, files)
        why = f"`{release.git_tag}`, which is not right ({wrong}) and cannot be changed"
        receipt = replace(receipt, files={**files, SUMS: _file(sums)}, instead_of=why)
        name, release = next_git_tag(release.git_tag), None
    notes = _notes(receipt, image)
    release = release or github.create_draft(name, title, notes)
    for path in (*assets, sums):
        _upload(github, release, path)
    release = github.read_back(release)
    for path in (*assets, sums):
        _compare(github, release, path)
    if release.body.replace("\r\n", "\n").strip() != notes.strip():
        github.describe(release, notes)
        release = replace(release, body=notes)
    if release.draft:
        release = _publish(github, release, receipt, image)
    verify_sums(github, release)
    return release


def _publish(github: GitHub, release: Release, receipt: Receipt, image: Reference) -> Release:
    """Publishes a draft, under the next name that can still be used."""
    tag = release.git_tag
    while not github.publish(release):
        why = f"`{tag}`, which was deleted: it was immutable, and its name cannot be used again"
        tag = next_git_tag(tag)
        github.rename(release, tag, _notes(replace(receipt, instead_of=why), image))
    release = github.read_back(release)
    if release.draft:
        raise PublishError("is still a draft after it was published", on=release.url)
    return release


def stands(release: Release | None, receipt: Receipt | None, slug: str, built: Built) -> bool:
    """Whether a release has the sideload tar of just this image and what attests it, as they were
    published.
    """
    part = receipt.platforms.get(built.platform) if receipt else None
    if not release or not receipt or not part or part.manifest != built.digest:
        return False
    return all(
        name in receipt.files and receipt.files[name].is_in(release.asset(name))
        for name in asset_names(slug, built.platform)
    )


def asset_names(slug: str, platform: Platform) -> tuple[str, ...]:
    """The sideload tar of a platform, and what attests it."""
    tar = asset_name(slug, platform)
    return tar, sbom_name(tar), provenance_name(tar)


def subjects(
    image: Reference,
    slug: str,
    platforms: Collection[Platform],
    indexes: Iterable[Digest | None],
    files: Mapping[str, Digest],
) -> Iterator[Subject]:
    """What there is to sign of a kernel of which these platforms are new: their files, and the
    indexes.

    Args:
        indexes: what SLUG and SLUG-modules point to.
        files: of the release, by name.
    """
    for name in (name for one in platforms for name in asset_names(slug, one)):
        # A release from before attestations, or before xz, never got all of them.
        if name in files:
            yield Subject(name, files[name])
    if platforms:
        for digest in filter(None, indexes):
            yield Subject(str(image.name), digest)


def _file(path: Path) -> File:
    return File(path.stat().st_size, file_digest(path))


def _kept(
    github: GitHub, release: Release | None, entry: Entry, before: Receipt | None
) -> dict[str, File]:
    """The files that are in the release beside those that are to be uploaded now, and belong there:
    those that the receipt knows and that have not changed; without a receipt those of our names.
    """
    if not release:
        return {}
    if before:
        return {
            name: file
            for name, file in before.files.items()
            if name != SUMS and file.is_in(release.asset(name))
        }
    ours = _our_names(entry.slug) | {old_asset_name(entry.slug, one) for one in PLATFORMS}
    return {
        asset.name: File(asset.size, asset.digest or bytes_digest(github.read(asset)))
        for asset in _there(release)
        if asset.name in ours
    }


def _our_names(slug: str) -> set[str]:
    """What a kernel's release may have beside its sums."""
    return {name for one in PLATFORMS for name in asset_names(slug, one)}


def _without_leftovers(
    github: GitHub, release: Release, slug: str, files: Collection[str]
) -> Release:
    """A release without what runs that died, or damage, left of our files in it: what is wanted of
    it is uploaded anew.
    """
    surplus = _our_names(slug).difference(files)
    gone = [one for one in release.assets if one.name in surplus]
    for asset in gone:
        github.delete_asset(asset)
    return replace(release, assets=tuple(one for one in release.assets if one not in gone))


def _write_sums(directory: Path, files: Mapping[str, File]) -> Path:
    sums = directory / SUMS
    sums.write_text(checksums((name, file.digest) for name, file in sorted(files.items())))
    return sums


def _parts(
    built: Iterable[Built],
    pushed: Pushed,
    before: Receipt | None,
    to_sign: Collection[Platform],
) -> dict[Platform, Part]:
    """What the image is made of: what was built, and what others published before.

    Who built an image once is no other one for it having been brought back.
    """
    held = {item["digest"] for item in pushed.image.content.get("manifests", [])}
    parts = {
        platform: part
        for platform, part in (before.platforms.items() if before else ())
        if part.manifest in held
    }
    signed = {part.manifest for part in parts.values() if part.to_sign}
    new = {
        one.platform: Part(
            one.digest,
            one.kernel_release,
            one.kernel_banner,
            one.platform in to_sign or one.digest in signed,
        )
        for one in built
    }
    return {**parts, **new}


def _wrong(github: GitHub, release: Release, paths: Iterable[Path]) -> str:
    """What a release lacks or has otherwise."""
    return ", ".join(
        f"its {path.name} is {'wrong' if there else 'missing'}"
        for path in paths
        if not (there := release.asset(path.name)) or not _same(github, there, path)
    )


def _copy(
    github: GitHub, release: Release, receipt: Receipt, done: Collection[str], directory: Path
) -> Iterator[Path]:
    """Downloads the files of a release that are whole, for the one that takes its place."""
    for name, file in receipt.files.items():
        asset = release.asset(name)
        if name in done or name == SUMS or not asset or not file.is_in(asset):
            continue
        github.download(asset, directory / name, file.digest)
        yield directory / name


def _there(release: Release) -> list[Asset]:
    """The assets that are whole; a draft's under old names are on their way out."""
    return [
        asset
        for asset in release.assets
        if asset.state == "uploaded" and not (release.draft and asset.name.endswith(".tar.zst"))
    ]


def _without_old(
    github: GitHub,
    release: Release,
    slug: str,
    built: Sequence[Built],
    assets: Sequence[Path],
) -> Sequence[Path]:
    """The assets to upload: not those that a published release has under their old names, which
    a draft loses.
    """
    old = {old_asset_name(slug, one.platform): asset_name(slug, one.platform) for one in built}
    kept = set()
    for asset in release.assets:
        if asset.name in old and release.draft:
            github.delete_asset(asset)
        elif asset.name in old and asset.state == "uploaded":
            kept.add(old[asset.name])
    return [path for path in assets if path.name not in kept]


def _with_its_attestations(
    release: Release, assets: Sequence[Path], before: Receipt | None
) -> Sequence[Path]:
    """The assets to upload to a published release: its attestations stay as they are. Those that
    it lost are brought back, and a release that takes more, and whose tar is the one that they are
    about, gets those that it never had.
    """
    tars = [path.name for path in assets if path.name.endswith(".tar.xz")]
    allowed = {name for tar in tars for name in (sbom_name(tar), provenance_name(tar))}
    kept = []
    for path in assets:
        if not path.name.endswith((".spdx.json", ".intoto.jsonl")):
            kept.append(path)
            continue
        there = release.asset(path.name)
        listed = before.files.get(path.name) if before else None
        uploaded = there is not None and there.state == "uploaded"
        whole = listed.is_in(there) if listed else not before and uploaded
        if path.name in allowed and not whole and (listed or not release.immutable):
            kept.append(path)
    return kept


def _ours(github: GitHub, tag: str) -> Release | None:
    """The release to work on, of those of a kernel and a ZFS version; drafts beside it are deleted,
    which runs that died while creating one can leave.
    """
    row = [release for release in github.releases() if row_of(release.git_tag) == tag]
    chosen = release_in(row)
    for surplus in row:
        if surplus is not chosen and surplus.draft:
            github.delete_draft(surplus)
    return chosen


def _same(github: GitHub, asset: Asset, path: Path) -> bool:
    if asset.state != "uploaded" or asset.size != path.stat().st_size:
        return False
    digest = asset.digest or bytes_digest(github.read(asset))
    return digest == file_digest(path)


def _upload(github: GitHub, release: Release, path: Path) -> None:
    there = release.asset(path.name)
    if there and _same(github, there, path):
        return
    if there:
        github.delete_asset(there)
    github.upload(release, path)


def _compare(github: GitHub, release: Release, path: Path) -> None:
    there = release.asset(path.name)
    if not there or not _same(github, there, path):
        raise PublishError(
            f"{path.name} reads back differently",
            on=f"{github} release {release.git_tag}",
            detail=(
                f"uploaded {path.stat().st_size} bytes, {file_digest(path)}\n"
                + (
                    f"found    {there.size} bytes, {there.digest}, state {there.state}"
                    if there
                    else "found    nothing"
                )
            ),
            hint="run again; the asset is uploaded anew",
        )


def _notes(receipt: Receipt, image: Reference) -> str:
    """The release's text. What upstream wrote is shown as code, never as Markdown."""
    entry = receipt.entry
    reference = image.with_tag(entry.slug)
    lines = [f"ZFS {entry.zfs} for the kernel of `{entry.image}`.", ""]
    if receipt.instead_of:
        lines += [f"This release takes the place of {receipt.instead_of}.", ""]
    lines += [
        "```",
        f"docker run --rm --privileged {str(reference).removeprefix('docker.io/')}",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| Kernel image | `{entry.image}` |",
        f"| Kernel image digest | `{entry.digest}` |",
    ]
    for platform, part in sorted(receipt.platforms.items()):
        arch = architecture(platform)
        lines += [
            f"| Kernel release ({arch}) | `{_code(part.kernel_release)}` |",
            f"| Kernel banner ({arch}) | `{_code(part.kernel_banner)}` |",
            f"| Module image digest ({arch}) | `{part.manifest}` |",
        ]
    if receipt.modules:
        alone = str(image.with_tag(modules_tag(entry.slug))).removeprefix("docker.io/")
        lines.append(f"| Without `zfs` and `zpool` | `{alone}` |")
    asset = asset_name(entry.slug, min(receipt.platforms))
    lines += [
        f"| Compiled with | `{entry.builder}` |",
        "",
        "Each module was loaded, and a pool tried, on this very kernel before. Without a registry: "
        f"download `{asset}` (or the one of your architecture) and `{SUMS}`, then",
        "",
        "```",
        f"sha256sum --check --ignore-missing {SUMS}",
        f"docker load -i {asset}",
        f"docker run --rm --privileged install-zfs:{entry.slug}",
        "```",
        "",
        str(receipt),
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return printable(text).replace("`", "'").replace("|", "/")
