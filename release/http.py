"""The only user of ``requests``: time-outs, retries, redaction and a count of requests."""

from __future__ import annotations

import base64
import hashlib
import json as jsonlib
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
import tenacity

from release import __version__
from release.errors import (
    NotFoundError,
    OtherBytesError,
    PreflightError,
    ReleaseError,
    UpstreamError,
)
from release.reference import Digest

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
ATTEMPTS = 5
DEADLINE_SECONDS = 90.0
"""How long one request may take with all its retries; a longer Retry-After is not waited for."""

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2."""

MOST_BYTES = 64 << 20
"""Of an answer that is kept in memory, unpacked: lists of tags have some 10 MB."""
MOST_FILE_BYTES = 4 << 30
"""Of one that goes to a file."""
_CHUNK = 1 << 16
"""What is unpacked at once: as little as this can become 64 MB."""

_SECRET_VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN", "DOCKERHUB_TOKEN")
_SECRETS_OF_ACTIONS = ("ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
"""What BuildKit's cache and attestations sign in with."""
_SHORTEST_SECRET = 8
"""What is shorter may be any word, and no token is; Docker Hub's passwords have 9 characters."""
_sent: set[str] = set()
"""Credentials that this process sent, in each form: a server may repeat them in its answer."""
_log = logging.getLogger(__name__)
_USERINFO = re.compile(r"(?<=://)[^/?#\s]+@")
_QUERY = re.compile(r"\?\S+")


