"""Docker Hub's tags API: https://docs.docker.com/reference/api/hub/latest/

Shapes are those of the published description and of recorded answers. Its odd parts:

- a repository that does not exist is 200 with count 0 on the older path and 404 on the newer one;
- ``page_size`` above 100 is silently taken as 100, and a page past the end is 404;
- anonymous paging ends at an offset (1000 since August 2026) with a 403;
- inactive tags have no ``digest`` field;
- newest first only with ``ordering=last_updated``, which the newer path does not describe; a pushed
  tag keeps its id, and without ``ordering`` the ids give the order.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import urlencode

from tests.lab.server import EffectCounter, Request, Response
from tests.lab.standin import Call, RateLimit, Refusal, StandIn, json_response, route

INDEX = "application/vnd.oci.image.index.v1+json"
_ids = count(150_000_000)

Image = tuple[str, str, str | None, str, int]
"""os, architecture, variant, digest of the manifest, size in bytes"""


@dataclass(frozen=True)
class Tag:
    """A tag; without a digest it is an inactive one."""

    id: int
    name: str
    digest: str | None
    images: Sequence[Image]
    when: datetime
    media_type: str


@dataclass
class Repository:
    """A repository with its tags by name."""

    namespace: str
    name: str
    id: int = field(default_factory=lambda: next(_ids))
    tags: dict[str, Tag] = field(default_factory=dict)

    def push(
        self,
        tag: str,
        digest: str | None,
        images: Sequence[Image] = (),
        when: datetime | None = None,
        media_type: str = INDEX,
    ) -> None:
        """Create or move a tag; pushing the same digest again changes its dates only.

        Args:
            digest: of the index or of the one manifest; None makes an inactive tag.
            when: an aware datetime; default is now.
        """
        known = self.tags.get(tag)
        number = known.id if known else next(_ids)
        when = when or datetime.now(UTC)
        self.tags[tag] = Tag(number, tag, digest, tuple(images), when, media_type)

    def delete(self, tag: str) -> None:
        """Remove a tag."""
        del self.tags[tag]


class Hub(StandIn):
    """The stand-in for https://hub.docker.com.

    Args:
        accounts: user names with their passwords or access tokens.
        anonymous_offset: the first offset that anonymous paging may not reach; None for no limit.
        rate_limit: requests per minute.
    """

    def __init__(
        self,
        *,
        accounts: dict[str, str] | None = None,
        anonymous_offset: int | None = 1000,
        rate_limit: int = 180,
        port: int = 0,
        effects: EffectCounter | None = None,
    ) -> None:
        super().__init__(port=port, effects=effects)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.accounts = accounts or {}
        self.anonymous_offset = anonymous_offset
        self.rate_limit = RateLimit(rate_limit, window=60)
        self._tokens: set[str] = set()

    def repository(self, namespace: str, name: str) -> Repository:
        """The repository, made when it is not there."""
        return self.repositories.setdefault((namespace, name), Repository(namespace, name))

    def mutates(self, request: Request) -> bool:
        """Never: the two POST routes log in."""
        del request
        return False

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        return replace(response, headers={**response.headers, **self.rate_limit.headers})

    def admit(self, call: Call) -> None:
        if not self.rate_limit.take():
            raise Refusal(429, "Rate limit exceeded")
        if "Authorization" in call.headers and not self._signed_in(call):
            raise Refusal(401, "unauthorized")

    def error(self, refusal: Refusal) -> Response:
        body = {"message": refusal.message, "errinfo": {}} | refusal.fields
        if refusal.status != 429:
            return json_response(refusal.status, body)
        seconds = max(1, int(self.rate_limit.headers["X-RateLimit-Reset"]) - _now())
        return json_response(429, body, Retry_After=str(seconds))

    def _signed_in(self, call: Call) -> bool:
        scheme, _, token = call.headers.get("Authorization", "").partition(" ")
        return scheme in ("Bearer", "JWT") and token in self._tokens

    def _token(self, name: str, secret: str) -> str | None:
        if self.accounts.get(name) != secret:
            return None
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        return token

    @route("POST", "/v2/auth/token/?")
    def create_token(self, call: Call) -> Response:
        login = call.json({"identifier": str, "secret": str}, "identifier", "secret")
        if token := self._token(login["identifier"], login["secret"]):
            return json_response(200, {"access_token": token})
        raise Refusal(401, "invalid credentials")

    @route("POST", "/v2/users/login/?")
    def login(self, call: Call) -> Response:
        login = call.json({"username": str, "password": str}, "username", "password")
        if token := self._token(login["username"], login["password"]):
            return json_response(200, {"token": token})
        return json_response(401, {"detail": "Incorrect authentication credentials"})

    @route(
        "GET",
        "/v2/repositories/{namespace}/{name}/tags/?",
        query=("page", "page_size", "ordering"),
    )
    def list_tags(self, call: Call, namespace: str, name: str) -> Response:
        known = self.repositories.get((namespace, name), Repository(namespace, name, id=0))
        return self._page(call, known)

    @route(
        "GET", "/v2/namespaces/{namespace}/repositories/{name}/tags/?", query=("page", "page_size")
    )
    def list_repository_tags(self, call: Call, namespace: str, name: str) -> Response:
        return self._page(call, self._known(namespace, name))

    @route("GET", "/v2/repositories/{namespace}/{name}/tags/{tag}/?")
    @route("GET", "/v2/namespaces/{namespace}/repositories/{name}/tags/{tag}/?")
    def get_tag(self, call: Call, namespace: str, name: str, tag: str) -> Response:  # noqa: ARG002
        repository = self._known(namespace, name)
        if tag not in repository.tags:
            raise _not_found(namespace=namespace, repository=name, tag=tag)
        return json_response(200, _tag_body(repository, repository.tags[tag]))

    def _known(self, namespace: str, name: str) -> Repository:
        try:
            return self.repositories[namespace, name]
        except KeyError:
            raise _not_found(namespace=namespace, repository=name) from None

    def _page(self, call: Call, repository: Repository) -> Response:
        page = call.number("page", 1)
        size = call.number("page_size", 10, maximum=100)
        ordering = call.query.get("ordering")
        if ordering not in (None, "last_updated"):
            raise Refusal(400, f"ordering={ordering} is not recorded", violation=True)
        start = (page - 1) * size
        limit = self.anonymous_offset
        if limit is not None and start >= limit and not self._signed_in(call):
            text = "pagination offset too large for anonymous requests; sign in to page further"
            raise Refusal(403, text)
        tags = list(repository.tags.values())
        tags.sort(key=lambda tag: (tag.when, tag.id) if ordering else tag.id, reverse=True)
        if page > 1 and start >= len(tags):
            raise _not_found()

        def link(number: int) -> str:
            query = dict(sorted({**call.query, "page": number, "page_size": size}.items()))
            return f"{self.url}{call.path}?{urlencode(query)}"

        body = {
            "count": len(tags),
            "next": link(page + 1) if start + size < len(tags) else None,
            "previous": link(page - 1) if page > 1 else None,
            "results": [_tag_body(repository, tag) for tag in tags[start : start + size]],
        }
        return json_response(200, body)


def _not_found(**errinfo: str) -> Refusal:
    return Refusal(404, "httperror 404: object not found", errinfo=errinfo)


def _now() -> int:
    return int(datetime.now(UTC).timestamp())


def _time(when: datetime) -> str:
    text = when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"


def _tag_body(repository: Repository, tag: Tag) -> dict[str, Any]:
    when, status = _time(tag.when), "active" if tag.digest else "inactive"
    images = [
        {
            "architecture": architecture,
            "features": "",
            "variant": variant,
            "digest": digest,
            "os": system,
            "os_features": "",
            "os_version": None,
            "size": size,
            "status": status,
            "last_pulled": when,
            "last_pushed": when,
        }
        for system, architecture, variant, digest, size in tag.images
    ]
    body = {
        "creator": 1,
        "id": tag.id,
        "last_updated": when,
        "last_updater": 1,
        "last_updater_username": repository.namespace,
        "name": tag.name,
        "repository": repository.id,
        "full_size": tag.images[0][4] if tag.images else 0,
        "v2": True,
        "tag_status": status,
        "tag_last_pulled": when,
        "tag_last_pushed": when,
        "media_type": tag.media_type,
        "content_type": "image",
        "digest": tag.digest,
        "images": images,
    }
    if tag.digest is None:
        del body["digest"]
    return body
