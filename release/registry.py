"""OCI registries: manifests, tags and blobs, read and written by digest.

Paths and headers are those of the OCI distribution specification, version 1.1; the token
exchange is the one that ``distribution`` describes ("Token Authentication Specification").
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import tenacity

from release.errors import (
    ConfigurationError,
    NotFoundError,
    OtherBytesError,
    PreflightError,
    PublishError,
    UpstreamError,
)
from release.http import Http, Response, bytes_digest
from release.reference import DOCKER_HUB, Digest, Platform, Reference, parse_digest, parse_platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_ACCEPT = {"Accept": ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))}

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_NEXT_LINK = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')


@dataclass(frozen=True)
class Document:
    """A manifest or an index, byte for byte as the registry serves it."""

    digest: Digest
    media_type: str
    raw: bytes

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    @property
    def content(self) -> Any:
        return json.loads(self.raw)


def labels_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The labels in an image's configuration.

    Raises:
        TypeError, ValueError, AttributeError: it is not shaped as specified.
    """
    labels = (config.get("config") or {}).get("Labels") or {}
    return {str(name): str(value) for name, value in labels.items()}


def normalize_platform(os: str, architecture: str, variant: str | None = None) -> Platform | None:
    """The platform's usual name, or None for what is no platform (attestations).

    ``linux/arm64/v8`` is ``linux/arm64``: v8 is arm64's only variant (containerd's
    ``platforms.Normalize``).
    """
    if "unknown" in (os, architecture):
        return None
    if (architecture, variant) == ("arm64", "v8"):
        variant = None
    return parse_platform("/".join(part for part in (os, architecture, variant) if part))


def _platform(about: Mapping[str, Any]) -> Platform | None:
    """What an index says of a manifest's platform, or a configuration of its own."""
    return normalize_platform(
        about.get("os", "unknown"), about.get("architecture", "unknown"), about.get("variant")
    )


MALFORMED = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    ConfigurationError,
)
"""What taking apart an answer that is not shaped as specified can raise."""

_MOST_PAGES = 1000
"""Of a list of tags: of 100 or 1,000 names each."""


@contextmanager
def _understood(reference: Reference) -> Iterator[None]:
    """Reading an answer that is not shaped as specified is an expected failure."""
    try:
        yield
    except MALFORMED as error:
        raise UpstreamError(
            "the registry's answer is not understood", on=str(reference), detail=repr(error)
        ) from error


