"""Polling: what is new upstream, how little is asked for it, and what is not believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from release.http import Http
from release.poll import Polled, poll
from release.reference import Digest, Platform, Reference
from release.registry import Registry
from release.versions import Entry, Versions, append, load, revise
from tests.lab.hub import Hub, Image, Repository
from tests.lab.server import Response, Truncate, html_page, retry_after
from tests.lab.small_registry import SmallRegistry

DAY = datetime(2024, 5, 1, tzinfo=UTC)
AMD64 = Platform("linux/amd64")
LISTED = "linuxkit/kernel"
MIRRORED = "mirror/kernel"


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


@dataclass
class Upstream:
    """A repository listed by Docker Hub, one listed by its registry, and ``versions.yaml``."""

    path: Path
    hub: Hub
    registry: SmallRegistry

    @property
    def listed(self) -> Repository:
        return self.hub.repository(*LISTED.split("/"))

    def push(self, tag: str, number: int, *, days: int | None = None) -> None:
        """Pushes a kernel with two digests made of ``number``, by default on that day."""
        images = [("linux", "amd64", None, digest(number + 10_000), 1)]
        when = DAY + timedelta(days=number if days is None else days)
        self.listed.push(tag, digest(number), images, when)

    def mirror(self, tag: str) -> Digest:
        return Digest(self.registry.put(MIRRORED, tag, {"tag": tag}))

    def reference(self, tag: str, repository: str = LISTED) -> Reference:
        return Reference.parse(f"{self.registry.host}/{repository}:{tag}")

    def write(self, *sources: str, kernels: str = "") -> None:
        lines = {
            LISTED: f"- repository: {self.registry.host}/{LISTED}\n  hub: {self.hub.url}\n",
            MIRRORED: f"- repository: {self.registry.host}/{MIRRORED}\n",
        }
        chosen = "".join(lines[source] for source in sources)
        self.path.write_text(f"image: me/zfs\nsources:\n{chosen}kernels:\n{kernels}")

    @property
    def versions(self) -> Versions:
        return load(self.path)

    def poll(self, environment: Mapping[str, str] | None = None) -> Polled:
        http = Http()
        return poll(self.versions, http, Registry(http, {}), environment or {})

    def record(self) -> Polled:
        """Polls and writes down what there is."""
        polled = self.poll()
        assert polled.failures == ()
        versions = self.versions
        for was, now in polled.changes.revised:
            versions = revise(versions, was, now)
        append(versions, polled.new)
        return polled


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Hub(accounts={"me": "secret"}) as hub, SmallRegistry() as registry:
        upstream = Upstream(tmp_path / "versions.yaml", hub, registry)
        upstream.write(LISTED)
        yield upstream
        assert hub.violations == registry.violations == []


def tags(entries: tuple[Entry, ...]) -> list[str | None]:
    return [entry.image.tag for entry in entries]


# What is new


def test_the_first_poll_reads_all_pages_and_appends_in_the_order_of_pushes(
    upstream: Upstream,
) -> None:
    for number in range(250):
        upstream.push(f"5.4.{number}", number, days=number * 7 % 250)
    polled = upstream.record()
    assert upstream.hub.count() == 3
    assert tags(polled.new) == [f"5.4.{n}" for n in sorted(range(250), key=lambda n: n * 7 % 250)]
    assert polled.new[0] == Entry(upstream.reference("5.4.0"), digest(0), {AMD64: digest(10_000)})
    assert upstream.versions.kernels == polled.new


def test_a_poll_stops_at_the_first_page_that_is_known(upstream: Upstream) -> None:
    for number in range(250):
        upstream.push(f"5.4.{number}", number)
    upstream.record()
    upstream.hub.requests.clear()
    content = upstream.path.read_bytes()
    assert upstream.record().new == ()
    assert upstream.hub.count() == 1
    assert upstream.path.read_bytes() == content
    upstream.push("5.10.1", 1000)
    assert tags(upstream.record().new) == ["5.10.1"]
    assert upstream.hub.count() == 1 + 2
    assert upstream.path.read_bytes().startswith(content)


def test_what_is_no_kernel_of_its_own_does_not_keep_a_poll_going(upstream: Upstream) -> None:
    for number in range(150):
        upstream.push(f"5.4.{number}", number)
    upstream.record()
    for number in range(120, 150):
        upstream.push(f"5.4.{number}-amd64", 5000 + number)
        upstream.push(f"5.4.{number}-dbg", 6000 + number)
        upstream.push(f"5.4.{number}-{'a' * 40}", number, days=7000)
        upstream.push(f"5.4.{number}-builder", 8000 + number)
    upstream.hub.requests.clear()
    polled = upstream.record()
    assert polled.new == ()
    assert len(polled.changes.revised) == 30, "second tags of known kernels"
    assert len(polled.left_out) == 70
    assert upstream.hub.count() == 1


def test_tags_that_are_left_out_have_a_reason(upstream: Upstream) -> None:
    upstream.push("5.4.39", 1)
    upstream.push("5.4.39-amd64", 2)
    upstream.push(f"5.4.38-{'a' * 40}-amd64", 3)
    upstream.push("5.4.39-builder", 4)
    upstream.push("a page's <b>\n| tag", 5)
    upstream.push("desktop-3.3.1", 6)
    polled = upstream.poll()
    assert tags(polled.new) == ["5.4.39", f"5.4.38-{'a' * 40}-amd64"]
    assert {tag.image_tag: tag.reason for tag in polled.left_out} == {
        "5.4.39-amd64": "is one architecture of 5.4.39",
        "5.4.39-builder": "is the compiler's image, not a kernel",
        "a page's <b>\n| tag": "is not a kernel version",
        "desktop-3.3.1": "names a Docker Desktop version, not a kernel version, and its digest is "
        "no known kernel's",
    }


# Other names of a kernel


def test_a_second_tag_on_a_known_digest_is_an_alias(upstream: Upstream) -> None:
    upstream.push("5.4.39", 1)
    upstream.record()
    before = upstream.path.read_text()
    upstream.push(f"5.4.39-{'b' * 40}", 1, days=2)
    upstream.push("desktop-3.3.1", 1, days=3)
    images = [("linux", "amd64", None, digest(10_001), 1)]
    upstream.listed.push("5.4.39-amd64", digest(10_001), images, DAY)
    polled = upstream.record()
    assert polled.new == ()
    (entry,) = upstream.versions.kernels
    assert {alias.tag for alias in entry.aliases} == {
        f"5.4.39-{'b' * 40}",
        "5.4.39-amd64",
        "desktop-3.3.1",
    }
    assert upstream.path.read_text().startswith(before)
    assert len(polled.changes.notes) == 3
    assert upstream.record().changes.revised == ()
    assert "linuxkit-kernel-desktop-3.3.1" in entry.image_tags


def test_two_tags_of_one_kernel_that_somebody_wrote_down_stay_as_they_are(
    upstream: Upstream,
) -> None:
    name = f"5.4.39-{'b' * 40}"
    lines = "".join(f"- image: {upstream.reference(tag)}\n" for tag in (name, f"{name}-amd64"))
    upstream.write(LISTED, kernels=lines)
    upstream.push(name, 1)
    images: list[Image] = [("linux", "amd64", None, digest(10_001), 1)]
    upstream.listed.push(f"{name}-amd64", digest(10_001), images, DAY)
    upstream.record()
    assert [entry.digest for entry in upstream.versions.kernels] == [digest(1), digest(10_001)]
    again = upstream.record()
    assert again.changes.revised == ()
    assert again.changes.notes == ()


def test_an_alias_that_moves_on_takes_its_name_along(upstream: Upstream) -> None:
    upstream.push("5.4.39", 1)
    upstream.push("5.4.40", 2)
    upstream.push("desktop-3.3.1", 1, days=3)
    upstream.record()
    upstream.push("desktop-3.3.1", 2, days=4)
    upstream.record()
    one, two = upstream.versions.kernels
    assert [alias.tag for alias in two.aliases] == ["desktop-3.3.1"]
    assert one.aliases == ()


def test_images_of_single_architectures_join_into_one_kernel(upstream: Upstream) -> None:
    name = f"4.19.76-{'c' * 40}"
    for number, architecture in enumerate(("amd64", "arm64")):
        images = [("linux", architecture, None, digest(number + 1), 1)]
        upstream.listed.push(f"{name}-{architecture}", digest(number + 1), images, DAY)
        upstream.record()
    (entry,) = upstream.versions.kernels
    assert entry.platforms == {AMD64: digest(1), Platform("linux/arm64"): digest(2)}
    assert [image.tag for image in entry.references] == [f"{name}-amd64", f"{name}-arm64"]


def test_an_index_that_was_published_by_halves_is_one_kernel(upstream: Upstream) -> None:
    images: list[Image] = [("linux", "amd64", None, digest(10_001), 1)]
    upstream.listed.push("5.4.39", digest(1), images, DAY)
    upstream.record()
    images.append(("linux", "arm64", "v8", digest(10_002), 1))
    upstream.listed.push("5.4.39", digest(2), images, DAY + timedelta(days=1))
    polled = upstream.record()
    assert polled.new == ()
    (entry,) = upstream.versions.kernels
    assert entry.digest == digest(2)
    assert set(entry.platforms) == {AMD64, Platform("linux/arm64")}


def test_a_moved_tag_is_a_new_kernel_and_the_old_one_stays(upstream: Upstream) -> None:
    upstream.push("5.4.39", 1)
    upstream.record()
    upstream.push("5.4.39", 1, days=50)
    assert upstream.record().new == ()
    upstream.push("5.4.39", 2)
    (moved,) = upstream.record().new
    assert [entry.digest for entry in upstream.versions.kernels] == [digest(1), digest(2)]
    assert moved == upstream.versions.kernels[1]
    assert moved.slug == f"linuxkit-kernel-5.4.39-{digest(2)[7:19]}"
    upstream.push("5.4.39", 1, days=60)
    assert upstream.record().new == ()


def test_an_entry_without_digest_gets_the_one_that_is_listed(upstream: Upstream) -> None:
    image = upstream.reference("5.4.39")
    upstream.write(LISTED, kernels=f"- image: {image}\n")
    upstream.push("5.4.39", 1)
    polled = upstream.poll()
    assert polled.new == ()
    ((was, found),) = polled.changes.revised
    (filled,) = revise(upstream.versions, was, found).kernels
    assert filled == Entry(image, digest(1), {AMD64: digest(10_001)})


def test_a_tag_that_is_listed_without_digest_is_looked_up_without_a_pull(
    upstream: Upstream,
) -> None:
    upstream.listed.push("5.4.39", None)
    found = upstream.registry.put(LISTED, "5.4.39", {})
    assert [entry.digest for entry in upstream.poll().new] == [found]
    assert upstream.registry.count() == upstream.registry.count("^HEAD") == 1


# A repository that its registry lists


def test_a_registry_s_own_list(upstream: Upstream) -> None:
    upstream.write(MIRRORED)
    upstream.registry.page = 3
    digests = {tag: upstream.mirror(tag) for tag in ("5.10.1", "5.4.9", "5.4.10", "latest", "6.1")}
    polled = upstream.record()
    assert {entry.image.tag: entry.digest for entry in polled.new} == {
        tag: digest for tag, digest in digests.items() if tag != "latest"
    }
    assert tags(polled.new) == ["5.4.9", "5.4.10", "5.10.1", "6.1"]
    upstream.registry.requests.clear()
    assert upstream.record().new == ()
    assert upstream.registry.count() == upstream.registry.count("tags/list") == 2


def test_a_registry_s_list_that_shrank_changes_nothing(upstream: Upstream) -> None:
    upstream.write(MIRRORED)
    upstream.mirror("5.4.38")
    upstream.mirror("5.4.39")
    upstream.record()
    del upstream.registry.manifests[MIRRORED]["5.4.38"]
    upstream.mirror("5.4.40")
    polled = upstream.poll()
    assert polled.new == ()
    (error,) = polled.failures
    assert "no longer lists what is recorded" in str(error)
    assert "5.4.38" in error.detail
    upstream.registry.manifests.clear()
    (error,) = upstream.poll().failures
    assert "lists no tags at all" in error.what


# What is not believed


def page(**changes: object) -> Response:
    """The first page as Docker Hub has it, with some of it changed."""
    tag: dict[str, object] = {
        "name": "5.4.39",
        "digest": digest(1),
        "images": [],
        "last_updated": None,
    }
    body = {"count": 1, "next": None, "previous": None, "results": [tag], **changes}
    return Response(200, {"Content-Type": "application/json"}, json.dumps(body).encode())


def more(upstream: Upstream) -> str:
    return f"{upstream.hub.url}/v2/repositories/{LISTED}/tags?page=2"


FAULTS: dict[str, tuple[Callable[[Upstream], Response], str]] = {
    "forbidden": (lambda _: Response(403, {}, b"no"), "answered 403"),
    "wait, in seconds": (lambda _: retry_after(3600), "asks to wait 3600 seconds"),
    "wait, as a date": (
        lambda _: retry_after(datetime.now(UTC) + timedelta(hours=1)),
        "asks to wait",
    ),
    "a page of HTML": (lambda _: html_page(), "Be right back"),
    "no repository": (lambda _: Response(404), "not there"),
    "no tags": (lambda _: page(count=0, results=[]), "no tags at all"),
    "half a list": (lambda _: page(count=2), "listed 1 of 2 tags"),
    "an empty list": (lambda _: page(count=2, results=[]), "listed 0 of 2 tags"),
    "a short page": (lambda up: page(count=150, next=more(up)), "listed 1 of 150 tags"),
    "a count that shrank": (lambda _: page(), "lists 1 tags, but 3 are recorded"),
    "no count": (lambda _: page(count=None), "not a list of tags"),
    "no list": (lambda _: page(results=7), "not a list of tags"),
    "not an object": (lambda _: Response(200, {}, b"[]"), "not a list of tags"),
    **{
        f"a tag {number}": (
            lambda _, tag=tag: page(count=1, results=[tag]),  # type: ignore[misc]
            "described a tag",
        )
        for number, tag in enumerate(
            (
                7,
                {},
                {"name": "1.2.3", "digest": "sha256:x"},
                {"name": "1.2.3", "images": [{"os": "linux"}]},
                {"name": "1.2.3", "last_updated": "yesterday"},
                {"name": "1.2.3", "last_updated": "0001-01-01T00:00:00+23:00"},
            )
        )
    },
}


@pytest.mark.parametrize(("fault", "says"), FAULTS.values(), ids=FAULTS)
def test_a_source_that_is_not_read_completely_fails_alone(
    upstream: Upstream, fault: Callable[[Upstream], Response], says: str
) -> None:
    upstream.write(LISTED, MIRRORED)
    for number in (36, 37, 38):
        upstream.push(f"5.4.{number}", number)
    upstream.mirror("5.10.1")
    upstream.record()
    upstream.mirror("5.10.2")
    upstream.hub.fail("/tags", fault(upstream), times=None)
    polled = upstream.poll()
    assert tags(polled.new) == ["5.10.2"]
    (error,) = polled.failures
    assert error.exit_code == 3
    assert says in str(error)


def many(upstream: Upstream, count: int) -> None:
    """Kernels that both Docker Hub and the registry list."""
    for number in range(count):
        found = upstream.registry.put(LISTED, f"5.4.{number}", {"number": number})
        when = DAY + timedelta(hours=number)
        upstream.listed.push(f"5.4.{number}", found, [("linux", "amd64", None, found, 1)], when)


def test_behind_the_offset_the_registry_s_own_list_goes_on(upstream: Upstream) -> None:
    upstream.hub.anonymous_offset = 500
    many(upstream, 602)
    polled = upstream.record()
    assert len(polled.new) == 602
    assert upstream.hub.count() == 6
    assert upstream.registry.count("tags/list") == 1
    assert upstream.registry.count("^HEAD") == upstream.registry.count() - 1 == 102
    assert len({entry.digest for entry in upstream.versions.kernels}) == 602
    for server in (upstream.hub, upstream.registry):
        server.requests.clear()
    assert upstream.record().new == ()
    assert upstream.hub.count() == upstream.registry.count() == 1


def test_signed_in_it_pages_to_the_end(upstream: Upstream) -> None:
    upstream.hub.anonymous_offset = 100
    many(upstream, 250)
    login = {"DOCKERHUB_USERNAME": "me", "DOCKERHUB_TOKEN": "secret"}
    assert len(upstream.poll(login).new) == 250
    assert upstream.hub.count() == 3 + 2, "one refusal, one sign-in"
    assert upstream.registry.count() == 0
    (error,) = upstream.poll({**login, "DOCKERHUB_TOKEN": "wrong"}).failures
    assert "answered 401" in error.what


def test_paging_that_is_refused_where_nobody_knows_the_rest_takes_nothing(
    upstream: Upstream,
) -> None:
    upstream.hub.anonymous_offset = 100
    for number in range(150):
        upstream.push(f"5.4.{number}", number)
    upstream.registry.put(LISTED, "5.4.0", {})
    polled = upstream.poll()
    assert polled.new == ()
    (error,) = polled.failures
    assert "answered 403" in error.what
    assert "sign in to page further" in error.detail
    assert "DOCKERHUB_TOKEN" in error.hint


def test_a_tag_that_vanishes_from_a_long_list_is_named_and_comes_back(upstream: Upstream) -> None:
    many(upstream, 250)
    upstream.record()
    content = upstream.path.read_bytes()
    held = upstream.listed.tags.pop("5.4.7"), upstream.registry.manifests[LISTED].pop("5.4.7")
    (error,) = upstream.poll().failures
    assert error.exit_code == 3
    assert "5.4.7" in error.detail
    assert "deleted: true" in error.hint
    assert upstream.path.read_bytes() == content
    upstream.path.write_text(content.decode().replace("5.4.7\n", "5.4.7\n    deleted: true\n", 1))
    assert upstream.poll().failures == ()
    upstream.path.write_bytes(content)
    upstream.listed.tags["5.4.7"], upstream.registry.manifests[LISTED]["5.4.7"] = held
    assert upstream.record().new == ()


def test_what_an_earlier_poll_missed_is_found_behind_known_pages(upstream: Upstream) -> None:
    many(upstream, 250)
    held = upstream.listed.tags.pop("5.4.7"), upstream.registry.manifests[LISTED].pop("5.4.7")
    upstream.record()
    upstream.listed.tags["5.4.7"], upstream.registry.manifests[LISTED]["5.4.7"] = held
    upstream.hub.requests.clear()
    assert tags(upstream.record().new) == ["5.4.7"]
    assert upstream.hub.count() == 1


def test_the_budget_of_requests_is_kept_and_the_next_run_goes_on(upstream: Upstream) -> None:
    upstream.hub.anonymous_offset = 100
    many(upstream, 140)
    budget = upstream.path.read_text().replace("sources:", "request_budget: 23\nsources:")
    upstream.path.write_text(budget)
    polled = upstream.poll()
    assert upstream.hub.count() + upstream.registry.count() <= 23 + 8, "looks under way are ended"
    (error,) = polled.failures
    assert "the budget of 23 requests is used up" in str(error)
    assert error.exit_code == 3
    for _ in range(10):
        append(upstream.versions, polled.new)
        if not polled.failures:
            break
        polled = upstream.poll()
    assert len(upstream.versions.kernels) == 140


def test_one_tag_that_cannot_be_looked_at_keeps_no_other_back(upstream: Upstream) -> None:
    upstream.write(MIRRORED)
    for tag in ("5.4.1", "5.4.2", "5.4.3"):
        upstream.mirror(tag)
    upstream.registry.fail("manifests/5.4.2", Response(404), times=None)
    polled = upstream.poll()
    assert tags(polled.new) == ["5.4.1", "5.4.3"]
    (error,) = polled.failures
    assert "its registry does not have it" in str(error)


def test_the_same_page_again_and_again_is_not_paged_through_for_ever(upstream: Upstream) -> None:
    for number in range(250):
        upstream.push(f"5.4.{number}", number)
    results = [
        {"name": f"5.4.{number}", "digest": digest(number), "images": []} for number in range(100)
    ]
    answer = page(count=250, next=more(upstream), results=results)
    upstream.hub.fail("/tags", answer, times=None)
    (error,) = upstream.poll().failures
    assert "listed 100 of 250 tags" in error.what


def test_faults_that_pass_are_waited_out(upstream: Upstream) -> None:
    for number in range(150):
        upstream.push(f"5.4.{number}", number)
    upstream.hub.fail("page=1&", retry_after(0))
    upstream.hub.fail("page=1&", Response(502))
    upstream.hub.fail("page=2&", Truncate(1000))
    assert len(upstream.record().new) == 150
    assert upstream.hub.count() == 2 + 3