def redact(text: str) -> str:
    """``text`` without the values of secret variables, without what this process signed in with, as
    they are or in base64, and without passwords in URLs.
    """
    for variable in (*_SECRET_VARIABLES, *_SECRETS_OF_ACTIONS):
        value = os.environ.get(variable)
        if value:
            for form in (value, base64.b64encode(value.encode()).decode()):
                text = text.replace(form, f"<{variable}>")
    for secret in sorted(_sent, key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    return _USERINFO.sub("", text)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a program is run with that needs none of our tokens."""
    return {name: value for name, value in environment.items() if name not in _SECRET_VARIABLES}


def _remember(headers: Mapping[str, str]) -> None:
    """Keeps what is sent as credentials from being shown."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    forms = {value}
    if scheme == "Basic":
        login = base64.b64decode(value).decode(errors="replace")
        forms |= {login, login.partition(":")[2]}
    for form in forms:
        if len(form) >= _SHORTEST_SECRET:
            _sent.update((form, base64.b64encode(form.encode()).decode()))


def _without_query(url: str) -> str:
    """Signed URLs carry their secret in the query."""
    parts = urlsplit(url)
    return redact(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")))


@dataclass(frozen=True)
class Response:
    """A complete answer: status, headers (names in lower case) and body."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str = ""

    def json(self) -> Any:
        """The body as JSON, its texts without what no UTF-8 can hold.

        Raises:
            UpstreamError: it is not JSON, as when a proxy answers 200 with a page.
        """
        try:
            # Half a character, which JSON can spell out, is an error only where it is written.
            found = jsonlib.loads(self.body.decode("utf-8-sig"), parse_constant=_refuse)
            text = jsonlib.dumps(found, ensure_ascii=False)
            return found if _encodable(text) else jsonlib.loads(_LONE_HALF.sub("\ufffd", text))
        except (ValueError, RecursionError) as error:
            raise UpstreamError(
                "answered with something that is not JSON",
                on=_without_query(self.url),
                detail=redact(self.body[:200].decode(errors="replace")),
                hint="look at the page; it is often a proxy's or a maintenance notice",
            ) from error


_LONE_HALF = re.compile("[\ud800-\udfff]")


def _encodable(text: str) -> bool:
    return not _LONE_HALF.search(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class _Refused(Exception):  # noqa: N818 - a signal between request and retry, never seen outside
    """A transient answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait according to Retry-After (RFC 9110, section 10.2.3): seconds or a date.

    GitHub names the end of a rate limit by ``x-ratelimit-reset`` (epoch seconds) instead, and
    that counts only where nothing remains.
    """
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
        return max(0.0, float(reset) - time.time())
    return None


_FAULTS: tuple[type[Exception], ...] = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    _Refused,
)
_NEVER_SENT: tuple[type[Exception], ...] = (requests.ConnectTimeout,)

_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Refused):
        asked = _retry_after(error.response.headers)
        if asked is not None:
            return asked
    return _backoff(state)


def _left(headers: Mapping[str, str]) -> int | None:
    """How many requests a server says are left: GitHub in ``x-ratelimit-remaining``, Docker Hub's
    registry, of pulls, as ``76;w=21600``.
    """
    said = headers.get("x-ratelimit-remaining") or headers.get("ratelimit-remaining") or ""
    number = said.partition(";")[0].strip()
    return int(number) if re.fullmatch("[0-9]{1,9}", number) else None


def _stop(state: tenacity.RetryCallState) -> bool:
    """Ends the retries when they are used up, or when the next one would miss the deadline."""
    elapsed = state.seconds_since_start or 0.0
    return state.attempt_number >= ATTEMPTS or elapsed + state.upcoming_sleep > DEADLINE_SECONDS


class _Session(requests.Session):
    """A session that takes no credentials from ``~/.netrc``, neither at first nor on a redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"install-zfs/{__version__}"
        # Without an auth of its own, requests takes one from ~/.netrc over our header.
        self.auth = lambda request: request

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Drops our header on the way to another host."""
        assert response.request.url
        assert prepared_request.url
        if self.should_strip_auth(  # type: ignore[no-untyped-call]
            response.request.url, prepared_request.url
        ):
            prepared_request.headers.pop("Authorization", None)


class Http:
    """Requests with time-outs, retries where they are safe, and a count by host.

    Safe to share between threads.

    Attributes:
        requests: how many were sent to each host.
        left: how many more each host takes for now, where it says so.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.left: dict[str, int] = {}
        self._local = threading.local()
        self._lock = threading.Lock()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
        return session

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        data: bytes | Path | None = None,
        expect: Collection[int] = (200,),
        idempotent: bool | None = None,
        save: Path | None = None,
    ) -> Response:
        """Sends one request and reads the whole answer.

        Args:
            expect: the statuses that are returned; every other one raises.
            idempotent: whether a connection fault or a transient status may be retried;
                by default what RFC 9110 says of ``method``.
            save: where the body of a successful answer goes (the response's is then empty).

        Raises:
            NotFoundError: a 404 that is not in ``expect``.
            PreflightError: a 401 that is not in ``expect``.
            UpstreamError: no complete answer, or a status that is not in ``expect``.
        """
        retryable = method in IDEMPOTENT if idempotent is None else idempotent
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_FAULTS if retryable else _NEVER_SENT),
            wait=_wait,
            stop=_stop,
            reraise=True,
        )
        _remember(headers or {})
        place = _without_query(url)
        try:
            answer = retrying(
                self._once, method, url, headers, params, json, data, tuple(expect), save
            )
        except _Refused as refused:
            raise self._unexpected(refused.response, place) from None
        except (requests.RequestException, ValueError) as error:
            # A redirection to what is no URL is a ValueError in requests.
            raise UpstreamError(
                "could not be reached",
                on=place,
                detail=redact(f"{type(error).__name__}: {_QUERY.sub('', str(error))}"),
                hint="check the network and run again; nothing was lost",
            ) from error
        if answer.status not in expect:
            raise self._unexpected(answer, place)
        return answer

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        params: Mapping[str, str | int] | None,
        json: Any,
        data: bytes | Path | None,
        expect: tuple[int, ...],
        save: Path | None,
    ) -> Response:
        with self._lock:
            self.requests[urlsplit(url).netloc] += 1
        body = data.open("rb") if isinstance(data, Path) else data
        answer: requests.Response | None = None
        try:
            answer = self._session().request(
                method,
                url,
                headers=headers,
                params=params,
                json=json,
                data=body,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                stream=True,
            )
            _log.debug("%s %s: %s", method, _without_query(url), answer.status_code)
            content = b""
            if save is not None and answer.status_code in expect and answer.status_code < 300:
                with save.open("wb") as file:
                    for chunk in _chunks(answer, MOST_FILE_BYTES):
                        file.write(chunk)
            else:
                content = b"".join(_chunks(answer, MOST_BYTES))
            complete = Response(
                url=answer.url,
                status=answer.status_code,
                headers={name.lower(): value for name, value in answer.headers.items()},
                body=content,
                reason=answer.reason or "",
            )
            if (left := _left(complete.headers)) is not None:
                self.left[urlsplit(url).netloc] = left
            if complete.status in TRANSIENT and complete.status not in expect:
                raise _Refused(complete)
            return complete
        finally:
            if answer is not None:
                answer.close()
            if body is not None and not isinstance(body, bytes):
                body.close()

    def _unexpected(self, answer: Response, place: str) -> ReleaseError:
        detail = redact(answer.body[:500].decode(errors="replace")).strip()
        if answer.status == 404:
            return NotFoundError("is not there (404)", on=place, detail=detail)
        if answer.status == 401:
            return PreflightError(
                "answered 401: it does not accept these credentials, or wants some",
                on=place,
                detail=detail,
                hint="set GITHUB_TOKEN, DOCKERHUB_USERNAME and DOCKERHUB_TOKEN, or docker login",
            )
        hint = {
            403: "check that the credentials allow this; an anonymous caller may need some",
            429: "too many requests: run again later, or sign in",
        }.get(answer.status, "run again later; nothing was lost")
        asked = _retry_after(answer.headers)
        if asked is not None:
            hint = f"it asks to wait {asked:.0f} seconds; run again after that"
        return UpstreamError(
            f"answered {answer.status} {answer.reason}", on=place, detail=detail, hint=hint
        )

    def download(
        self, url: str, to: Path, *, expected: Digest, headers: Mapping[str, str] | None = None
    ) -> None:
        """Downloads ``url`` to ``to``, which appears whole and with its digest, or not at all.

        Raises:
            OtherBytesError: what came has another digest.
        """
        part = to.with_name(f".{to.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            self.request("GET", url, headers=headers, save=part)
            if (got := file_digest(part)) != expected:
                raise OtherBytesError(
                    "answered with other bytes than the digest names",
                    on=_without_query(url),
                    detail=f"expected {expected}\ngot      {got}",
                    hint="do not use it; find out who changed it",
                )
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)


def _chunks(answer: requests.Response, most: int) -> Iterator[bytes]:
    """The body, unpacked.

    Raises:
        UpstreamError: it has more than ``most`` bytes.
    """
    size = 0
    for chunk in answer.iter_content(_CHUNK):
        size += len(chunk)
        if size > most:
            raise UpstreamError(
                f"answered with more than {most >> 20} MiB",
                on=_without_query(answer.url),
                hint="nothing was taken from it; look at the address, and run again later",
            )
        yield chunk


def bytes_digest(content: bytes) -> Digest:
    """The digest of ``content``."""
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def checksums(files: Iterable[tuple[str, Digest]]) -> str:
    """The lines that ``sha256sum --check`` reads, of names and digests."""
    return "".join(f"{digest.removeprefix('sha256:')}  {name}\n" for name, digest in files)


def file_digest(path: Path) -> Digest:
    """The digest of the file's content."""
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
