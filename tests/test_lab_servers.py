"""The lab's servers, held to the published descriptions of what they stand in for."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.lab.gateway import Gateway
from tests.lab.github import GitHub, Repository
from tests.lab.hub import Hub
from tests.lab.server import (
    Delay,
    Drop,
    Effect,
    EffectCounter,
    Fault,
    LabServer,
    Phase,
    Recorded,
    Request,
    Response,
    Truncate,
    html_page,
    retry_after,
)
from tests.lab.standin import RateLimit

DIGEST = "sha256:" + "1" * 64
META = b"Linux-Maximum: 6.2\n"
DAY = datetime(2024, 5, 1, tzinfo=UTC)


class Upstream(LabServer):
    """A tiny server with the traits of a registry; keeps what was uploaded."""

    uploaded = b""

    def respond(self, request: Request) -> Response:
        self.uploaded = b"".join(request.body)
        if request.path == "/absolute":
            return Response(202, {"Location": f"{self.url}/there"}, b"")
        if request.path == "/relative":
            return Response(202, {"Location": "/there"}, b"")
        if request.path == "/stream":
            return Response(200, {}, (b"block %d" % number for number in range(3)))
        if request.path == "/host":
            return Response(200, {}, request.headers["Host"].encode())
        content = bytes(range(256)) * 1000
        if text := request.headers.get("Range"):
            first, last = map(int, text.removeprefix("bytes=").split("-"))
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return Response(206, headers, content[first : last + 1])
        return Response(200, {"Docker-Content-Digest": DIGEST}, content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(accounts={"me": "secret"}) as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def gateway(upstream: Upstream) -> Iterator[Gateway]:
    with Gateway(upstream.url) as server:
        yield server


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as server:
        server.add(Repository("me", "install-zfs"))
        server.add_token("writer", push=["me/install-zfs"])
        server.add_token("reader")
        yield server


class Client:
    """A client of the GitHub stand-in's one repository."""

    def __init__(self, server: GitHub, token: str = "writer", repo: str = "me/install-zfs") -> None:
        self.url = f"{server.url}/repos/{repo}"
        self.auth = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = self.auth | options.pop("headers", {})
        url = path if path.startswith("http") else self.url + path
        return requests.request(method, url, headers=headers, timeout=10, **options)

    def create(self, tag: str = "v1", *, draft: bool = True) -> Any:
        answer = self("POST", "/releases", json={"tag_name": tag, "draft": draft})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def upload(self, release: Any, name: str, content: bytes = b"content") -> requests.Response:
        url = release["upload_url"].replace("{?name,label}", "")
        kind = {"Content-Type": "application/octet-stream"}
        return self("POST", url, params={"name": name}, data=content, headers=kind)

    def publish(self, release: Any) -> requests.Response:
        return self("PATCH", f"/releases/{release['id']}", json={"draft": False})


@pytest.fixture
def client(github: GitHub) -> Client:
    return Client(github)


def codes(answer: requests.Response) -> list[tuple[str, str]]:
    return [(error.get("field", ""), error["code"]) for error in answer.json()["errors"]]


# -- faults, effects, log ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Response(403, {}, b"no"), 403),
        (Response(500), 500),
        (Response(503), 503),
        (retry_after(7), 429),
        (html_page(), 200),
    ],
)
def test_a_response_as_fault_takes_the_place_of_the_answer(
    hub: Hub, fault: Response, status: int
) -> None:
    hub.fail("GET .*/tags", fault)
    url = f"{hub.url}/v2/repositories/a/b/tags"
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.content) == (status, fault.body)
    assert {*fault.headers.items()} <= {*answer.headers.items()}
    assert requests.get(url, timeout=10).json()["count"] == 0
    assert [entry.status for entry in hub.requests] == [status, 200]


def test_retry_after_as_a_date() -> None:
    when = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=90)
    assert parsedate_to_datetime(retry_after(when).headers["Retry-After"]) == when


@pytest.mark.parametrize("fault", [Drop(), Drop(applied=True), Truncate(10)])
def test_a_broken_connection(hub: Hub, fault: Fault) -> None:
    hub.fail("tags", fault, times=None)
    for _ in range(2):
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            requests.get(f"{hub.url}/v2/repositories/a/b/tags", timeout=10)
    hub.recover()
    assert requests.get(f"{hub.url}/v2/repositories/a/b/tags", timeout=10).ok


