"""GitHub's REST API for releases, git tags, file contents, issues and attestations:
https://docs.github.com/rest

Odd parts, from the API's description and from answers that projects reported:

- get-by-tag and ``latest`` hide drafts; lists show them to tokens with push access only; several
  drafts may have one tag; a draft's pages and downloads are under ``untagged-…``;
- the git tag is made when a release is published, and outlives the release;
- a broken upload leaves an asset in state ``starter``, without digest, whose name stays taken;
- asset names are changed where they hold special characters;
- downloads are redirected to another host, which refuses a foreign ``Authorization``;
- with an app's installation token (``GITHUB_TOKEN`` in Actions) ``permissions.push`` is false;
- every pull request is an issue, too; a repository without issues answers 410;
- a digest that nothing attests is a 404, and so is one of which nothing has the predicate type;
- immutable releases accept no change of tag or assets, and burn the name of the tag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from tests.lab.server import EffectCounter, Request, Response
from tests.lab.standin import Call, RateLimit, Refusal, StandIn, json_response, route, violation

API_VERSIONS = ("2022-11-28", "2026-03-10")
API_PATHS = ("/repos/", "/uploads/", "/installation/")
DOCUMENTATION = "https://docs.github.com/rest"
JSON_TYPES = frozenset({"*/*", "application/json", "application/vnd.github+json"})
RAW_TYPES = frozenset({"application/vnd.github.raw", "application/vnd.github.raw+json"})
BYTES = "application/octet-stream"
REPO = "/repos/{owner}/{name}"
# git check-ref-format(1)
GIT_TAG = re.compile(
    r"(?!.*(?:\.\.|//|@\{|/\.|\.lock$|[/.]$))[^/.\s~^:?*\[\\\x00-\x1f][^\s~^:?*\[\\\x00-\x1f]*"
)
SUBJECT_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_TEXT = (str, type(None))
_RELEASE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "tag_name": str,
    "target_commitish": str,
    "name": _TEXT,
    "body": _TEXT,
    "draft": bool,
    "prerelease": bool,
    "make_latest": str,
}
_Item = TypeVar("_Item")
_ids = count(1000)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Asset:
    """A file of a release; without content it is what a broken upload leaves behind."""

    name: str
    content: bytes | Path | None
    content_type: str = BYTES
    label: str | None = None
    id: int = field(default_factory=lambda: next(_ids))
    created_at: str = field(default_factory=_now)
    downloads: int = 0
    size: int = field(init=False, default=0)
    digest: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.content, bytes):
            self.size = len(self.content)
            self.digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"
        elif self.content:
            self.size = self.content.stat().st_size
            with self.content.open("rb") as file:
                self.digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    @property
    def state(self) -> str:
        """``uploaded``, or ``starter`` after a broken upload."""
        return "starter" if self.content is None else "uploaded"


@dataclass
class Release:
    """A release, a draft until ``published_at`` is set."""

    tag_name: str
    target_commitish: str
    name: str | None = None
    body: str | None = None
    draft: bool = True
    prerelease: bool = False
    make_latest: str = "true"
    immutable: bool = False
    published_at: str | None = None
    created_at: str = field(default_factory=_now)
    id: int = field(default_factory=lambda: next(_ids))
    assets: list[Asset] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The part of web addresses that names the release."""
        return f"untagged-{self.id:020x}" if self.draft else self.tag_name

    def asset(self, name: str) -> Asset | None:
        """The asset with this name."""
        return next((asset for asset in self.assets if asset.name == name), None)

    def put_asset(self, name: str, content: bytes | Path | None) -> None:
        """Set or replace an asset behind the API's back; None makes it a ``starter``."""
        self.assets = [asset for asset in self.assets if asset.name != name]
        self.assets.append(Asset(name, content))


@dataclass
class Issue:
    """An issue, or a pull request, which is one."""

    number: int
    title: str
    body: str
    labels: list[str]
    state: str = "open"
    state_reason: str | None = None
    pull_request: bool = False


