"""Registries: signing in, reading by digest, pushing; and what is not believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from release.errors import NotFoundError, PreflightError, PublishError, ReleaseError, UpstreamError
from release.http import Http, bytes_digest
from release.reference import Digest, Reference
from release.registry import DOCKER_INDEX, OCI_INDEX, OCI_MANIFEST, Document, Registry
from tests.lab.server import LabServer, Request, Response, html_page
from tests.lab.small_registry import SmallRegistry

BLOB = b"a layer" * 1000
NOWHERE = Digest("sha256:" + "0" * 64)


@pytest.fixture
def server() -> Iterator[SmallRegistry]:
    with SmallRegistry() as registry:
        yield registry
        assert registry.violations == []


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration of docker's, so that the user's own plays no part."""
    file = tmp_path / "docker" / "config.json"
    file.parent.mkdir()
    file.write_text("{}")
    monkeypatch.setenv("DOCKER_CONFIG", str(file.parent))
    return file


def sign_in(config: Path, server: SmallRegistry, password: str = "secret") -> None:
    login = base64.b64encode(f"me:{password}".encode()).decode()
    config.write_text(json.dumps({"auths": {server.host: {"auth": login}}}))


@pytest.fixture
def registry(docker_config: Path) -> Registry:
    assert docker_config
    return Registry(Http(), {})


def ref(server: SmallRegistry, rest: str = "a/b") -> Reference:
    return Reference.parse(f"{server.host}/{rest}")


# Reading


def test_an_index_and_its_platforms(server: SmallRegistry, registry: Registry) -> None:
    platforms: list[dict[str, Any]] = [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "linux", "architecture": "arm", "variant": "v7"},
        {"os": "unknown", "architecture": "unknown"},
    ]
    manifests = [
        {"digest": server.put_image("a/b", "x", {}, str(n)), "platform": about}
        for n, about in enumerate(platforms)
    ]
    digest = server.put("a/b", "1", {"mediaType": OCI_INDEX, "manifests": manifests}, OCI_INDEX)
    assert registry.head(ref(server, "a/b:1")) == digest
    document = registry.get(ref(server, "a/b:1"))
    assert (document.digest, document.is_index) == (digest, True)
    assert registry.platforms(ref(server), document) == {
        "linux/amd64": manifests[0]["digest"],
        "linux/arm64": manifests[1]["digest"],
        "linux/arm/v7": manifests[2]["digest"],
    }


def test_a_single_manifest_names_its_platform_in_its_configuration(
    server: SmallRegistry, registry: Registry
) -> None:
    digest = server.put_image("a/b", "1", {"Labels": {"key": "value"}}, "arm64")
    document = registry.get(ref(server, "a/b:1"))
    assert (document.is_index, document.media_type) == (False, OCI_MANIFEST)
    assert registry.platforms(ref(server), document) == {"linux/arm64": digest}
    assert registry.labels(ref(server), document.digest) == {"key": "value"}


def test_the_media_type_may_stand_in_the_header_alone(
    server: SmallRegistry, registry: Registry
) -> None:
    server.put("a/b", "1", {"manifests": []}, f"{DOCKER_INDEX}; charset=utf-8")
    assert registry.get(ref(server, "a/b:1")).is_index


def test_only_a_404_to_the_question_itself_means_that_it_is_not_there(
    server: SmallRegistry, registry: Registry
) -> None:
    assert registry.head(ref(server, "a/b:1")) is None
    with pytest.raises(NotFoundError):
        registry.get(ref(server, "a/b:1"))
    for status in (400, 401, 403):
        server.fail("HEAD", Response(status), times=None)
        with pytest.raises(ReleaseError, match=f"answered {status}"):
            registry.head(ref(server, "a/b:1"))
        server.recover()


def test_a_head_without_a_digest_is_made_up_for(server: SmallRegistry, registry: Registry) -> None:
    digest = server.put("a/b", "1", {})
    server.fail("HEAD", Response(200))
    assert registry.head(ref(server, "a/b:1")) == digest


def test_tags_are_read_to_the_last_page(server: SmallRegistry, registry: Registry) -> None:
    assert registry.tags(ref(server)) == frozenset()
    names = {f"5.4.{n}" for n in range(7)}
    for name in names:
        server.put("a/b", name, {})
    server.page = 3
    assert registry.tags(ref(server)) == names
    assert server.count("GET .*/tags/list") == 1 + 3


def test_half_a_list_of_tags_is_none(server: SmallRegistry, registry: Registry) -> None:
    server.put("a/b", "1", {})
    server.put("a/b", "2", {})
    server.page = 1
    server.fail("last=1", Response(403))
    with pytest.raises(UpstreamError, match="answered 403"):
        registry.tags(ref(server))