def test_a_delay(hub: Hub) -> None:
    hub.fail("tags", Delay(0.2))
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{hub.url}/v2/repositories/a/b/tags", timeout=0.05)


def test_faults_come_one_after_the_other_and_match_the_query(hub: Hub) -> None:
    hub.repository("a", "b").push("1", DIGEST)
    hub.fail("page=2", Response(500))
    hub.fail("tags", Response(503))
    url = f"{hub.url}/v2/repositories/a/b/tags"
    pages = ("page=2", "page=2", "page=1")
    assert [requests.get(f"{url}?{page}", timeout=10).status_code for page in pages] == [
        500,
        503,
        200,
    ]


def test_the_log_knows_what_was_asked(hub: Hub) -> None:
    requests.head(f"{hub.url}/v2/repositories/a/b/tags?page=1", timeout=10)
    assert hub.requests == [Recorded("HEAD", "/v2/repositories/a/b/tags", "page=1", 200)]
    assert hub.count("HEAD .*page=1$") == 1


def test_a_stopped_server_does_not_answer_on_kept_connections() -> None:
    with requests.Session() as session:
        with Hub() as hub:
            url = f"{hub.url}/v2/repositories/a/b/tags"
            assert session.get(url, timeout=10).ok
        with pytest.raises(requests.ConnectionError):
            session.get(url, timeout=10)


def test_a_client_that_tries_tls_learns_that_this_is_plain_http(hub: Hub) -> None:
    client_hello = b"\x16\x03\x01" + bytes(240)
    with socket.create_connection(("127.0.0.1", hub.port)) as connection:
        connection.sendall(client_hello)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert (hub.requests, hub.violations) == ([], [])


@pytest.mark.parametrize(("phase", "applied"), [("before", 1), ("after", 2)])
def test_effects_are_numbered_over_servers_and_stop_the_world(phase: Phase, applied: int) -> None:
    seen: list[Effect] = []
    killed: list[Effect] = []
    effects = EffectCounter(seen.append)
    with (
        Upstream() as upstream,
        Gateway(upstream.url, effects=effects) as gateway,
        GitHub(effects=effects) as github,
    ):
        github.add(Repository("me", "install-zfs"))
        github.add_token("writer", push=["me/install-zfs"])
        client = Client(github)
        effects.stop_at(3, phase, killed.append)
        client.create("v1")
        requests.get(gateway.url, timeout=10)
        requests.put(f"{gateway.url}/v2/x", data=b"x", timeout=10)
        for _ in range(2):  # trying again does not help
            with pytest.raises(requests.ConnectionError):
                client.create("v2")
        assert len(github.repositories["me/install-zfs"].releases) == applied
        assert [(e.server, e.method) for e in effects.effects] == [
            ("github", "POST"),
            ("gateway", "PUT"),
            ("github", "POST"),
        ]
        (effect,) = killed
        assert (effect.number, effect.phase) == (3, phase)
        assert [e.number for e in seen[:4]] == [1, 1, 2, 2]
        effects.resume()
        client.create("v3")
        assert len(effects.effects) == 1


def test_a_rate_limit_starts_again_when_its_window_ends() -> None:
    limit = RateLimit(2, window=0.05)
    assert [limit.take() for _ in range(3)] == [True, True, False]
    assert limit.headers["X-RateLimit-Remaining"] == "0"
    time.sleep(0.06)
    assert limit.take()


# -- Docker Hub --------------------------------------------------------------------------------


def test_hub_answers_in_the_recorded_shape(hub: Hub) -> None:
    hub.repository("docker", "kernel").push(
        "5.15.49-abc", DIGEST, [("linux", "arm", "v7", "sha256:" + "2" * 64, 42)], DAY
    )
    answer = requests.get(f"{hub.url}/v2/repositories/docker/kernel/tags/", timeout=10)
    (tag,) = answer.json()["results"]
    recorded = (
        "creator id last_updated last_updater last_updater_username name repository full_size v2 "
        "tag_status tag_last_pulled tag_last_pushed media_type content_type digest images"
    )
    assert sorted(tag) == sorted(recorded.split())
    assert tag["last_updated"] == "2024-05-01T00:00:00Z"
    assert (tag["digest"], tag["tag_status"], tag["full_size"]) == (DIGEST, "active", 42)
    (image,) = tag["images"]
    recorded = (
        "architecture features variant digest os os_features os_version size status last_pulled "
        "last_pushed"
    )
    assert sorted(image) == sorted(recorded.split())
    one = requests.get(
        f"{hub.url}/v2/namespaces/docker/repositories/kernel/tags/5.15.49-abc", timeout=10
    )
    assert one.json() == tag
    assert answer.headers["X-RateLimit-Limit"] == "180"
    assert answer.headers["X-RateLimit-Remaining"] == "179"
    assert int(answer.headers["X-RateLimit-Reset"]) > time.time()
    assert hub.violations == []