@dataclass(frozen=True)
class Attestation:
    """A signed statement.

    Attributes:
        bundle: Sigstore's, as it was stored.
        subjects: names and digests; several may have one name.
    """

    bundle: Mapping[str, Any]
    predicate_type: str
    subjects: frozenset[tuple[str, str]]
    id: int = field(default_factory=lambda: next(_ids))


@dataclass
class Repository:
    """A repository.

    Attributes:
        git_tags: commit by name of the tag.
        contents: files by git reference and path.
        burned: tags that immutable releases used.
    """

    owner: str
    name: str
    private: bool = False
    immutable_releases: bool = False
    default_branch: str = "main"
    id: int = field(default_factory=lambda: next(_ids))
    releases: list[Release] = field(default_factory=list)
    git_tags: dict[str, str] = field(default_factory=dict)
    contents: dict[tuple[str, str], bytes] = field(default_factory=dict)
    burned: set[str] = field(default_factory=set)
    has_issues: bool = True
    issues: list[Issue] = field(default_factory=list)
    attestations: list[Attestation] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        """``owner/name``"""
        return f"{self.owner}/{self.name}"

    def add_release(
        self,
        tag: str,
        assets: Mapping[str, bytes | Path] | None = None,
        *,
        prerelease: bool = False,
        draft: bool = False,
        body: str | None = None,
    ) -> Release:
        """Add a release behind the API's back; later ones are newer."""
        release = Release(tag, self.default_branch, tag, body, prerelease=prerelease)
        release.assets = [Asset(name, content) for name, content in (assets or {}).items()]
        self.releases.append(release)
        if not draft:
            self.publish(release)
        return release

    def publish(self, release: Release) -> None:
        """End a draft: the git tag is made and, where so set, the release becomes immutable."""
        release.draft = False
        release.published_at = release.published_at or _now()
        commit = hashlib.sha1(f"{self.full_name}@{release.target_commitish}".encode()).hexdigest()
        self.git_tags.setdefault(release.tag_name, commit)
        if self.immutable_releases:
            release.immutable = True
            self.burned.add(release.tag_name)

    def published(self, tag: str) -> Release | None:
        """The published release with this tag."""
        return next((r for r in self.releases if not r.draft and r.tag_name == tag), None)


@dataclass(frozen=True)
class Token:
    """An access token: full names of repositories that it may write to, or only see; and what it
    may do with attestations.
    """

    push: frozenset[str]
    pull: frozenset[str]
    installation: bool
    attestations: str


