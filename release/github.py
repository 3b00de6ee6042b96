"""GitHub's REST API: releases and their assets, issues, attestations, and single files of a
repository.

Described at https://docs.github.com/rest/releases, https://docs.github.com/rest/issues,
https://docs.github.com/rest/repos/attestations and https://docs.github.com/rest/repos/contents.
Requests go through :mod:`release.http` for one policy of time-outs, retries and redaction.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from release.errors import ConfigurationError, PreflightError, PublishError, UpstreamError
from release.http import Http, Response
from release.pace import MINUTE, Pacer
from release.reference import Digest, parse_digest

API = "https://api.github.com"
_NEXT_LINK = re.compile(r'<[^>]+>\s*;\s*rel="next"')
_PER_PAGE = 100
_MOST_PAGES = 100
"""GitHub lists the first 10,000 releases and no more."""
CONTENT_A_MINUTE = 80
"""Requests that create content; more are refused for a while (docs.github.com, "Rate limits for the
REST API", "About secondary rate limits")."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Asset:
    """A file of a release. ``digest`` is None for assets from before GitHub recorded them;
    ``state`` is ``uploaded``, or ``starter`` after an upload that broke; ``download_url`` is for
    everybody, ``url`` is the API's.
    """

    id: int
    name: str
    state: str
    size: int
    digest: Digest | None
    url: str
    download_url: str = ""


@dataclass(frozen=True)
class Release:
    """A GitHub release. ``immutable`` ones take no further assets."""

    id: int
    git_tag: str
    name: str
    draft: bool
    prerelease: bool
    immutable: bool
    body: str
    url: str
    upload_url: str
    created: datetime | None
    assets: tuple[Asset, ...]

    def asset(self, name: str) -> Asset | None:
        return next((asset for asset in self.assets if asset.name == name), None)


@dataclass(frozen=True)
class Issue:
    """An open issue."""

    number: int
    title: str
    body: str
    url: str


class GitHub:
    """A client for one repository at one GitHub API.

    Args:
        repository: ``owner/name``.
        token: a token for it, or None to read anonymously.
        pacer: in place of one that keeps to what GitHub takes.
    """

    def __init__(
        self,
        http: Http,
        api: str,
        repository: str,
        token: str | None,
        *,
        pacer: Pacer | None = None,
    ) -> None:
        self._http = http
        self._pacer = pacer or Pacer(CONTENT_A_MINUTE, MINUTE)
        self.repository = repository
        self._api = api.rstrip("/")
        self._root = f"{self._api}/repos/{repository}"
        self._headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __str__(self) -> str:
        return f"github.com/{self.repository}"

    @property
    def requests_left(self) -> int | None:
        """How many requests GitHub says it takes for now; None before it said so."""
        return self._http.left.get(urlsplit(self._api).netloc)

    def may_write(self) -> bool:
        """Whether the token may create releases here.

        A workflow's ``GITHUB_TOKEN`` is told ``push: false`` whatever it may do; it is an
        installation's token and is believed, as other release tools do.
        """
        if "Authorization" not in self._headers:
            return False
        permissions = self._get(self._root).get("permissions")
        if isinstance(permissions, dict) and permissions.get("push"):
            return True
        installation = self._http.request(
            "HEAD",
            f"{self._api}/installation/repositories",
            headers=self._headers,
            expect=(200, 401, 403, 404),
        )
        return installation.status == 200

    def releases(self) -> list[Release]:
        """Every release, newest first; drafts too where the token may see them.

        Raises:
            UpstreamError: the list could not be read to its end.
        """
        found: list[Release] = []
        for page in range(1, _MOST_PAGES + 1):
            answer = self._http.request(
                "GET",
                f"{self._root}/releases",
                params={"per_page": _PER_PAGE, "page": page},
                headers=self._headers,
            )
            found += [_release(item, self) for item in _list(answer.json(), self)]
            if not _NEXT_LINK.search(answer.headers.get("link", "")):
                return found
        raise UpstreamError(
            f"lists releases on more than {_MOST_PAGES} pages",
            on=str(self),
            hint="nothing was taken from this list; run again later",
        )

    def release(self, git_tag: str) -> Release:
        """The published release of a git tag.

        Raises:
            NotFoundError: there is none (drafts are not found by tag).
        """
        return _release(self._get(f"{self._root}/releases/tags/{quote(git_tag)}"), self)

    def read_back(self, release: Release) -> Release:
        """``release`` as it is now, drafts included."""
        return _release(self._get(release.url), self)

    def content(self, path: str, ref: str) -> bytes:
        """A file of the repository at a git tag, branch or commit.

        Raises:
            NotFoundError: it is not there.
        """
        url = f"{self._root}/contents/{quote(path)}"
        answer = self._http.request("GET", url, params={"ref": ref}, headers=self._headers).json()
        try:
            return base64.b64decode(answer["content"])
        except _MALFORMED as error:
            raise UpstreamError(
                "GitHub's answer is not a file", on=f"{self} {ref} {path}"
            ) from error

    def is_attested(self, digest: Digest, predicate_type: str) -> bool:
        """Whether something of this digest was signed here, with a statement of this type.

        The signature itself is not looked into. For a digest without any GitHub answers 404
        (https://docs.github.com/rest/repos/attestations#list-attestations; ``gh attestation
        verify`` shows it), as it does for a repository that cannot be seen: ask only where that
        one was read before.

        Raises:
            UpstreamError: it could not be found out; of a private repository, also because the
                token lacks the permission ``attestations: read``.
        """
        url = f"{self._root}/attestations/{digest}"
        asks = {"predicate_type": predicate_type}
        answer = self._http.request(
            "GET", url, params=asks, headers=self._headers, expect=(200, 404)
        )
        if answer.status == 404:
            return False
        try:
            return bool(_list(answer.json()["attestations"], self))
        except (KeyError, TypeError) as error:
            raise UpstreamError("GitHub's answer is no list of attestations", on=url) from error

    def create_draft(self, git_tag: str, name: str, body: str) -> Release:
        """Creates a draft; no git tag appears before it is published."""
        answer = self._change(
            "POST",
            f"{self._root}/releases",
            json={"tag_name": git_tag, "name": name, "body": body, "draft": True},
            headers=self._headers,
            expect=(201,),
        )
        return _release(answer.json(), self)

    def upload(self, release: Release, file: Path) -> None:
        """Uploads an asset to the place that the release names."""
        url = release.upload_url.partition("{")[0]
        self._change(
            "POST",
            url,
            params={"name": file.name},
            data=file,
            headers={**self._headers, "Content-Type": "application/octet-stream"},
            expect=(201,),
        )

    def publish(self, release: Release) -> bool:
        """Makes a draft public; GitHub creates its git tag.

        Returns:
            False where the name of the git tag is burned: an immutable release had it.
        """
        answer = self._edit(release, {"draft": False}, expect=(200, 422))
        if answer.status == 200:
            return True
        try:
            errors = answer.json()["errors"]
            burned = any(error["field"] == "tag_name" for error in errors)
        except (KeyError, TypeError) as error:
            raise UpstreamError(
                "GitHub refuses to publish it, in a way that is not understood", on=release.url
            ) from error
        if not burned:
            raise PublishError(
                "GitHub refuses to publish it", on=release.url, detail=str(errors)[:300]
            )
        return False

    def rename(self, draft: Release, git_tag: str, body: str) -> None:
        """Gives a draft the name of another git tag."""
        assert draft.draft
        self._edit(draft, {"tag_name": git_tag, "body": body})

    def describe(self, release: Release, body: str) -> None:
        """Writes other notes to a release; immutable ones take them, too."""
        self._edit(release, {"body": body})

    def _edit(
        self, release: Release, what: Mapping[str, Any], expect: tuple[int, ...] = (200,)
    ) -> Response:
        return self._change(
            "PATCH",
            release.url,
            json=what,
            headers=self._headers,
            expect=expect,
            idempotent=True,
        )

    def delete_asset(self, asset: Asset) -> None:
        """Deletes an asset; one that is gone already is as good."""
        self._change("DELETE", asset.url, headers=self._headers, expect=(204, 404))

    def delete_draft(self, release: Release) -> None:
        """Deletes a draft, never a published release."""
        assert release.draft
        self._change("DELETE", release.url, headers=self._headers, expect=(204, 404))

    def download(self, asset: Asset, to: Path, digest: Digest) -> None:
        """Downloads an asset, checked against ``digest``."""
        headers = {**self._headers, "Accept": "application/octet-stream"}
        self._http.download(asset.url, to, expected=digest, headers=headers)

    def read(self, asset: Asset) -> bytes:
        """The content of a small asset."""
        headers = {**self._headers, "Accept": "application/octet-stream"}
        return self._http.request("GET", asset.url, headers=headers).body

    def issues(self, label: str) -> list[Issue]:
        """The open issues with a label, which only those who may write here can set.

        Raises:
            PreflightError: the repository has issues turned off, as forks have at first.
        """
        found: list[Issue] = []
        page = 1
        while True:
            answer = self._http.request(
                "GET",
                f"{self._root}/issues",
                params={"state": "open", "labels": label, "per_page": _PER_PAGE, "page": page},
                headers=self._headers,
                expect=(200, 410),
            )
            if answer.status == 410:
                raise PreflightError(
                    "has issues turned off, so failures cannot be told there",
                    on=str(self),
                    hint="turn them on in the repository's settings: General, Features, Issues",
                )
            found += [
                _issue(item, self)
                for item in _list(answer.json(), self)
                # Every pull request is an issue, too (REST API, "List repository issues").
                if not (isinstance(item, dict) and "pull_request" in item)
            ]
            if not _NEXT_LINK.search(answer.headers.get("link", "")):
                return found
            page += 1

    def create_issue(self, title: str, body: str, label: str) -> Issue:
        """Opens an issue; a label that is not there yet is made."""
        answer = self._change(
            "POST",
            f"{self._root}/issues",
            json={"title": title, "body": body, "labels": [label]},
            headers=self._headers,
            expect=(201,),
        )
        return _issue(answer.json(), self)

    def edit_issue(self, issue: Issue, *, body: str, close: bool = False) -> None:
        """Replaces an issue's text, and closes it where it is done."""
        state = {"state": "closed", "state_reason": "completed"} if close else {}
        self._change(
            "PATCH",
            issue.url,
            json={"body": body, **state},
            headers=self._headers,
            idempotent=True,
        )

    def _change(self, method: str, url: str, **options: Any) -> Response:
        """A request that creates content, or counts as if it did; not faster than GitHub takes
        them.
        """
        self._pacer.wait()
        return self._http.request(method, url, **options)

    def _get(self, url: str) -> Any:
        answer = self._http.request("GET", url, headers=self._headers).json()
        if not isinstance(answer, dict):
            raise UpstreamError("GitHub's answer is not an object", on=url)
        return answer


def _list(answer: Any, github: GitHub) -> list[Any]:
    if not isinstance(answer, list):
        raise UpstreamError(
            "GitHub's answer is not a list", on=str(github), detail=str(answer)[:300]
        )
    return answer


def _issue(item: Any, github: GitHub) -> Issue:
    try:
        number, title, body = int(item["number"]), str(item["title"]), str(item.get("body") or "")
        return Issue(number, title, body, str(item["url"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UpstreamError(
            "GitHub described an issue in a way that is not understood",
            on=str(github),
            detail=str(item)[:300],
        ) from error


def _release(item: Mapping[str, Any], github: GitHub) -> Release:
    try:
        created = item.get("created_at")
        return Release(
            id=int(item["id"]),
            git_tag=str(item["tag_name"]),
            name=str(item.get("name") or ""),
            draft=bool(item["draft"]),
            prerelease=bool(item["prerelease"]),
            immutable=bool(item.get("immutable", False)),
            body=str(item.get("body") or ""),
            url=str(item["url"]),
            upload_url=str(item["upload_url"]),
            created=datetime.fromisoformat(created) if created else None,
            assets=tuple(
                Asset(
                    id=int(asset["id"]),
                    name=str(asset["name"]),
                    state=str(asset["state"]),
                    size=int(asset["size"]),
                    digest=parse_digest(asset["digest"]) if asset.get("digest") else None,
                    url=str(asset["url"]),
                    download_url=str(asset.get("browser_download_url") or ""),
                )
                for asset in item["assets"]
            ),
        )
    except (*_MALFORMED, ConfigurationError) as error:
        raise UpstreamError(
            "GitHub described a release in a way that is not understood",
            on=str(github),
            detail=f"{str(item)[:300]}\n{error}",
        ) from error