def test_hub_pages_newest_first(hub: Hub) -> None:
    repository = hub.repository("a", "b")
    for number in range(250):
        repository.push(f"t{number}", DIGEST, when=DAY + timedelta(days=number))
    repository.push("t7", DIGEST, when=DAY + timedelta(days=1000))
    repository.delete("t8")
    url: str | None = f"{hub.url}/v2/repositories/a/b/tags?page_size=1000&ordering=last_updated"
    pages = []
    while url:
        pages.append(requests.get(url, timeout=10).json())
        url = pages[-1]["next"]
    assert [len(page["results"]) for page in pages] == [100, 100, 49]
    assert [tag["name"] for tag in pages[0]["results"][:2]] == ["t7", "t249"]
    assert pages[0]["count"] == 249
    assert pages[0]["previous"] is None
    assert "ordering=last_updated&page=1&page_size=100" in pages[1]["previous"]
    answer = requests.get(f"{hub.url}/v2/repositories/a/b/tags?page=4&page_size=100", timeout=10)
    assert answer.status_code == 404
    assert answer.json()["message"] == "httperror 404: object not found"


def test_hub_pages_ten_by_ten_by_default(hub: Hub) -> None:
    for number in range(11):
        hub.repository("a", "b").push(f"t{number}", DIGEST)
    answer = requests.get(f"{hub.url}/v2/namespaces/a/repositories/b/tags", timeout=10)
    assert len(answer.json()["results"]) == 10


def test_hub_says_count_0_for_a_missing_repository_on_the_older_path_only(hub: Hub) -> None:
    answer = requests.get(f"{hub.url}/v2/repositories/no/where/tags", timeout=10)
    assert answer.json() == {"count": 0, "next": None, "previous": None, "results": []}
    answer = requests.get(f"{hub.url}/v2/namespaces/no/repositories/where/tags", timeout=10)
    assert (answer.status_code, answer.json()["errinfo"]) == (
        404,
        {"namespace": "no", "repository": "where"},
    )


def test_hub_leaves_the_digest_of_an_inactive_tag_out(hub: Hub) -> None:
    hub.repository("a", "b").push("old", None, [("linux", "amd64", None, DIGEST, 1)])
    tag = requests.get(f"{hub.url}/v2/repositories/a/b/tags/old", timeout=10).json()
    assert "digest" not in tag
    assert (tag["tag_status"], tag["images"][0]["status"]) == ("inactive", "inactive")


@pytest.mark.parametrize(
    ("path", "names", "key"),
    [
        ("/v2/auth/token", ("identifier", "secret"), "access_token"),
        ("/v2/users/login", ("username", "password"), "token"),
    ],
)
def test_hub_lets_only_the_signed_in_page_far(
    hub: Hub, path: str, names: tuple[str, str], key: str
) -> None:
    hub.anonymous_offset = 2
    for number in range(4):
        hub.repository("a", "b").push(f"t{number}", DIGEST)
    far = f"{hub.url}/v2/repositories/a/b/tags?page=3&page_size=1"
    assert requests.get(far.replace("page=3", "page=2"), timeout=10).ok
    refused = requests.get(far, timeout=10)
    assert (refused.status_code, refused.json()) == (
        403,
        {
            "message": "pagination offset too large for anonymous requests; "
            "sign in to page further",
            "errinfo": {},
        },
    )
    wrong = requests.post(
        hub.url + path, json=dict(zip(names, ("me", "wrong"), strict=True)), timeout=10
    )
    assert wrong.status_code == 401
    login = requests.post(
        hub.url + path, json=dict(zip(names, ("me", "secret"), strict=True)), timeout=10
    )
    header = {"Authorization": f"Bearer {login.json()[key]}"}
    assert requests.get(far, headers=header, timeout=10).ok
    assert requests.get(far, headers={"Authorization": "Bearer x"}, timeout=10).status_code == 401
    assert hub.violations == []
    assert hub.effects.effects == []


