"""Requests: what is retried, what is waited for, and what never reaches a message."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from release.errors import ExitCode, NotFoundError, ReleaseError, UpstreamError
from release.http import ATTEMPTS, Http, bytes_digest, redact
from tests.lab.server import (
    Drop,
    Fault,
    LabServer,
    Request,
    Response,
    Truncate,
    html_page,
    retry_after,
)

CONTENT = b"content" * 100
DIGEST = bytes_digest(CONTENT)


class Echo(LabServer):
    """Answers with :data:`CONTENT`, or sends to where ``/to/`` points; keeps headers and bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.authorizations: list[str | None] = []
        self.bodies: list[bytes] = []
        self.elsewhere = ""

    def respond(self, request: Request) -> Response:
        self.bodies.append(b"".join(request.body))
        self.authorizations.append(request.headers.get("Authorization"))
        if request.path == "/to":
            return Response(307, {"Location": self.elsewhere})
        return Response(404 if request.path == "/nothing" else 200, {}, CONTENT)


@pytest.fixture
def server() -> Iterator[Echo]:
    with Echo() as echo:
        yield echo


@pytest.fixture
def http() -> Http:
    return Http()


def failure(call: Callable[[], object]) -> tuple[ReleaseError, float]:
    """The expected failure of a call, and how long it took in seconds."""
    started = time.monotonic()
    with pytest.raises(ReleaseError) as caught:
        call()
    return caught.value, time.monotonic() - started


AT_ONCE = {"Retry-After": "0"}


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        *(("GET", Response(status, AT_ONCE)) for status in (408, 429, 500, 502, 503, 504)),
        *((method, Response(503, AT_ONCE)) for method in ("HEAD", "PUT", "DELETE")),
        ("GET", Drop()),
        ("PUT", Drop(applied=True)),
        ("GET", Truncate(10)),
    ],
)
def test_a_passing_fault_of_an_idempotent_request_is_retried(
    server: Echo, http: Http, method: str, fault: Fault
) -> None:
    server.fail(method, fault)
    answer = http.request(method, f"{server.url}/x", data=b"sent" if method == "PUT" else None)
    assert answer.body == (b"" if method == "HEAD" else CONTENT)
    assert server.count(f"{method} /x") == 2
    assert http.requests == {f"127.0.0.1:{server.port}": 2}


def test_a_file_is_sent_whole_again(server: Echo, http: Http, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    server.fail("PUT", Drop(applied=True))
    http.request("PUT", f"{server.url}/x", data=file)
    assert server.bodies == [CONTENT, CONTENT]


@pytest.mark.parametrize(
    "fault",
    [Drop(), Drop(applied=True), *(Response(status, AT_ONCE) for status in (408, 429, 503))],
)
def test_a_post_is_sent_once(server: Echo, http: Http, fault: Fault) -> None:
    server.fail("POST", fault, times=None)
    with pytest.raises(UpstreamError):
        http.request("POST", f"{server.url}/x", data=b"x")
    assert server.count("POST") == 1


def test_a_post_that_may_be_sent_twice_says_so(server: Echo, http: Http) -> None:
    server.fail("POST", Response(503, AT_ONCE))
    assert http.request("POST", f"{server.url}/x", idempotent=True).status == 200
    assert server.count("POST") == 2


@pytest.mark.parametrize("status", [400, 401, 403, 409, 422, 501])
def test_other_refusals_are_not_retried(server: Echo, http: Http, status: int) -> None:
    server.fail("GET", Response(status, {}, b"the server's words"))
    with pytest.raises(ReleaseError, match=f"answered {status}.*\n    the server's words") as error:
        http.request("GET", f"{server.url}/x")
    missing = ExitCode.MISSING_HERE if status == 401 else ExitCode.UPSTREAM_INCOMPLETE
    assert error.value.exit_code is missing
    assert server.count() == 1


def test_a_404_is_an_answer_of_its_own(server: Echo, http: Http) -> None:
    with pytest.raises(NotFoundError):
        http.request("GET", f"{server.url}/nothing")
    assert http.request("GET", f"{server.url}/nothing", expect=(200, 404)).status == 404


def test_a_transient_status_that_is_expected_is_returned(server: Echo, http: Http) -> None:
    server.fail("GET", Response(503))
    assert http.request("GET", f"{server.url}/x", expect=(200, 503)).status == 503


def test_retry_after_is_waited_for_in_seconds_and_as_a_date(server: Echo, http: Http) -> None:
    started = datetime.now(UTC)
    date = (started + timedelta(seconds=2)).replace(microsecond=0)
    server.fail("/seconds", retry_after(1))
    server.fail("/date", retry_after(date, status=503))

    def ended(path: str) -> datetime:
        assert http.request("GET", server.url + path).status == 200
        return datetime.now(UTC)

    with ThreadPoolExecutor() as pool:
        after_seconds, after_date = pool.map(ended, ("/seconds", "/date"))
    assert after_seconds >= started + timedelta(seconds=1)
    assert after_date >= date


@pytest.mark.parametrize(
    "headers",
    [
        retry_after(3600).headers,
        retry_after(datetime.now(UTC) + timedelta(hours=2)).headers,
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{time.time() + 7200:.0f}"},
    ],
)
@pytest.mark.parametrize("status", [403, 429])
def test_a_wait_beyond_the_deadline_gives_up_at_once_and_says_how_long(
    server: Echo, http: Http, headers: dict[str, str], status: int
) -> None:
    server.fail("GET", Response(status, headers), times=None)
    error, seconds = failure(lambda: http.request("GET", f"{server.url}/x"))
    assert re.search(r"it asks to wait \d{4} seconds", error.hint)
    assert server.count() == 1
    assert seconds < 30


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "²", "Mon, 01 Jan 99999999999 00:00:00 GMT", "1.5"]
)
def test_nonsense_in_retry_after_is_passed_over(server: Echo, http: Http, value: str) -> None:
    server.fail("GET", Response(429, {"Retry-After": value}))
    assert http.request("GET", f"{server.url}/x").status == 200


