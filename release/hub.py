"""Docker Hub's tags API: which image tags a repository has, newest first.

Described at https://docs.docker.com/reference/api/hub/latest/ (``ListRepositoryTags``). The
answers differ from the description in ways that matter here: a repository that does not exist is
answered 200 with count 0, ``page_size`` is capped at 100 without a word, and anonymous paging is
refused with 403 past an offset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from release.errors import ConfigurationError, UpstreamError
from release.http import Http
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import normalize_platform

PAGE_SIZE = 100


@dataclass(frozen=True)
class ListedTag:
    """One image tag as a source lists it.

    ``digest`` is the index's, or the manifest's where there is no index; None where the listing
    does not tell (old tags on Docker Hub, and every registry's ``tags/list``).
    """

    image_tag: str
    digest: Digest | None = None
    platforms: Mapping[Platform, Digest] | None = None
    pushed: datetime | None = None


@dataclass(frozen=True)
class Listing:
    """What one source listed: everything, or everything newer than what is known."""

    tags: tuple[ListedTag, ...]
    total: int


class Hub:
    """A client for one Docker Hub.

    Signs in once when ``DOCKERHUB_USERNAME`` and ``DOCKERHUB_TOKEN`` are set: signed-in callers
    may page further.
    """

    def __init__(self, http: Http, url: str, environment: Mapping[str, str]) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._environment = environment
        self._headers: dict[str, str] | None = None

    def tags(self, repository: Reference, known: Callable[[ListedTag], bool]) -> Listing:
        """Lists a repository's image tags, newest first, to the first page that is all known.

        Raises:
            UpstreamError: the list is empty, shorter than it says, or stops half way.
        """
        url = f"{self._url}/v2/repositories/{repository.repository}/tags"
        found: dict[str, ListedTag] = {}
        page = 1
        while True:
            answer = self._page(url, page)
            total, results = answer["count"], answer["results"]
            if total == 0:
                raise UpstreamError(
                    "Docker Hub lists no tags at all, which is also what it says of a repository "
                    "that does not exist",
                    on=str(repository),
                    hint="check the name under sources; if it is right, run again later",
                )
            tags = [_parse(item, url) for item in results]
            before = len(found)
            found.update((tag.image_tag, tag) for tag in tags)
            if all(known(tag) for tag in tags) and tags:
                break
            if not answer["next"]:
                if len(found) < total:
                    raise _half(repository, len(found), total)
                break
            if len(results) < PAGE_SIZE or len(found) == before:
                raise _half(repository, len(found), total)
            page += 1
        return Listing(tuple(found.values()), total)

    def _page(self, url: str, page: int) -> dict[str, Any]:
        if self._headers is None:
            self._headers = self._sign_in()
        params = {"ordering": "last_updated", "page": str(page), "page_size": str(PAGE_SIZE)}
        answer = self._http.request("GET", url, params=params, headers=self._headers).json()
        try:
            return {
                "count": int(answer["count"]),
                "next": answer["next"],
                "results": list(answer["results"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UpstreamError(
                "Docker Hub's answer is not a list of tags", on=url, detail=str(answer)[:300]
            ) from error

    def _sign_in(self) -> dict[str, str]:
        username = self._environment.get("DOCKERHUB_USERNAME")
        token = self._environment.get("DOCKERHUB_TOKEN")
        if not username or not token:
            return {}
        answer = self._http.request(
            "POST",
            f"{self._url}/v2/auth/token",
            json={"identifier": username, "secret": token},
            idempotent=True,
        )
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def _half(repository: Reference, got: int, total: int) -> UpstreamError:
    return UpstreamError(
        f"Docker Hub listed {got} of {total} tags and stopped",
        on=str(repository),
        hint="nothing was taken from this list; run again later",
    )


def _parse(item: Any, url: str) -> ListedTag:
    """One element of ``results``; attestations and tags without a digest are told apart here."""
    try:
        platforms = {}
        complete = True
        for image in item.get("images") or ():
            platform = normalize_platform(image["os"], image["architecture"], image.get("variant"))
            if platform and image.get("digest"):
                platforms[platform] = parse_digest(image["digest"])
            elif platform:
                complete = False
        digest = item.get("digest")
        pushed = item.get("tag_last_pushed") or item.get("last_updated")
        return ListedTag(
            image_tag=str(item["name"]),
            digest=parse_digest(digest) if digest else None,
            platforms=(platforms or None) if complete else None,
            pushed=datetime.fromisoformat(pushed).astimezone(UTC) if pushed else None,
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
        ConfigurationError,
    ) as error:
        raise UpstreamError(
            "Docker Hub described a tag in a way that is not understood",
            on=url,
            detail=f"{str(item)[:300]}\n{error}",
        ) from error