def test_hub_limits_requests_per_minute() -> None:
    with Hub(rate_limit=1) as hub:
        url = f"{hub.url}/v2/repositories/a/b/tags"
        first, second = requests.get(url, timeout=10), requests.get(url, timeout=10)
        assert (first.status_code, second.status_code) == (200, 429)
        assert 0 < int(second.headers["Retry-After"]) <= 61


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/unknown", 404),
        ("DELETE", "/v2/repositories/a/b/tags", 405),
        ("GET", "/v2/repositories/a/b/tags?pagesize=1", 422),
        ("GET", "/v2/repositories/a/b/tags?page=0", 422),
        ("GET", "/v2/repositories/a/b/tags?ordering=name", 400),
        ("GET", "/v2/namespaces/a/repositories/b/tags?ordering=last_updated", 422),
        ("POST", "/v2/auth/token", 415),
    ],
)
def test_hub_is_strict(hub: Hub, method: str, path: str, status: int) -> None:
    assert requests.request(method, hub.url + path, timeout=10).status_code == status
    assert len(hub.violations) == 1


# -- GitHub ------------------------------------------------------------------------------------


def test_github_release_from_draft_to_published(github: GitHub, client: Client) -> None:
    release = client.create("v1")
    assert release["draft"]
    assert release["published_at"] is None
    assert "/untagged-" in release["html_url"]
    uploaded = client.upload(release, "a.tar.xz", b"tar")
    assert uploaded.status_code == 201
    asset = uploaded.json()
    assert (asset["state"], asset["size"]) == ("uploaded", 3)
    assert asset["digest"] == "sha256:" + hashlib.sha256(b"tar").hexdigest()
    assert client("GET", "/releases/tags/v1").status_code == 404
    assert client("GET", "/releases/latest").status_code == 404
    assert client("GET", "/git/ref/tags/v1").status_code == 404
    assert [r["id"] for r in client("GET", "/releases").json()] == [release["id"]]
    for other in (Client(github, ""), Client(github, "reader")):
        assert other("GET", "/releases").json() == []
        assert other("GET", f"/releases/{release['id']}").status_code == 404

    published = client.publish(release).json()
    assert (published["draft"], published["immutable"]) == (False, False)
    anonymous = Client(github, "")
    assert anonymous("GET", "/releases/tags/v1").json() == published
    assert anonymous("GET", "/releases/latest").json() == published
    assert client("GET", "/git/ref/tags/v1").json()["ref"] == "refs/tags/v1"
    refs = client("GET", "/git/matching-refs/tags/v").json()
    assert [ref["ref"] for ref in refs] == ["refs/tags/v1"]
    download = requests.get(published["assets"][0]["browser_download_url"], timeout=10)
    assert download.content == b"tar"

    assert client("DELETE", f"/releases/{release['id']}").status_code == 204
    assert client("GET", "/releases/tags/v1").status_code == 404
    assert client("GET", "/git/ref/tags/v1").ok, "the git tag outlives the release"
    assert github.violations == []


def test_github_tags_are_taken_by_published_releases_only(client: Client) -> None:
    first, second = client.create("v1"), client.create("v1")
    assert client.publish(first).ok
    assert codes(client.publish(second)) == [("tag_name", "already_exists")]
    again = client("POST", "/releases", json={"tag_name": "v1"})
    assert (again.status_code, codes(again)) == (422, [("tag_name", "already_exists")])
    assert client("POST", "/releases", json={"tag_name": "a b"}).status_code == 422


def test_github_latest_leaves_prereleases_and_the_unwanted_out(client: Client) -> None:
    client.create("v1", draft=False)
    for extra in ({"prerelease": True}, {"make_latest": "false"}):
        wanted = {"tag_name": f"v2-{'-'.join(extra)}", "draft": False, **extra}
        assert client("POST", "/releases", json=wanted).status_code == 201
    assert client("GET", "/releases/latest").json()["tag_name"] == "v1"