@pytest.mark.parametrize("host", ["http://example.org", "//example.org", "https://{host}"])
def test_a_next_page_on_another_host_is_not_asked_for(
    server: SmallRegistry, registry: Registry, host: str
) -> None:
    url = f"{host.format(host=server.host)}/v2/a/b/tags/list"
    server.fail("tags", Response(200, {"Link": f'<{url}>; rel="next"'}, b'{"tags": ["1"]}'))
    with pytest.raises(UpstreamError, match="points to another host"):
        registry.tags(ref(server))


def _platforms(registry: Registry, reference: Reference) -> object:
    return registry.platforms(reference, registry.get(reference))


MANIFEST_TYPE = {"Content-Type": OCI_MANIFEST}
PAGE = html_page()


@pytest.mark.parametrize(
    ("ask", "headers", "body"),
    [
        *((ask, PAGE.headers, PAGE.body) for ask in (Registry.get, Registry.tags)),
        *((Registry.get, {}, body) for body in (b"", b"[]", b'"x"', b"\xff")),
        *((Registry.tags, {}, body) for body in (b"[]", b'{"tags": 1}')),
        (Registry.head, {"Docker-Content-Digest": "x"}, b"{}"),
        *(
            (_platforms, {"Content-Type": OCI_INDEX}, b'{"manifests": %b}' % items)
            for items in (
                b"1",
                b"[1]",
                b'[{"digest": "x", "platform": {"os": "linux", "architecture": "amd64"}}]',
                b'[{"platform": {"os": "linux", "architecture": "amd64"}}]',
                b'[{"platform": {"os": "Linux", "architecture": "A"}}]',
            )
        ),
        (_platforms, MANIFEST_TYPE, b"{}"),
        (_platforms, MANIFEST_TYPE, b'{"config": {"digest": "x"}}'),
    ],
)
def test_answers_in_other_shapes_are_expected_failures(
    server: SmallRegistry,
    registry: Registry,
    ask: Callable[[Registry, Reference], object],
    headers: dict[str, str],
    body: bytes,
) -> None:
    server.fail("", Response(200, headers, body), times=None)
    with pytest.raises(UpstreamError):
        ask(registry, ref(server, "a/b:1"))


def test_other_bytes_than_the_digest_names_are_refused(
    server: SmallRegistry, registry: Registry, tmp_path: Path
) -> None:
    digest = Digest(server.put_image("a/b", "1", {}))
    document = registry.get(ref(server).at(digest))
    server.manifests["a/b"][digest] = (OCI_MANIFEST, b"{}")
    with pytest.raises(UpstreamError, match="other bytes than the digest names"):
        registry.get(ref(server).at(digest))
    for name in server.blobs:
        server.blobs[name] = b"{}"
    with pytest.raises(UpstreamError, match="does not have its digest"):
        registry.config(ref(server), document)
    file = tmp_path / "blob"
    with pytest.raises(UpstreamError, match="other bytes than the digest names"):
        registry.download(ref(server), Digest(name), file)
    assert not file.exists()