class GitHub(StandIn):
    """The stand-in for https://api.github.com, uploads.github.com and the downloads of github.com.

    Args:
        rate_limit: requests per hour with a token; without one it is 60.
    """

    def __init__(
        self,
        *,
        rate_limit: int = 5000,
        port: int = 0,
        effects: EffectCounter | None = None,
    ) -> None:
        super().__init__(port=port, effects=effects)
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, Token] = {}
        self.rate_limits: dict[str, RateLimit] = {"": RateLimit(60, window=3600)}
        self._rate_limit = rate_limit
        # Another host than the API's, so that clients drop the token on the way as they should.
        self._storage_key = secrets.token_hex(8)
        self._storage = f"http://localhost:{self.port}/storage/{self._storage_key}"

    def add(self, repository: Repository) -> Repository:
        """Add a repository."""
        self.repositories[repository.full_name.lower()] = repository
        return repository

    def add_token(
        self,
        value: str,
        *,
        push: Iterable[str] = (),
        pull: Iterable[str] = (),
        installation: bool = False,
        attestations: str = "write",
    ) -> None:
        """Make a token valid; every token sees public repositories.

        Args:
            installation: it is an app's, as ``GITHUB_TOKEN`` in Actions is.
            attestations: ``write``, ``read`` or ``none``.
        """
        self.tokens[value] = Token(frozenset(push), frozenset(pull), installation, attestations)
        self.rate_limits[value] = RateLimit(self._rate_limit, window=3600)

    # -- what goes with every request ------------------------------------------------------------

    def admit(self, call: Call) -> None:
        if not call.path.startswith(API_PATHS):
            return
        accepted = {
            part.split(";")[0].strip() for part in call.headers.get("Accept", "*/*").split(",")
        }
        if not accepted & (JSON_TYPES | RAW_TYPES | {BYTES}):
            raise violation(415, "Unsupported 'Accept' header")
        if "User-Agent" not in call.headers:
            raise violation(403, "Request forbidden by administrative rules: no User-Agent header")
        version = call.headers.get("X-GitHub-Api-Version", API_VERSIONS[0])
        if version not in API_VERSIONS:
            raise violation(400, f"X-GitHub-Api-Version {version} is not supported")
        token = _token(call)
        if token and token not in self.tokens:
            raise Refusal(401, "Bad credentials")
        if not self.rate_limits[token].take():
            raise Refusal(403, "API rate limit exceeded for 127.0.0.1")

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        if not request.path.startswith(API_PATHS):
            return response
        version = request.headers.get("X-GitHub-Api-Version", API_VERSIONS[0])
        limit = self.rate_limits.get(_token(request), self.rate_limits[""])
        headers = {
            **response.headers,
            **limit.headers,
            "X-RateLimit-Used": str(limit.used),
            "X-RateLimit-Resource": "core",
            "X-GitHub-Api-Version-Selected": version,
        }
        return replace(response, headers=headers)

    def error(self, refusal: Refusal) -> Response:
        body = {"message": refusal.message, **refusal.fields, "documentation_url": DOCUMENTATION}
        return json_response(refusal.status, body | {"status": str(refusal.status)})

    def broken_off(self, request: Request, status: int) -> None:
        """An upload that ends in a dropped connection or a 5xx leaves a ``starter`` asset."""
        match = re.fullmatch(r"/uploads/repos/([^/]+/[^/]+)/releases/(\d+)/assets", request.path)
        if request.method != "POST" or not match or 0 < status < 500:
            return
        with self.lock:
            repository = self.repositories.get(match[1].lower())
            token = self.tokens.get(_token(request))
            if not repository or not token or repository.full_name not in token.push:
                return
            name = _renamed(dict(parse_qsl(request.query)).get("name", ""))
            for release in repository.releases:
                free = not release.immutable and not release.asset(name)
                if release.id == int(match[2]) and free:
                    release.put_asset(name, None)

    def _repository(self, call: Call, owner: str, name: str, *, push: bool = False) -> Repository:
        repository = self.repositories.get(f"{owner}/{name}".lower())
        token = self.tokens.get(_token(call))
        seen = token.push | token.pull if token else frozenset[str]()
        if not repository or (repository.private and repository.full_name not in seen):
            raise Refusal(404, "Not Found")
        if push and not token:
            raise Refusal(401, "Requires authentication")
        if push and token and repository.full_name not in token.push:
            raise _not_accessible(token)
        return repository

    def _shown(self, call: Call, repository: Repository) -> list[Release]:
        """The releases that the caller may see."""
        token = self.tokens.get(_token(call))
        push = token is not None and repository.full_name in token.push
        return [release for release in repository.releases if push or not release.draft]

    def _release(self, call: Call, repository: Repository, number: str) -> Release:
        for release in self._shown(call, repository):
            if release.id == int(number):
                return release
        raise Refusal(404, "Not Found")

    def _asset(self, call: Call, repository: Repository, number: str) -> tuple[Release, Asset]:
        for release in self._shown(call, repository):
            for asset in release.assets:
                if asset.id == int(number):
                    return release, asset
        raise Refusal(404, "Not Found")

    def _page(
        self, call: Call, items: Sequence[_Item], body: Callable[[_Item], dict[str, Any]]
    ) -> Response:
        size, page = call.number("per_page", 30, maximum=100), call.number("page", 1)
        last = max(1, -(-len(items) // size))
        numbers = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        if page == 1:
            del numbers["prev"], numbers["first"]
        if page >= last:
            del numbers["next"], numbers["last"]
        links = [
            f'<{self.url}{call.path}?{urlencode({**call.query, "page": number})}>; rel="{rel}"'
            for rel, number in numbers.items()
        ]
        header = {"Link": ", ".join(links)} if links else {}
        bodies = [body(item) for item in items[(page - 1) * size : page * size]]
        return json_response(200, bodies, **header)

    # -- repositories ----------------------------------------------------------------------------

    @route("GET", REPO)
    def get_repository(self, call: Call, owner: str, name: str) -> Response:
        return json_response(200, self._repository_body(call, self._repository(call, owner, name)))

    @route("GET", "/installation/repositories", query=("per_page", "page"))
    def list_installation_repositories(self, call: Call) -> Response:
        token = self.tokens.get(_token(call))
        if not token or not token.installation:
            raise Refusal(403, "You must authenticate with an installation access token")
        found = [r for r in self.repositories.values() if r.full_name in token.push | token.pull]
        bodies = [self._repository_body(call, repository) for repository in found]
        return json_response(200, {"total_count": len(bodies), "repositories": bodies})

    @route("GET", REPO + "/contents/{path:path}", query=("ref",))
    def get_content(self, call: Call, owner: str, name: str, path: str) -> Response:
        repository = self._repository(call, owner, name)
        ref = call.query.get("ref", repository.default_branch)
        content = repository.contents.get((ref, path))
        if content is None:
            if not any(known == ref for known, _ in repository.contents):
                raise Refusal(404, f"No commit found for the ref {ref}")
            raise Refusal(404, "Not Found")
        if any(kind in call.headers.get("Accept", "") for kind in RAW_TYPES):
            return Response(200, {"Content-Type": "application/vnd.github.raw+json"}, content)
        blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
        body = {
            "type": "file",
            "encoding": "base64",
            "size": len(content),
            "name": path.rpartition("/")[2],
            "path": path,
            "content": base64.encodebytes(content).decode(),
            "sha": blob,
            "url": f"{self.url}{call.path}?{urlencode({'ref': ref})}",
            "git_url": f"{self._api(repository)}/git/blobs/{blob}",
            "html_url": f"{self._web(repository)}/blob/{quote(ref)}/{quote(path)}",
            "download_url": f"{self._web(repository)}/raw/{quote(ref)}/{quote(path)}",
        }
        return json_response(200, body)

    @route("GET", REPO + "/git/ref/tags/{tag:path}")
    def get_ref(self, call: Call, owner: str, name: str, tag: str) -> Response:
        repository = self._repository(call, owner, name)
        if tag not in repository.git_tags:
            raise Refusal(404, "Not Found")
        return json_response(200, self._ref_body(repository, tag))

    @route("GET", REPO + "/git/matching-refs/tags/{prefix:rest}")
    def list_matching_refs(self, call: Call, owner: str, name: str, prefix: str) -> Response:
        repository = self._repository(call, owner, name)
        tags = [tag for tag in sorted(repository.git_tags) if tag.startswith(prefix)]
        return json_response(200, [self._ref_body(repository, tag) for tag in tags])

    # -- releases --------------------------------------------------------------------------------

    @route("GET", REPO + "/releases", query=("per_page", "page"))
    def list_releases(self, call: Call, owner: str, name: str) -> Response:
        repository = self._repository(call, owner, name)
        shown = self._shown(call, repository)
        shown.sort(key=lambda release: (release.created_at, release.id), reverse=True)
        return self._page(call, shown, partial(self._release_body, repository))

    @route("GET", REPO + "/releases/latest")
    def get_latest_release(self, call: Call, owner: str, name: str) -> Response:
        repository = self._repository(call, owner, name)
        eligible = [
            release
            for release in repository.releases
            if not release.draft and not release.prerelease and release.make_latest != "false"
        ]
        if not eligible:
            raise Refusal(404, "Not Found")
        latest = max(eligible, key=lambda release: (release.published_at or "", release.id))
        return json_response(200, self._release_body(repository, latest))

    @route("GET", REPO + "/releases/tags/{tag:path}")
    def get_release_by_tag(self, call: Call, owner: str, name: str, tag: str) -> Response:
        repository = self._repository(call, owner, name)
        release = repository.published(tag)
        if not release:
            raise Refusal(404, "Not Found")
        return json_response(200, self._release_body(repository, release))

    @route("GET", REPO + "/releases/{number:int}")
    def get_release(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name)
        release = self._release(call, repository, number)
        return json_response(200, self._release_body(repository, release))

    @route("POST", REPO + "/releases")
    def create_release(self, call: Call, owner: str, name: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        wanted = call.json(_RELEASE_FIELDS, "tag_name")
        release = Release(wanted["tag_name"], repository.default_branch)
        self._apply(repository, release, {"draft": False, **wanted})
        repository.releases.append(release)
        return json_response(201, self._release_body(repository, release))

    @route("PATCH", REPO + "/releases/{number:int}")
    def update_release(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        release = self._release(call, repository, number)
        self._apply(repository, release, call.json(_RELEASE_FIELDS))
        return json_response(200, self._release_body(repository, release))

    @route("DELETE", REPO + "/releases/{number:int}")
    def delete_release(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        repository.releases.remove(self._release(call, repository, number))
        return Response(204)

    def _apply(self, repository: Repository, release: Release, wanted: dict[str, Any]) -> None:
        tag, draft = wanted.get("tag_name", release.tag_name), wanted.get("draft", release.draft)
        if not GIT_TAG.fullmatch(tag):
            raise _invalid("Release", "tag_name", "tag_name is not a valid tag")
        if len(wanted.get("body") or "") > 125_000:
            raise _invalid("Release", "body", "body is too long (maximum is 125000 characters)")
        if release.immutable:
            if draft:
                raise _invalid(
                    "Release", "state", "state cannot be changed when release is immutable"
                )
            for key in ("tag_name", "target_commitish"):
                if wanted.get(key, getattr(release, key)) != getattr(release, key):
                    text = f"{key} cannot be changed when release is immutable"
                    raise _invalid("Release", key, text)
        if wanted.get("make_latest", "true") not in ("true", "false", "legacy"):
            raise violation(422, "make_latest is none of true, false, legacy")
        other = repository.published(tag)
        if other and other is not release:
            raise _taken("Release", "tag_name")
        if not draft and not release.immutable and tag in repository.burned:
            raise _invalid("Release", "tag_name", "tag_name was used by an immutable release")
        for key, value in wanted.items():
            setattr(release, key, value)
        if not draft:
            repository.publish(release)

    # -- assets ----------------------------------------------------------------------------------

    @route("GET", REPO + "/releases/{number:int}/assets", query=("per_page", "page"))
    def list_assets(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name)
        release = self._release(call, repository, number)
        return self._page(call, release.assets, partial(self._asset_body, repository, release))

    @route("POST", "/uploads" + REPO + "/releases/{number:int}/assets", query=("name", "label"))
    def upload_asset(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        release = self._release(call, repository, number)
        if "Content-Length" not in call.headers:
            raise violation(400, "Bad Content-Length")
        if "Content-Type" not in call.headers or not call.query.get("name"):
            raise violation(400, "an upload needs a Content-Type and a name")
        if release.immutable:
            raise Refusal(422, "Cannot upload assets to an immutable release.")
        asset_name = _renamed(call.query["name"])
        if release.asset(asset_name):
            raise _taken("ReleaseAsset", "name")
        if not call.content:
            raise _invalid("ReleaseAsset", "size", "size must be greater than or equal to 1")
        kind = call.headers["Content-Type"]
        asset = Asset(asset_name, call.content, kind, call.query.get("label"))
        release.assets.append(asset)
        return json_response(201, self._asset_body(repository, release, asset))

    @route("GET", REPO + "/releases/assets/{number:int}")
    def get_asset(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name)
        release, asset = self._asset(call, repository, number)
        if BYTES in call.headers.get("Accept", ""):
            return self._redirect(asset)
        return json_response(200, self._asset_body(repository, release, asset))

    @route("PATCH", REPO + "/releases/assets/{number:int}")
    def update_asset(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        release, asset = self._asset(call, repository, number)
        wanted = call.json({"name": str, "label": _TEXT, "state": str})
        if release.immutable:
            raise _invalid("ReleaseAsset", None, "Cannot update asset of an immutable release")
        new_name = _renamed(wanted.get("name", asset.name))
        if release.asset(new_name) not in (None, asset):
            raise _taken("ReleaseAsset", "name")
        asset.name, asset.label = new_name, wanted.get("label", asset.label)
        return json_response(200, self._asset_body(repository, release, asset))

    @route("DELETE", REPO + "/releases/assets/{number:int}")
    def delete_asset(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        release, asset = self._asset(call, repository, number)
        if release.immutable:
            raise _invalid("ReleaseAsset", None, "Cannot delete asset from an immutable release")
        release.assets.remove(asset)
        return Response(204)

    @route("GET", "/{owner}/{name}/releases/download/{tag:path}/{asset_name}")
    def download(self, call: Call, owner: str, name: str, tag: str, asset_name: str) -> Response:
        release = self._repository(call, owner, name).published(tag)
        asset = release.asset(asset_name) if release else None
        if not asset:
            raise Refusal(404, "Not Found")
        return self._redirect(asset)

    @route("GET", "/storage/{key}/{number:int}")
    def get_stored(self, call: Call, key: str, number: str) -> Response:
        if "Authorization" in call.headers or key != self._storage_key:
            raise violation(400, "storage takes a signed address and nothing else")
        releases = [r for repository in self.repositories.values() for r in repository.releases]
        for asset in (asset for release in releases for asset in release.assets):
            if asset.id == int(number) and asset.content is not None:
                asset.downloads += 1
                disposition = f"attachment; filename={asset.name}"
                headers = {"Content-Type": asset.content_type, "Content-Disposition": disposition}
                return Response(200, headers, asset.content)
        raise Refusal(404, "Not Found")

    def _redirect(self, asset: Asset) -> Response:
        if asset.content is None:
            raise Refusal(404, "Not Found")
        return Response(302, {"Location": f"{self._storage}/{asset.id}"})

    # -- issues ----------------------------------------------------------------------------------

    def _issues(self, call: Call, owner: str, name: str, *, push: bool = False) -> Repository:
        repository = self._repository(call, owner, name, push=push)
        if not repository.has_issues:
            raise Refusal(410, "Issues has been disabled in this repository.")
        return repository

    @route("GET", REPO + "/issues", query=("state", "labels", "per_page", "page"))
    def list_issues(self, call: Call, owner: str, name: str) -> Response:
        repository = self._issues(call, owner, name)
        state, labels = call.query.get("state", "open"), call.query.get("labels", "")
        if state not in ("open", "closed", "all"):
            raise violation(422, f"state={state}")
        wanted = {label for label in labels.split(",") if label}
        found = [
            issue
            for issue in reversed(repository.issues)
            if state in ("all", issue.state) and wanted <= set(issue.labels)
        ]
        return self._page(call, found, partial(self._issue_body, repository))

    @route("POST", REPO + "/issues")
    def create_issue(self, call: Call, owner: str, name: str) -> Response:
        repository = self._issues(call, owner, name, push=True)
        wanted = call.json({"title": str, "body": _TEXT, "labels": list}, "title")
        _check_issue(wanted)
        number = len(repository.issues) + 1
        issue = Issue(number, wanted["title"], wanted.get("body") or "", wanted.get("labels", []))
        repository.issues.append(issue)
        return json_response(201, self._issue_body(repository, issue))

    @route("PATCH", REPO + "/issues/{number:int}")
    def update_issue(self, call: Call, owner: str, name: str, number: str) -> Response:
        repository = self._issues(call, owner, name, push=True)
        found = [issue for issue in repository.issues if issue.number == int(number)]
        if not found:
            raise Refusal(404, "Not Found")
        wanted = call.json({"title": str, "body": _TEXT, "state": str, "state_reason": _TEXT})
        _check_issue(wanted)
        for key, value in wanted.items():
            setattr(found[0], key, value)
        return json_response(200, self._issue_body(repository, found[0]))

    # -- attestations ----------------------------------------------------------------------------

    @route(
        "GET",
        REPO + "/attestations/{digest}",
        query=("per_page", "before", "after", "predicate_type"),
    )
    def list_attestations(self, call: Call, owner: str, name: str, digest: str) -> Response:
        repository = self._repository(call, owner, name)
        token = self.tokens.get(_token(call))
        if repository.private and token and token.attestations == "none":
            raise _not_accessible(token)
        if not SUBJECT_DIGEST.fullmatch(digest):
            raise violation(422, f"{digest} is no digest of a subject")
        wanted = call.query.get("predicate_type")
        found = [
            {"bundle": one.bundle, "repository_id": repository.id}
            for one in reversed(repository.attestations)
            if digest in {of for _, of in one.subjects} and wanted in (None, one.predicate_type)
        ]
        if not found:
            raise Refusal(404, "Not Found")
        return json_response(200, {"attestations": found[: call.number("per_page", 30, 100)]})

    @route("POST", REPO + "/attestations")
    def create_attestation(self, call: Call, owner: str, name: str) -> Response:
        repository = self._repository(call, owner, name, push=True)
        token = self.tokens[_token(call)]
        if token.attestations != "write":
            raise _not_accessible(token)
        bundle = call.json({"bundle": dict}, "bundle")["bundle"]
        try:
            statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
            subjects = frozenset(
                (one["name"], f"sha256:{one['digest']['sha256']}") for one in statement["subject"]
            )
            attestation = Attestation(bundle, str(statement["predicateType"]), subjects)
        except (KeyError, TypeError, ValueError):
            raise violation(422, "the bundle has no statement") from None
        if not all(SUBJECT_DIGEST.fullmatch(digest) for _, digest in subjects):
            raise violation(422, "a subject has no SHA-256 digest")
        repository.attestations.append(attestation)
        return json_response(201, {"id": attestation.id})

    # -- bodies ----------------------------------------------------------------------------------

    def _api(self, repository: Repository) -> str:
        return f"{self.url}/repos/{repository.full_name}"

    def _web(self, repository: Repository) -> str:
        return f"{self.url}/{repository.full_name}"

    def _repository_body(self, call: Call, repository: Repository) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": repository.id,
            "node_id": _node_id("R", repository.id),
            "name": repository.name,
            "full_name": repository.full_name,
            "private": repository.private,
            "owner": _user(repository.owner),
            "html_url": self._web(repository),
            "url": self._api(repository),
            "fork": False,
            "archived": False,
            "default_branch": repository.default_branch,
            "visibility": "private" if repository.private else "public",
        }
        token = self.tokens.get(_token(call))
        if token:
            push = repository.full_name in token.push and not token.installation
            body["permissions"] = {
                "admin": False,
                "maintain": False,
                "push": push,
                "triage": push,
                "pull": not token.installation,
            }
        return body

    def _ref_body(self, repository: Repository, tag: str) -> dict[str, Any]:
        commit, api = repository.git_tags[tag], self._api(repository)
        return {
            "ref": f"refs/tags/{tag}",
            "node_id": _node_id("REF", repository.id),
            "url": f"{api}/git/refs/tags/{quote(tag)}",
            "object": {"sha": commit, "type": "commit", "url": f"{api}/git/commits/{commit}"},
        }

    def _release_body(self, repository: Repository, release: Release) -> dict[str, Any]:
        api, web = self._api(repository), self._web(repository)
        url = f"{api}/releases/{release.id}"
        return {
            "url": url,
            "assets_url": f"{url}/assets",
            "upload_url": f"{url.replace('/repos/', '/uploads/repos/', 1)}/assets{{?name,label}}",
            "html_url": f"{web}/releases/tag/{quote(release.slug)}",
            "id": release.id,
            "author": _user(repository.owner),
            "node_id": _node_id("RE", release.id),
            "tag_name": release.tag_name,
            "target_commitish": release.target_commitish,
            "name": release.name,
            "draft": release.draft,
            "immutable": release.immutable,
            "prerelease": release.prerelease,
            "created_at": release.created_at,
            "updated_at": release.published_at or release.created_at,
            "published_at": release.published_at,
            "assets": [self._asset_body(repository, release, asset) for asset in release.assets],
            "tarball_url": None if release.draft else f"{api}/tarball/{quote(release.tag_name)}",
            "zipball_url": None if release.draft else f"{api}/zipball/{quote(release.tag_name)}",
            "body": release.body,
        }

    def _issue_body(self, repository: Repository, issue: Issue) -> dict[str, Any]:
        url = f"{self._api(repository)}/issues/{issue.number}"
        body: dict[str, Any] = {
            "url": url,
            "html_url": f"{self._web(repository)}/issues/{issue.number}",
            "number": issue.number,
            "title": issue.title,
            "body": issue.body or None,
            "state": issue.state,
            "state_reason": issue.state_reason,
            "labels": [{"name": label} for label in issue.labels],
            "user": _user("github-actions[bot]"),
        }
        if issue.pull_request:
            body["pull_request"] = {"url": url.replace("/issues/", "/pulls/")}
        return body

    def _asset_body(self, repository: Repository, release: Release, asset: Asset) -> dict[str, Any]:
        download = f"{self._web(repository)}/releases/download/{quote(release.slug)}"
        return {
            "url": f"{self._api(repository)}/releases/assets/{asset.id}",
            "id": asset.id,
            "node_id": _node_id("RA", asset.id),
            "name": asset.name,
            "label": asset.label or "",
            "uploader": _user(repository.owner),
            "content_type": asset.content_type,
            "state": asset.state,
            "size": asset.size,
            "digest": asset.digest,
            "download_count": asset.downloads,
            "created_at": asset.created_at,
            "updated_at": asset.created_at,
            "browser_download_url": f"{download}/{quote(asset.name)}",
        }


def _token(call: Call | Request) -> str:
    """The token, or what is there instead of one; empty for an anonymous request."""
    scheme, _, value = call.headers.get("Authorization", "").partition(" ")
    return value if scheme.lower() in ("bearer", "token") else scheme


def _user(login: str) -> dict[str, Any]:
    return {"login": login, "id": 1, "node_id": _node_id("U", 1), "type": "User"}


def _node_id(kind: str, number: int) -> str:
    return f"{kind}_{base64.urlsafe_b64encode(str(number).encode()).decode().rstrip('=')}"


def _renamed(name: str) -> str:
    # "GitHub renames asset filenames that have special characters, non-alphanumeric characters,
    # and leading or trailing periods."
    name = re.sub(r"[^A-Za-z0-9_.@+-]+", ".", name).rstrip(".")
    return f"default{name}" if name.startswith(".") else name


def _check_issue(wanted: Mapping[str, Any]) -> None:
    if len(wanted.get("title", "")) > 256 or len(wanted.get("body") or "") > 65_536:
        raise _invalid("Issue", "body", "title or body is too long")
    if wanted.get("state", "open") not in ("open", "closed"):
        raise violation(422, "state is neither open nor closed")
    if wanted.get("state_reason") not in (None, "completed", "not_planned", "reopened"):
        raise violation(422, "state_reason is none of completed, not_planned, reopened")


def _not_accessible(token: Token) -> Refusal:
    kind = "integration" if token.installation else "personal access token"
    return Refusal(403, f"Resource not accessible by {kind}")


def _invalid(resource: str, key: str | None, text: str) -> Refusal:
    error = {"resource": resource, "code": "custom", "field": key, "message": text}
    errors = [{name: value for name, value in error.items() if value is not None}]
    return Refusal(422, "Validation Failed", errors=errors)


def _taken(resource: str, key: str) -> Refusal:
    errors = [{"resource": resource, "code": "already_exists", "field": key}]
    return Refusal(422, "Validation Failed", errors=errors)
