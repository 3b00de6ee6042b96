"""Secrets: whatever happens, they are in nothing that a run leaves behind, nor in its children."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from release.build import Builder
from release.engine import Engine
from release.errors import BuildError, ReleaseError
from release.http import Http, bytes_digest, redact, without_secrets
from release.reference import Reference
from release.registry import Registry
from tests.lab.leaks import found_in, leaks
from tests.lab.server import LabServer, Request, Response
from tests.lab.small_registry import SmallRegistry
from tests.recorded import Recorded
from tests.test_cli import Desk

SECRETS = {
    "GITHUB_TOKEN": "ghp_planted0github0token0",
    "DOCKERHUB_TOKEN": "dckr_pat_planted0hub0token0",
    "the registry's password": "planted0registry0password0",
}
PASSWORD = SECRETS["the registry's password"]
LOGIN = base64.b64encode(f"me:{PASSWORD}".encode()).decode()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        desk.github.add_token(SECRETS["GITHUB_TOKEN"], push=["me/install-zfs"])
        desk.hub.accounts["me"] = SECRETS["DOCKERHUB_TOKEN"]
        config = desk.directory / "docker-config"
        config.mkdir()
        auths = {desk.registry.host: {"auth": LOGIN}}
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        yield desk


def run(desk: Desk, command: str) -> dict[str, str | bytes]:
    """All that a command writes, and what the outside worlds hold after it."""
    summary = desk.path.parent / "summary.md"
    arguments = [command] if command == "poll" else [command, "--json", "outcomes.json"]
    finished = desk.run(
        *arguments,
        GITHUB_TOKEN=SECRETS["GITHUB_TOKEN"],
        DOCKERHUB_USERNAME="me",
        DOCKERHUB_TOKEN=SECRETS["DOCKERHUB_TOKEN"],
        DOCKER_CONFIG=str(desk.directory / "docker-config"),
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    held: dict[str, str | bytes] = {**desk.registry.blobs}
    held |= {
        f"{name} {tag}": content
        for name, manifests in desk.registry.manifests.items()
        for tag, (_, content) in manifests.items()
    }
    releases = json.dumps([[one.name, one.body] for one in desk.releases.releases])
    asked = "\n".join(
        f"{one.path}?{one.query}"
        for server in (desk.hub, desk.github, desk.registry)
        for one in server.requests
    )
    return {
        "stdout": finished.stdout,
        "stderr": finished.stderr,
        "releases": releases,
        "addresses": asked,
        **held,
    }


def shown(*secrets: str) -> bytes:
    """What a server says that shows what it was sent, as some proxies' error pages do."""
    encoded = [base64.b64encode(secret.encode()).decode() for secret in secrets]
    return "\n".join(("You sent Authorization:", *secrets, *encoded)).encode()


@pytest.mark.parametrize("command", ["status", "plan", "poll", "sync"])
def test_no_secret_is_in_what_a_run_leaves(desk: Desk, command: str) -> None:
    desk.registry.auth, desk.registry.password = "Basic", PASSWORD
    desk.hub.anonymous_offset = 0
    texts = run(desk, command)
    assert leaks(SECRETS, texts, [desk.path.parent]) == []


@pytest.mark.parametrize("status", [401, 403, 404, 500])
@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "DOCKERHUB_TOKEN"])
def test_no_secret_is_in_an_error_when_a_server_repeats_it(
    desk: Desk, status: int, name: str
) -> None:
    server, command = (desk.github, "status") if name == "GITHUB_TOKEN" else (desk.hub, "poll")
    answer = Response(status, {"Retry-After": "0"}, shown(SECRETS[name]))
    server.fail("GET", answer, times=None)
    desk.registry.auth, desk.registry.password = "Basic", PASSWORD
    texts = run(desk, command)
    assert "You sent Authorization" in str(texts["stderr"]), "the error is the server's"
    assert leaks(SECRETS, texts, [desk.path.parent]) == []


class Repeating(SmallRegistry):
    """A registry that refuses those who are signed in, and shows them what they sent."""

    def respond(self, request: Request) -> Response:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return super().respond(request)
        plain = base64.b64decode(value).decode() if scheme == "Basic" else ""
        if request.path == "/token":
            token = {"token": "given0by0the0token0server"}
            return Response(200, {}, json.dumps(token).encode())
        return Response(403, {}, shown(value, *filter(None, (plain, plain.partition(":")[2]))))