def test_github_assets(github: GitHub, client: Client) -> None:
    release = client.create()
    asset = client.upload(release, "odd name.tar").json()
    assert asset["name"] == "odd.name.tar"
    assert codes(client.upload(release, "odd.name.tar")) == [("name", "already_exists")]
    assert client.upload(release, "empty", b"").status_code == 422
    assert client("GET", asset["url"]).json() == asset
    binary = {"Accept": "application/octet-stream"}
    assert client("GET", asset["url"], headers=binary).content == b"content"
    redirect = client("GET", asset["url"], headers=binary, allow_redirects=False)
    assert redirect.status_code == 302
    renamed = client("PATCH", asset["url"], json={"name": "b", "label": "B"}).json()
    assert (renamed["name"], renamed["label"]) == ("b", "B")
    listed = client("GET", f"/releases/{release['id']}/assets").json()
    assert [found["name"] for found in listed] == ["b"]
    assert client("DELETE", asset["url"]).status_code == 204
    assert client("GET", asset["url"]).status_code == 404
    assert github.violations == []
    # The storage is another host, and wants no token of ours.
    location = redirect.headers["Location"]
    assert client("GET", location).status_code == 400
    assert len(github.violations) == 1


@pytest.mark.parametrize("fault", [Drop(), Response(502), None])
def test_github_broken_upload_leaves_a_starter(
    github: GitHub, client: Client, fault: Fault | None
) -> None:
    release = client.create()
    if fault:
        github.fail("POST /uploads/", fault)
        try:
            assert client.upload(release, "a").status_code == 502
        except requests.ConnectionError:
            assert fault == Drop()
    else:
        path = release["upload_url"].removeprefix(github.url).replace("{?name,label}", "?name=a")
        head = (
            f"POST {path} HTTP/1.1\r\n"
            "Host: here\r\nAuthorization: Bearer writer\r\nContent-Length: 100\r\n\r\nhalf"
        )
        with socket.create_connection(("127.0.0.1", github.port)) as connection:
            connection.sendall(head.encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    (asset,) = client("GET", f"/releases/{release['id']}/assets").json()
    assert (asset["state"], asset["size"], asset["digest"]) == ("starter", 0, None)
    assert codes(client.upload(release, "a")) == [("name", "already_exists")]
    assert client("DELETE", asset["url"]).status_code == 204
    assert client.upload(release, "a").status_code == 201


def test_github_upload_applied_without_an_answer(github: GitHub, client: Client) -> None:
    release = client.create()
    github.fail("POST /uploads/", Drop(applied=True))
    with pytest.raises(requests.ConnectionError):
        client.upload(release, "a")
    (asset,) = client("GET", f"/releases/{release['id']}/assets").json()
    assert asset["state"] == "uploaded"


def test_github_immutable_releases(github: GitHub, client: Client) -> None:
    github.repositories["me/install-zfs"].immutable_releases = True
    release = client.create("v1")
    asset = client.upload(release, "a").json()
    assert client.publish(release).json()["immutable"]
    refused = client.upload(release, "b")
    assert (refused.status_code, refused.json()["message"]) == (
        422,
        "Cannot upload assets to an immutable release.",
    )
    one = f"/releases/{release['id']}"
    assert client("DELETE", asset["url"]).status_code == 422
    assert client("PATCH", asset["url"], json={"name": "c"}).status_code == 422
    assert client("PATCH", one, json={"tag_name": "v2"}).status_code == 422
    assert client("PATCH", one, json={"draft": True}).status_code == 422
    assert client("PATCH", one, json={"body": "notes"}).json()["body"] == "notes"
    assert client("DELETE", one).status_code == 204
    burned = client("POST", "/releases", json={"tag_name": "v1", "draft": False})
    assert burned.status_code == 422
    assert burned.json()["errors"][0]["message"] == "tag_name was used by an immutable release"
    draft = client.create("v1")
    assert client.publish(draft).status_code == 422
    assert github.violations == []


def test_github_pages_with_links(github: GitHub, client: Client) -> None:
    repository = github.repositories["me/install-zfs"]
    for number in range(230):
        repository.add_release(f"v{number}")
    assert len(client("GET", "/releases").json()) == 30
    url, sizes = f"{client.url}/releases?per_page=1000", []
    while url:
        answer = client("GET", url)
        sizes.append(len(answer.json()))
        url = answer.links.get("next", {}).get("url", "")
    assert sizes == [100, 100, 30]
    assert answer.links["prev"]["url"].endswith("page=2")
    assert client("GET", "/releases?page=99").json() == []
    assert client("GET", "/releases").json()[0]["tag_name"] == "v229"


def test_github_serves_openzfs(github: GitHub, tmp_path: Path) -> None:
    tarball = tmp_path / "zfs-2.1.11.tar.gz"
    tarball.write_bytes(b"0123456789" * 50_000)
    openzfs = github.add(Repository("openzfs", "zfs", default_branch="master"))
    openzfs.add_release("zfs-2.1.11", {tarball.name: tarball})
    openzfs.add_release("zfs-2.2.0-rc1", prerelease=True)
    openzfs.contents["zfs-2.1.11", "META"] = META
    client = Client(github, "", "openzfs/zfs")
    newest, release = client("GET", "/releases").json()
    assert newest["prerelease"]
    (asset,) = release["assets"]
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    assert (asset["size"], asset["digest"]) == (500_000, f"sha256:{digest}")
    content = client("GET", asset["browser_download_url"]).content
    assert content == tarball.read_bytes()
    meta = client("GET", "/contents/META?ref=zfs-2.1.11").json()
    assert (meta["encoding"], meta["content"]) == ("base64", "TGludXgtTWF4aW11bTogNi4yCg==\n")
    raw = {"Accept": "application/vnd.github.raw+json"}
    assert client("GET", "/contents/META?ref=zfs-2.1.11", headers=raw).content == META
    assert client("GET", "/contents/META?ref=zfs-9").status_code == 404
    assert github.violations == []


def test_github_tokens(github: GitHub, client: Client) -> None:
    github.add(Repository("me", "private", private=True))
    github.add_token("actions", push=["me/install-zfs"], installation=True)
    github.add_token("owner", pull=["me/private"])
    wanted = {"json": {"tag_name": "v1"}}
    assert Client(github, "wrong")("GET", "").status_code == 401
    assert Client(github, "")("POST", "/releases", **wanted).status_code == 401
    refused = Client(github, "reader")("POST", "/releases", **wanted)
    assert (refused.status_code, refused.json()["message"]) == (
        403,
        "Resource not accessible by personal access token",
    )
    assert Client(github, "", "me/private")("GET", "").status_code == 404
    assert Client(github, "owner", "me/private")("GET", "").ok
    assert "permissions" not in Client(github, "")("GET", "").json()
    assert client("GET", "").json()["permissions"]["push"] is True
    assert Client(github, "reader")("GET", "").json()["permissions"]["push"] is False
    actions = Client(github, "actions")
    assert actions("GET", "").json()["permissions"]["push"] is False
    assert actions("POST", "/releases", **wanted).status_code == 201
    installation = f"{github.url}/installation/repositories"
    (found,) = actions("GET", installation).json()["repositories"]
    assert found["full_name"] == "me/install-zfs"
    assert client("GET", installation).status_code == 403
    assert github.violations == []


def test_github_attestations(github: GitHub, client: Client) -> None:
    github.add_token("may not sign", push=["me/install-zfs"], attestations="read")
    subjects = [{"name": "image", "digest": {"sha256": "a" * 64}}]
    statement = {"predicateType": "https://slsa.dev/provenance/v1", "subject": subjects}
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    wanted = {"json": {"bundle": {"dsseEnvelope": {"payload": payload}}}}
    path = f"/attestations/sha256:{'a' * 64}"
    assert Client(github, "may not sign")("POST", "/attestations", **wanted).status_code == 403
    assert client("GET", path).status_code == 404
    assert client("POST", "/attestations", **wanted).status_code == 201
    (found,) = Client(github, "")("GET", path).json()["attestations"]
    assert found["bundle"] == wanted["json"]["bundle"]
    assert client("GET", f"{path}?predicate_type=sbom").status_code == 404
    assert github.violations == []
    assert client("GET", "/attestations/main").status_code == 422
    assert client("POST", "/attestations", json={"bundle": {}}).status_code == 422
    assert len(github.violations) == 2


def test_github_rate_limit_is_per_token() -> None:
    with GitHub(rate_limit=1) as github:
        github.add(Repository("me", "install-zfs"))
        github.add_token("writer", push=["me/install-zfs"])
        client = Client(github)
        answer = client("GET", "", headers={"X-GitHub-Api-Version": "2026-03-10"})
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        assert answer.headers["X-GitHub-Api-Version-Selected"] == "2026-03-10"
        assert client("GET", "").status_code == 403
        assert Client(github, "")("GET", "").headers["X-RateLimit-Limit"] == "60"


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/unknown", {}, 404),
        ("PUT", "/releases", {}, 405),
        ("GET", "/releases?pages=1", {}, 422),
        ("GET", "/releases?per_page=x", {}, 422),
        ("GET", "", {"headers": {"Accept": "text/html"}}, 415),
        ("GET", "", {"headers": {"X-GitHub-Api-Version": "2020-01-01"}}, 400),
        ("POST", "/releases", {"data": "{}"}, 415),
        ("POST", "/releases", {"json": {"tag_name": "v1", "drafts": True}}, 422),
        ("POST", "/releases", {"json": {"tag_name": "v1", "draft": "yes"}}, 422),
        ("POST", "/releases", {"json": {"draft": True}}, 422),
        ("POST", "/releases", {"json": []}, 400),
    ],
)
def test_github_is_strict(
    github: GitHub, client: Client, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    assert client(method, path, **options).status_code == status
    assert len(github.violations) == 1


def test_github_wants_a_user_agent(github: GitHub) -> None:
    with socket.create_connection(("127.0.0.1", github.port)) as connection:
        connection.sendall(b"GET /repos/me/install-zfs HTTP/1.1\r\nHost: here\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 403")
    assert len(github.violations) == 1


# -- the gateway -------------------------------------------------------------------------------


def test_gateway_forwards_answers_as_they_are(gateway: Gateway, upstream: Upstream) -> None:
    direct, through = (
        requests.get(f"{server.url}/v2/x?n=1", timeout=10) for server in (upstream, gateway)
    )
    assert through.content == direct.content
    assert through.headers == direct.headers
    part = requests.get(gateway.url, headers={"Range": "bytes=10-19"}, timeout=10)
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["Content-Range"] == "bytes 10-19/256000"
    head = requests.head(gateway.url, timeout=10)
    assert (head.headers["Content-Length"], head.headers["Docker-Content-Digest"]) == (
        "256000",
        DIGEST,
    )
    stream = requests.get(f"{gateway.url}/stream", timeout=10)
    assert stream.headers["Transfer-Encoding"] == "chunked"
    assert stream.content == b"block 0block 1block 2"
    assert gateway.requests[0] == Recorded("GET", "/v2/x", "n=1", 200)
    assert gateway.violations == []


@pytest.mark.parametrize("chunked", [True, False])
def test_gateway_streams_uploads(gateway: Gateway, upstream: Upstream, chunked: bool) -> None:
    content = b"x" * 1_000_000
    blocks = (content[start : start + 99_999] for start in range(0, len(content), 99_999))
    headers = {"Expect": "100-continue"}
    answer = requests.patch(
        f"{gateway.url}/v2/x", data=blocks if chunked else content, headers=headers, timeout=10
    )
    assert answer.ok
    assert upstream.uploaded == content
    assert upstream.violations == gateway.violations == []


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_gateway_keeps_the_client_on_the_gateway(gateway: Gateway, kind: str) -> None:
    answer = requests.post(f"{gateway.url}/{kind}", timeout=10)
    where = requests.compat.urljoin(answer.url, answer.headers["Location"])
    assert where == f"{gateway.url}/there"
    assert requests.get(f"{gateway.url}/host", timeout=10).text == gateway.url[len("http://") :]


def test_gateway_passes_on_that_the_upstream_broke_off(
    gateway: Gateway, upstream: Upstream
) -> None:
    for path in ("/v2/x", "/stream"):
        upstream.fail(path, Truncate(9))
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            requests.get(gateway.url + path, timeout=10)
    upstream.fail("x", Drop())
    assert requests.get(f"{gateway.url}/x", timeout=10).status_code == 502


def test_gateway_fails_as_told(gateway: Gateway, upstream: Upstream) -> None:
    gateway.fail("PUT", Response(503))
    gateway.fail("GET", Truncate(5))
    assert requests.put(gateway.url, data=b"x" * 1_000_000, timeout=10).status_code == 503
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        requests.get(gateway.url, timeout=10)
    assert upstream.count("PUT") == 0
