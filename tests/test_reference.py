"""References, digests and platforms: what is taken, what is refused, what comes out again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import ConfigurationError
from release.reference import (
    Reference,
    architecture,
    is_loopback,
    parse_digest,
    parse_platform,
)

DIGEST = parse_digest("sha256:" + "a" * 64)

registries = st.sampled_from(
    ["", "docker.io/", "ghcr.io/", "localhost/", "localhost:5000/", "127.0.0.1:5000/", "[::1]:80/"]
)
words = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)
repositories = st.lists(words, min_size=1, max_size=3).map("/".join).filter(lambda t: len(t) < 200)
tags = st.from_regex(r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?", fullmatch=True)
digests = st.sampled_from(["", f"@{DIGEST}"])


@given(registries, repositories, tags, digests)
def test_what_is_written_reads_back_the_same(
    registry: str, repository: str, tag: str, digest: str
) -> None:
    # Without a registry, a first word with a dot in it is taken for one.
    text = f"{registry or 'docker.io/'}{repository}{tag}{digest}"
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert str(reference).endswith(f"{repository}{tag}{digest}")
    assert reference.tag == (tag[1:] or None)
    assert reference.api.startswith(("http://", "https://"))


@given(st.text() | st.text(alphabet="aZ0:/@.-_[]é\n"))
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ConfigurationError:
        return
    assert Reference.parse(str(reference)) == reference
    assert reference.api


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("alpine", "docker.io/library/alpine"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("linuxkit/kernel:5.4.39", "docker.io/linuxkit/kernel:5.4.39"),
        ("docker.io/alpine", "docker.io/library/alpine"),
        ("index.docker.io/a/b", "docker.io/a/b"),
        ("registry-1.docker.io/a/b", "docker.io/a/b"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("ghcr.io", "docker.io/library/ghcr.io"),
        ("localhost/a", "localhost/a"),
        (f"a/b:1@{DIGEST}", f"docker.io/a/b:1@{DIGEST}"),
    ],
)
def test_normalisation(text: str, written: str) -> None:
    assert str(Reference.parse(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "a/", "/a", "A/b", "a b", "a:", "a@", "a:-1", "a:" + "t" * 129, "a" * 256),
        *("a@sha256:abc", f"a@{DIGEST}\n", "a@sha512:" + "a" * 64, f"a@{DIGEST.upper()}"),
        *("-host.io/a", "host:port/a", "[::1/a", "[x]/a", "https://ghcr.io/a"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an image reference"):
        Reference.parse(text)


def test_pinning_and_naming() -> None:
    reference = Reference.parse(f"a/b:1@{DIGEST}")
    assert str(reference.name) == "docker.io/a/b"
    assert str(reference.with_tag("2")) == "docker.io/a/b:2"
    assert str(reference.at(DIGEST)) == f"docker.io/a/b@{DIGEST}"
    with pytest.raises(ConfigurationError, match="is not an image tag"):
        reference.with_tag("x" * 129)


@pytest.mark.parametrize(
    ("text", "api"),
    [
        ("a/b", "https://registry-1.docker.io"),
        ("ghcr.io/a", "https://ghcr.io"),
        ("localhost:5000/a", "http://localhost:5000"),
        ("registry.localhost/a", "http://registry.localhost"),
        ("127.0.0.1:5000/a", "http://127.0.0.1:5000"),
        ("127.1.2.3/a", "http://127.1.2.3"),
        ("[::1]:5000/a", "http://[::1]:5000"),
        ("[2001:db8::1]:5000/a", "https://[2001:db8::1]:5000"),
        ("localhost.example.org/a", "https://localhost.example.org"),
        ("127.0.0.1.example.org/a", "https://127.0.0.1.example.org"),
        ("10.0.0.1:5000/a", "https://10.0.0.1:5000"),
    ],
)
def test_only_loopback_is_spoken_to_without_tls(text: str, api: str) -> None:
    reference = Reference.parse(text)
    assert reference.api == api
    assert is_loopback(reference.registry) == api.startswith("http:")


@pytest.mark.parametrize(
    "text", ["", "sha256:", "a" * 64, DIGEST.upper(), DIGEST[:-1], DIGEST + "a"]
)
def test_refused_digests(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a digest"):
        parse_digest(text)


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/amd64"])
def test_platforms(text: str) -> None:
    assert architecture(parse_platform(text)) == text.split("/")[1]


@pytest.mark.parametrize(
    "text", ["", "amd64", "linux", "linux/", "Linux/amd64", "a/b/c/d", "a b/c"]
)
def test_refused_platforms(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a platform"):
        parse_platform(text)