def test_a_fault_that_stays_ends_in_an_error_and_leaves_no_file(
    server: Echo, http: Http, tmp_path: Path
) -> None:
    with Echo() as gone:
        closed = gone.url
    old = tmp_path / "old"
    old.write_bytes(b"old")
    server.fail("/500", Response(500, {}, b"out of order"), times=None)
    server.fail("/dropped", Drop(), times=None)
    server.fail("/half", Truncate(10), times=None)
    server.fail("/refused-by-half", Response(403, {}, b"x" * 100, keep=10), times=None)
    calls: list[Callable[[], object]] = [
        lambda: http.request("GET", f"{server.url}/500"),
        lambda: http.request("GET", f"{server.url}/dropped"),
        lambda: http.download(
            f"{server.url}/half", tmp_path / "new", expected=bytes_digest(CONTENT)
        ),
        lambda: http.download(f"{server.url}/half", old, expected=DIGEST),
        lambda: http.download(f"{server.url}/refused-by-half", old, expected=DIGEST),
        lambda: http.request("GET", f"{closed}/closed"),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        failures = list(pool.map(failure, calls))
    for error, seconds in failures:
        assert isinstance(error, UpstreamError)
        assert seconds < 60
    assert "answered 500" in failures[0][0].what
    assert "out of order" in failures[0][0].detail
    assert {error.what for error, _ in failures[1:]} == {"could not be reached"}
    assert server.count("/500") == server.count("/dropped") == ATTEMPTS
    assert server.count("/half") == 2 * ATTEMPTS
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_bytes() == b"old"


def test_a_download_is_retried_and_checked(server: Echo, http: Http, tmp_path: Path) -> None:
    server.fail("GET", Truncate(10))
    server.fail("GET", Response(503, AT_ONCE, b"an error page that is longer" * 1000))
    file = tmp_path / "file"
    http.download(f"{server.url}/x", file, expected=DIGEST)
    assert file.read_bytes() == CONTENT
    with pytest.raises(UpstreamError, match="other bytes"):
        http.download(f"{server.url}/x", file, expected=bytes_digest(b"else"))
    assert file.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_page_instead_of_json_is_shown(server: Echo, http: Http) -> None:
    server.fail("GET", html_page())
    answer = http.request("GET", f"{server.url}/x?signature=secret")
    with pytest.raises(UpstreamError, match="Be right back") as caught:
        answer.json()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/x", "https://host/x"),
        ("https://me:s@cret@host/x and http://token@b", "https://host/x and http://b"),
        ("https://host/a@b", "https://host/a@b"),
        ("git: token-1, token-2.", "git: <GITHUB_TOKEN>, <DOCKERHUB_TOKEN>."),
    ],
)
def test_redaction(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "token-1")
    monkeypatch.setenv("DOCKERHUB_TOKEN", "token-2")
    monkeypatch.setenv("GH_TOKEN", "")
    assert redact(text) == shown


def test_no_secret_reaches_an_error(
    server: Echo, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")
    server.fail("/echo", Response(403, {}, b"you sent hunter2"))
    server.fail("/dropped", Drop(), times=None)
    server.elsewhere = f"{server.url}/dropped?X-Amz-Signature=hunter3"
    address = f"http://me:hunter4@127.0.0.1:{server.port}"
    for error, _ in (
        failure(lambda: http.request("GET", f"{address}/echo?token=hunter5")),
        failure(lambda: http.request("POST", f"{address}/dropped?token=hunter5")),
        failure(lambda: http.request("POST", f"{address}/to")),
    ):
        assert "hunter" not in str(error)
        assert f"http://127.0.0.1:{server.port}/" in error.on


def test_netrc_does_not_come_before_our_header(
    server: Echo, http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    ours = {"Authorization": "Bearer ours"}
    with Echo() as other:
        http.request("GET", f"{server.url}/x", headers=ours)
        http.request("GET", f"{server.url}/x")
        server.elsewhere = f"{server.url}/x"
        http.request("GET", f"{server.url}/to", headers=ours)
        server.elsewhere = f"{other.url}/x"
        http.request("GET", f"{server.url}/to", headers=ours)
        assert server.authorizations == [
            "Bearer ours",
            None,
            *("Bearer ours", "Bearer ours"),  # on to the same host
            "Bearer ours",
        ]
        assert other.authorizations == [None]