class Storage(LabServer):
    """Where a registry keeps its blobs; refuses what is not for it, as S3 does."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        super().__init__()
        self.blobs = blobs

    def respond(self, request: Request) -> Response:
        if "Authorization" in request.headers:
            return Response(400, {}, b"Only one auth mechanism allowed")
        return Response(200, {}, self.blobs[request.path.rpartition("/")[2]])


def test_a_blob_kept_elsewhere_is_fetched_without_our_credentials(
    docker_config: Path, registry: Registry, tmp_path: Path
) -> None:
    with SmallRegistry(auth="Basic") as server, Storage(server.blobs) as storage:
        sign_in(docker_config, server)
        server.storage = storage.url
        digest = Digest(server.put_blob(BLOB)["digest"])
        registry.download(ref(server), digest, tmp_path / "blob")
        assert (tmp_path / "blob").read_bytes() == BLOB
        assert storage.count(f"GET /{digest}") == 1


# Signing in


@pytest.mark.parametrize("signed_in", [True, False])
def test_a_token_is_asked_for_once_with_what_the_challenge_says(
    docker_config: Path, registry: Registry, signed_in: bool
) -> None:
    with SmallRegistry(auth="Bearer") as server:
        if signed_in:
            sign_in(docker_config, server)
        server.put("a/b", "1", {})
        server.put("c/d", "1", {})
        for _ in range(3):
            assert registry.head(ref(server, "a/b:1"))
            assert registry.tags(ref(server)) == {"1"}
        assert registry.head(ref(server, "c/d:1"))
        assert server.tokens == ["repository:a/b:pull", "repository:c/d:pull"]
        assert server.violations == []


def test_basic_authentication(docker_config: Path, registry: Registry) -> None:
    with SmallRegistry(auth="Basic") as server:
        server.put("a/b", "1", {})
        with pytest.raises(PreflightError, match="answered 401") as caught:
            registry.head(ref(server, "a/b:1"))
        assert "docker login" in caught.value.hint
        sign_in(docker_config, server)
        assert registry.head(ref(server, "a/b:1"))


def test_docker_hub_s_variables_are_for_docker_hub_alone(docker_config: Path) -> None:
    assert docker_config
    hub_login = {"DOCKERHUB_USERNAME": "me", "DOCKERHUB_TOKEN": "secret"}
    with SmallRegistry(auth="Basic") as server:
        server.put("a/b", "1", {})
        with pytest.raises(PreflightError, match="answered 401"):
            Registry(Http(), hub_login).head(ref(server, "a/b:1"))


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "example.org/token"])
def test_a_token_is_not_asked_for_anywhere(
    server: SmallRegistry, registry: Registry, realm: str
) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="small"'}
    server.fail("manifests", Response(401, challenge))
    with pytest.raises(UpstreamError, match="unsafe place"):
        registry.head(ref(server, "a/b:1"))


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'"token"', b"<html>"])
def test_a_token_that_is_none(registry: Registry, answer: bytes) -> None:
    with SmallRegistry(auth="Bearer") as server:
        server.fail("/token", Response(200, {}, answer))
        with pytest.raises(UpstreamError):
            registry.head(ref(server, "a/b:1"))


# Writing


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    file = tmp_path / "layer"
    file.write_bytes(BLOB)
    return file


@pytest.mark.parametrize("auth", ["", "Basic", "Bearer"])
@pytest.mark.parametrize("absolute", [False, True])
def test_upload(
    docker_config: Path, registry: Registry, blob: Path, auth: Any, absolute: bool
) -> None:
    with SmallRegistry(auth=auth) as server:
        sign_in(docker_config, server)
        server.upload_host = server.url if absolute else ""
        digest = bytes_digest(BLOB)
        registry.upload(ref(server), digest, blob)
        assert server.blobs == {digest: BLOB}
        registry.upload(ref(server), digest, blob)
        assert server.count("^PUT") == 1
        assert server.violations == []


@pytest.mark.parametrize("headers", [{}, {"Location": "http://example.org/v2/a/b/uploads/1"}])
def test_an_upload_does_not_go_on_elsewhere(
    server: SmallRegistry, registry: Registry, blob: Path, headers: dict[str, str]
) -> None:
    server.fail("POST", Response(202, headers), times=None)
    with pytest.raises(UpstreamError):
        registry.upload(ref(server), bytes_digest(BLOB), blob)
    assert server.blobs == {}


MANIFEST = b'{"schemaVersion": 2}'
DOCUMENT = Document(bytes_digest(MANIFEST), OCI_MANIFEST, MANIFEST)


def test_a_manifest_is_put_and_read_back(server: SmallRegistry, registry: Registry) -> None:
    registry.put(ref(server, "a/b:1"), DOCUMENT)
    assert server.manifests["a/b"]["1"] == (OCI_MANIFEST, MANIFEST)
    assert [request.method for request in server.requests] == ["PUT", "HEAD"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [(Response(404), "nothing"), (Response(200, {"Docker-Content-Digest": NOWHERE}), NOWHERE)],
)
def test_a_manifest_that_reads_back_differently(
    server: SmallRegistry, registry: Registry, answer: Response, found: str
) -> None:
    server.fail("HEAD", answer)
    with pytest.raises(PublishError, match="reads back as another image") as caught:
        registry.put(ref(server, "a/b:1"), DOCUMENT)
    assert f"found  {found}" in caught.value.detail


def test_whether_one_may_push_is_found_out_without_pushing(
    docker_config: Path, registry: Registry
) -> None:
    with SmallRegistry(auth="Bearer") as server:
        with pytest.raises(PreflightError, match="may not push") as caught:
            registry.check_push(ref(server))
        assert caught.value.hint == f"run: docker login {server.host}"
        sign_in(docker_config, server)
        Registry(Http(), {}).check_push(ref(server))
        assert server.tokens[-1] == "repository:a/b:pull,push"
        assert [request.method for request in server.requests][-2:] == ["POST", "DELETE"]
        assert (server.blobs, server.manifests) == ({}, {})


def test_a_blob_is_checked_and_its_beginning_may_be_asked_for(
    server: SmallRegistry, registry: Registry
) -> None:
    digest = Digest(server.put_blob(BLOB)["digest"])
    assert registry.blob(ref(server), digest) == BLOB
    assert registry.blob(ref(server), digest, first=10) == BLOB, "it knows no ranges"
    server.fail("blobs", Response(206, {}, BLOB[:10]))
    assert registry.blob(ref(server), digest, first=10) == BLOB[:10]
    server.fail("blobs", Response(200, {}, b"other bytes"))
    with pytest.raises(UpstreamError, match="other bytes"):
        registry.blob(ref(server), digest)