@pytest.mark.parametrize("auth", ["Basic", "Bearer"])
def test_no_password_is_in_an_error_when_a_registry_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: Literal["Basic", "Bearer"]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Repeating(auth=auth, password=PASSWORD) as server:
        auths = {server.host: {"auth": LOGIN}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        with pytest.raises(ReleaseError) as caught:
            Registry(Http(), {}).tags(Reference.parse(f"{server.host}/a/b"))
    assert "You sent Authorization" in str(caught.value)
    secrets = {**SECRETS, "the token": "given0by0the0token0server"}
    assert leaks(secrets, {"error": str(caught.value)}) == []


class Elsewhere(LabServer):
    """Another host; keeps all that it is sent, and shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = ""

    def respond(self, request: Request) -> Response:
        self.sent += f"{request.line}\n{request.headers}\n" + b"".join(request.body).decode()
        return Response(403, {}, self.sent.encode())


def test_no_secret_goes_to_another_host(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(desk.directory / "docker-config"))
    desk.registry.auth, desk.registry.password = "Basic", PASSWORD
    with Elsewhere() as other:
        for server in (desk.github, desk.hub, desk.registry):
            server.fail(
                "GET /(?!token)", Response(307, {"Location": f"{other.url}/x?y=z"}), times=None
            )
        texts = {
            f"{name} of {command}": text
            for command in ("status", "poll")
            for name, text in run(desk, command).items()
        }
        assert other.count("GET /x") >= 3
        assert leaks(SECRETS, {**texts, "elsewhere": other.sent}, [desk.path.parent]) == []


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_no_secret_is_in_what_is_published_nor_in_what_stays_here(
    tmp_path: Path, ends: str
) -> None:
    """A whole run, with what its children are given and what they show to the process list."""
    cached = {**SECRETS, "ACTIONS_RUNTIME_TOKEN": "planted0runtime0token0"}
    with Recorded(tmp_path / "setup") as setup:
        kernel = setup.push_kernel("5.4.39")
        setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
        setup.github.add_token(SECRETS["GITHUB_TOKEN"], push=[setup.releases.full_name])
        setup.small.auth, setup.small.password = "Basic", PASSWORD
        config = tmp_path / "docker-config"
        config.mkdir()
        (config / "config.json").write_text(json.dumps({"auths": {setup.host: {"auth": LOGIN}}}))
        children = tmp_path / "children"
        for program in (setup.directory / "bin").iterdir():
            text = program.read_text()
            record = f'printf "%s\\n" "$@" >>{children}\nexport -p >>{children}\n'
            program.write_text(text.replace("exec ", f"{record}exec ", 1))
        if ends == "badly":
            (setup.results / kernel.digest.replace(":", "-") / "zfs.ko").unlink()
        run = setup.run(
            "sync",
            DOCKERHUB_USERNAME="me",
            GITHUB_ACTIONS="true",
            GITHUB_STEP_SUMMARY=str(setup.directory / "summary"),
            DOCKER_CONFIG=str(config),
            **{name: secret for name, secret in cached.items() if name.isupper()},
        )
        assert [one["status"] for one in run.outcomes] == [
            "published" if ends == "well" else "failed"
        ], run
        held: dict[str, str | bytes] = dict(setup.small.blobs)
        for name, manifests in setup.small.manifests.items():
            held |= {f"{name} {tag}": content for tag, (_, content) in manifests.items()}
        for release in setup.releases.releases:
            held |= {f"the notes of {release.tag_name}": release.body or ""}
            assets = {one.name: one.content for one in release.assets}
            held |= {name: raw for name, raw in assets.items() if isinstance(raw, bytes)}
        held |= {"stdout": run.stdout, "stderr": run.stderr}
        assert children.read_text().count("buildx") > 1
        assert leaks(cached, held, [setup.directory]) == []
        assert leaks(SECRETS, {"children": children.read_bytes()}) == []


def test_a_program_that_is_run_gets_no_token_and_shows_none_to_the_process_list(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = desk.directory / "seen"
    desk.provide("docker", script=f'echo "$@" >>{seen}\nexport -p >>{seen}\nexit 1')
    environment = {
        "PATH": str(desk.bin),
        "GITHUB_TOKEN": SECRETS["GITHUB_TOKEN"],
        "DOCKERHUB_TOKEN": SECRETS["DOCKERHUB_TOKEN"],
        "DOCKER_CONFIG": str(desk.directory / "docker-config"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    builder = Builder(desk.directory / "cache", environment)
    with pytest.raises(BuildError):
        builder.kernel_files(
            Reference.parse("linuxkit/kernel:1"),
            bytes_digest(b""),
            "linux/amd64",  # type: ignore[arg-type]
        )
    engine = object.__new__(Engine)
    engine._environment = without_secrets(environment)
    engine._buildx("version")
    text = seen.read_text()
    assert text.count("DOCKER_CONFIG") == 2, "what it needs to sign in itself"
    assert leaks(SECRETS, {"children": text}, [desk.directory / "cache"]) == []


def test_the_search_finds_what_it_looks_for() -> None:
    """In each alignment of base64, compressed, and in an address."""
    for text in (
        PASSWORD,
        LOGIN,
        *(base64.b64encode(f"{'u' * n}:{PASSWORD}:more".encode()).decode() for n in range(3)),
    ):
        assert found_in(text.encode(), SECRETS) == ["the registry's password"]
        assert found_in(gzip.compress(text.encode()), SECRETS) == ["the registry's password"]
    assert found_in(b"nothing", SECRETS) == []


def test_what_is_sent_as_credentials_is_not_shown(desk: Desk) -> None:
    """By whatever way it was come by, as a token that another server gave."""
    token = "given0by0another0server"
    with pytest.raises(ReleaseError):
        Http().request(
            "GET", f"{desk.github.url}/nothing", headers={"Authorization": f"Bearer {token}"}
        )
    assert redact(f"you sent {token}.") == "you sent <secret>."
    assert re.fullmatch(r"a short word", redact("a short word"))
