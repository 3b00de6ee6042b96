"""Docker Hub's tags API: which image tags a repository has, newest first.

Described at https://docs.docker.com/reference/api/hub/latest/ (``ListRepositoryTags``). The
answers differ from the description in ways that matter here: a repository that does not exist is
answered 200 with count 0, ``page_size`` is capped at 100 without a word, and anonymous paging is
refused with 403 past an offset.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from release.errors import UpstreamError
from release.http import Http, redact
from release.pace import MINUTE, Pacer
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import MALFORMED, normalize_platform

PAGES_A_MINUTE = 170
"""Of the 180 requests a minute that Docker Hub was seen to take (``x-ratelimit-limit``)."""


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
class Page:
    """One page of a repository's image tags, newest first.

    Attributes:
        total: how many tags the repository has.
        more: whether another page follows.
    """

    tags: tuple[ListedTag, ...]
    total: int
    more: bool


class PagingRefusedError(UpstreamError):
    """Docker Hub lets this caller page no further."""


class Hub:
    """A client for one Docker Hub.

    Where it refuses to page further, and ``DOCKERHUB_USERNAME`` and ``DOCKERHUB_TOKEN`` are set,
    it signs in, once, and goes on: signed-in callers may page to the end.
    """

    page_size = 100
    """The most that Docker Hub gives at once; more is taken as 100 without a word."""

    def __init__(
        self,
        http: Http,
        url: str,
        environment: Mapping[str, str],
        *,
        pacer: Pacer | None = None,
    ) -> None:
        self._http = http
        self._pacer = pacer or Pacer(PAGES_A_MINUTE, MINUTE)
        self._url = url.rstrip("/")
        self._environment = environment
        self._headers: dict[str, str] = {}
        self._lock = threading.Lock()

    def page(self, repository: Reference, number: int) -> Page:
        """A page of a repository's image tags; the first has number 1.

        Raises:
            PagingRefusedError: an anonymous caller may not page this far.
            UpstreamError: there are no tags, or the answer is not understood.
        """
        url = f"{self._url}/v2/repositories/{repository.repository}/tags"
        params: dict[str, str | int] = {
            "ordering": "last_updated",
            "page": number,
            "page_size": self.page_size,
        }
        refusal = (403,) if number > 1 else ()
        self._pacer.wait()
        answer = self._http.request(
            "GET", url, params=params, headers=self._headers, expect=(200, *refusal)
        )
        if answer.status == 403 and self._sign_in():
            answer = self._http.request(
                "GET", url, params=params, headers=self._headers, expect=(200, *refusal)
            )
        if answer.status == 403:
            raise PagingRefusedError(
                f"answered 403 for page {number}",
                on=url,
                detail=redact(answer.body[:500].decode(errors="replace")),
                hint="set DOCKERHUB_USERNAME and DOCKERHUB_TOKEN to page further",
            )
        content = answer.json()
        try:
            total, more, results = int(content["count"]), content["next"], list(content["results"])
        except MALFORMED as error:
            raise UpstreamError(
                "Docker Hub's answer is not a list of tags", on=url, detail=str(content)[:300]
            ) from error
        if total == 0:
            raise UpstreamError(
                "Docker Hub lists no tags at all, which is also what it says of a repository "
                "that does not exist",
                on=str(repository),
                hint="check the name under sources; if it is right, run again later",
            )
        return Page(tuple(_parse(item, url) for item in results), total, bool(more))

    def _sign_in(self) -> bool:
        """Whether this caller is signed in now."""
        username = self._environment.get("DOCKERHUB_USERNAME")
        token = self._environment.get("DOCKERHUB_TOKEN")
        if not username or not token:
            return False
        with self._lock:
            if not self._headers:
                answer = self._http.request(
                    "POST",
                    f"{self._url}/v2/auth/token",
                    json={"identifier": username, "secret": token},
                    idempotent=True,
                ).json()
                try:
                    self._headers = {"Authorization": f"Bearer {answer['access_token']}"}
                except (KeyError, TypeError) as error:
                    raise UpstreamError(
                        "Docker Hub's answer holds no access_token", on=f"{self._url}/v2/auth/token"
                    ) from error
        return True


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
    except MALFORMED as error:
        raise UpstreamError(
            "Docker Hub described a tag in a way that is not understood",
            on=url,
            detail=f"{str(item)[:300]}\n{error}",
        ) from error