class Registry:
    """A client for every registry that a run speaks to.

    Credentials come from docker's own ``config.json``, and for Docker Hub from
    ``DOCKERHUB_USERNAME`` and ``DOCKERHUB_TOKEN`` where they are set.
    """

    def __init__(self, http: Http, environment: Mapping[str, str]) -> None:
        self._http = http
        self._environment = environment
        self._authorization: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    # Reading

    def head(self, reference: Reference) -> Digest | None:
        """The digest behind ``reference`` (an index's where there is one); None where a 404 says
        that it is not there.
        """
        found = self.describe(reference)
        return found[0] if found else None

    def describe(self, reference: Reference) -> tuple[Digest, str] | None:
        """The digest and the media type behind ``reference``; None where a 404 says that it is
        not there.

        HEAD does not count as a pull (Docker Hub usage and limits, "Definition of a pull").
        """
        answer = self._call(
            "HEAD", reference, f"manifests/{_target(reference)}", headers=_ACCEPT, expect=(200, 404)
        )
        if answer.status == 404:
            return None
        digest = answer.headers.get("docker-content-digest")
        if not digest:
            document = self.get(reference)
            return document.digest, document.media_type
        with _understood(reference):
            return parse_digest(digest), answer.headers.get("content-type", "").partition(";")[0]

    def get(self, reference: Reference) -> Document:
        """The manifest or index behind ``reference``.

        Raises:
            NotFoundError: it is not there.
            OtherBytesError: what came does not have the digest that was asked for.
        """
        answer = self._call(
            "GET", reference, f"manifests/{_target(reference)}", headers=_ACCEPT, expect=(200,)
        )
        digest = bytes_digest(answer.body)
        if reference.digest and digest != reference.digest:
            raise OtherBytesError(
                "the registry answered with other bytes than the digest names",
                on=str(reference),
                detail=f"asked for {reference.digest}\ngot       {digest}",
            )
        content = answer.json()
        with _understood(reference):
            media_type = str(content.get("mediaType") or answer.headers.get("content-type", ""))
        return Document(digest, media_type.partition(";")[0].strip(), answer.body)

    def find(self, reference: Reference) -> Document | None:
        """:meth:`get`, with None for what is not there."""
        try:
            return self.get(reference)
        except NotFoundError:
            return None

    def platforms(self, reference: Reference, document: Document) -> dict[Platform, Digest]:
        """Manifest digest of each platform behind an index or a single manifest.

        A single manifest names its platform in its configuration.
        """
        if document.is_index:
            with _understood(reference):
                return {
                    platform: parse_digest(item["digest"])
                    for item in document.content["manifests"]
                    if (platform := _platform(item.get("platform") or {}))
                }
        config = self.config(reference, document)
        with _understood(reference):
            platform = _platform({"os": "linux", **config})
        return {platform: document.digest} if platform else {}

    def config(self, reference: Reference, document: Document) -> dict[str, Any]:
        """The image configuration of a single manifest."""
        with _understood(reference):
            digest = parse_digest(document.content["config"]["digest"])
        answer = self._call("GET", reference, f"blobs/{digest}", expect=(200,))
        if bytes_digest(answer.body) != digest:
            raise OtherBytesError(
                "the image's configuration does not have its digest", on=f"{reference} {digest}"
            )
        with _understood(reference):
            return dict(answer.json())

    def labels(self, reference: Reference, manifest: Digest) -> dict[str, str]:
        """The labels of the image behind one manifest digest."""
        at = reference.at(manifest)
        config = self.config(at, self.get(at))
        with _understood(at):
            return labels_of(config)

    def tags(self, repository: Reference, *, ours: bool = False) -> frozenset[str]:
        """Every tag of a repository; none where the repository is not there.

        Args:
            ours: ask as one who may push. Docker Hub answers 401 for a repository that does not
                exist, and 404 only to those who may create it.

        Raises:
            UpstreamError: the list could not be read to its end.
        """
        names: set[str] = set()
        url = f"{repository.api}/v2/{repository.repository}/tags/list"
        answer = self._send("GET", repository, url, expect=(200, 404), push=ours)
        if answer.status == 404:
            return frozenset()
        for _ in range(_MOST_PAGES):
            with _understood(repository):
                names.update(map(str, answer.json().get("tags") or ()))
                following = _NEXT_LINK.search(answer.headers.get("link", ""))
                if not following:
                    return frozenset(names)
                url = self._inside(repository, urljoin(url, following.group(1)))
            answer = self._send("GET", repository, url, expect=(200,), push=ours)
        raise UpstreamError(
            f"lists tags on more than {_MOST_PAGES} pages",
            on=str(repository.name),
            hint="nothing was taken from this list; run again later",
        )

    def has(self, repository: Reference, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        found = self._call("HEAD", repository, f"blobs/{digest}", expect=(200, 404))
        return found.status == 200

    def download(self, repository: Reference, digest: Digest, to: Path) -> None:
        """Downloads a blob, checked against its digest."""
        url = f"{repository.api}/v2/{repository.repository}/blobs/{digest}"
        self._call("HEAD", repository, f"blobs/{digest}", expect=(200,))
        self._http.download(url, to, expected=digest, headers=self._headers(repository))

    def blob(self, repository: Reference, digest: Digest, *, first: int | None = None) -> bytes:
        """A small blob, checked against its digest, or the ``first`` bytes of any.

        A registry that does not know ranges answers with all of it.
        """
        headers = {"Range": f"bytes=0-{first - 1}"} if first else {}
        answer = self._call(
            "GET", repository, f"blobs/{digest}", headers=headers, expect=(200, 206)
        )
        if answer.status == 206:
            return answer.body
        if bytes_digest(answer.body) != digest:
            raise OtherBytesError(
                "the registry answered with other bytes than the digest names",
                on=f"{repository} {digest}",
            )
        return answer.body

    # Writing

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(UpstreamError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )
    def upload(self, repository: Reference, digest: Digest, blob: Path | bytes) -> None:
        """Uploads a blob unless the repository has it ("Pushing a blob monolithically").

        A fault ends the upload session, so it is tried again from the question on.
        """
        there = self._call("HEAD", repository, f"blobs/{digest}", expect=(200, 404), push=True)
        if there.status == 200:
            return
        start = self._call(
            "POST",
            repository,
            "blobs/uploads/",
            expect=(202,),
            push=True,
            # An upload session that nobody uses is collected by the registry.
            idempotent=True,
        )
        place = self._location(repository, start)
        self._send(
            "PUT",
            repository,
            place,
            params={"digest": digest},
            data=blob,
            headers={"Content-Type": "application/octet-stream"},
            expect=(201,),
            push=True,
            idempotent=False,
        )

    def put(self, reference: Reference, document: Document) -> None:
        """Puts a manifest or an index under a tag or its digest, and reads back what is there.

        Raises:
            PublishError: the registry has other bytes there than were sent.
        """
        self._call(
            "PUT",
            reference,
            f"manifests/{_target(reference)}",
            data=document.raw,
            headers={"Content-Type": document.media_type},
            expect=(201,),
            push=True,
        )
        found = self.head(reference)
        if found != document.digest:
            raise PublishError(
                "reads back as another image than was pushed",
                on=str(reference),
                detail=f"pushed {document.digest}\nfound  {found or 'nothing'}",
                hint="does somebody else push to this repository? run again to repair",
            )

    def check_push(self, repository: Reference) -> None:
        """Makes sure that these credentials may push, by opening an upload and cancelling it.

        Raises:
            PreflightError: they may not, with what to set.
        """
        try:
            start = self._call(
                "POST",
                repository,
                "blobs/uploads/",
                expect=(202, 401, 403),
                push=True,
                idempotent=True,
            )
        except NotFoundError:
            start = None
        if start is None or start.status != 202:
            hint = (
                "set DOCKERHUB_USERNAME and DOCKERHUB_TOKEN, or run: docker login"
                if repository.registry == DOCKER_HUB
                else f"run: docker login {repository.registry}"
            )
            raise PreflightError("may not push there", on=str(repository.name), hint=hint)
        place = self._location(repository, start)
        self._send("DELETE", repository, place, expect=(202, 204, 404, 405), push=True)

    # Transport

    def _call(self, method: str, reference: Reference, path: str, **options: Any) -> Response:
        return self._send(
            method, reference, f"{reference.api}/v2/{reference.repository}/{path}", **options
        )

    def _inside(self, reference: Reference, url: str) -> str:
        """``url`` where it stays on the registry's host: credentials follow it."""
        if not url.startswith(f"{reference.api}/"):
            raise UpstreamError("points to another host", on=str(reference.name), detail=url)
        return url

    def _location(self, reference: Reference, start: Response) -> str:
        """Where an upload that was begun goes on."""
        with _understood(reference):
            return self._inside(reference, urljoin(start.url, start.headers["location"]))

    def _headers(self, reference: Reference, push: bool = False) -> dict[str, str]:
        with self._lock:
            known = self._authorization.get(_scope(reference, push))
            if known is None and not push:
                known = self._authorization.get(_scope(reference, push=True))
        return {"Authorization": known} if known else {}

    def _send(
        self,
        method: str,
        reference: Reference,
        url: str,
        *,
        expect: tuple[int, ...],
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        def send(expect: tuple[int, ...]) -> Response:
            sent = {**(headers or {}), **self._headers(reference, push)}
            return self._http.request(method, url, headers=sent, expect=expect, **options)

        answer = send((*expect, 401))
        if answer.status != 401:
            return answer
        self._authorize(reference, push, answer)
        return send(expect)

    def _authorize(self, reference: Reference, push: bool, refused: Response) -> None:
        """Answers a 401's challenge (RFC 9110, section 11.6.1) and keeps the answer."""
        scheme, _, rest = refused.headers.get("www-authenticate", "").partition(" ")
        login = self._login(reference.registry)
        if scheme.lower() == "basic" and login:
            token = base64.b64encode(":".join(login).encode()).decode()
            authorization = f"Basic {token}"
        elif scheme.lower() == "bearer":
            authorization = f"Bearer {self._token(reference, push, rest, login)}"
        else:
            return
        with self._lock:
            self._authorization[_scope(reference, push)] = authorization

    def _token(
        self, reference: Reference, push: bool, challenge: str, login: tuple[str, str] | None
    ) -> str:
        asked = dict(_CHALLENGE.findall(challenge))
        realm = asked.get("realm", "")
        with _understood(reference):
            scheme = urlsplit(realm).scheme
        if scheme not in ("https", "http") or (
            scheme == "http" and reference.api.startswith("https:")
        ):
            raise UpstreamError(
                "asks for a token from an unsafe place", on=str(reference.name), detail=realm
            )
        actions = "pull,push" if push else "pull"
        params = {"scope": f"repository:{reference.repository}:{actions}"}
        if "service" in asked:
            params["service"] = asked["service"]
        headers = {}
        if login:
            token = base64.b64encode(":".join(login).encode()).decode()
            headers["Authorization"] = f"Basic {token}"
        answer = self._http.request("GET", realm, params=params, headers=headers).json()
        with _understood(reference):
            return str(answer.get("token") or answer["access_token"])

    def signs_in(self, registry: str) -> bool:
        """Whether there are credentials for a registry."""
        return self._login(registry) is not None

    def pulls_left(self, repository: Reference) -> int | None:
        """How many manifests its registry says it gives out for now; None before it said so."""
        return self._http.left.get(urlsplit(repository.api).netloc)

    def _login(self, registry: str) -> tuple[str, str] | None:
        """User name and password for ``registry``, or None."""
        username = self._environment.get("DOCKERHUB_USERNAME")
        token = self._environment.get("DOCKERHUB_TOKEN")
        if registry == DOCKER_HUB and username and token:
            return username, token
        # Imported here, because it takes longer than a whole run that needs no credentials.
        from docker import auth
        from docker.errors import DockerException

        try:
            found = auth.resolve_authconfig(auth.load_config(), registry) or {}
        except DockerException as error:
            raise PreflightError(
                "docker's configuration cannot give credentials",
                on=registry,
                detail=str(error),
                hint="mend credsStore or credHelpers in ~/.docker/config.json",
            ) from error
        found = {name.lower(): value for name, value in found.items()}
        if not found.get("username") or not found.get("password"):
            return None
        return found["username"], found["password"]


def _scope(reference: Reference, push: bool) -> tuple[str, str]:
    return f"{reference.registry}/{reference.repository}", "push" if push else "pull"


def _target(reference: Reference) -> str:
    return reference.digest or reference.tag or "latest"
