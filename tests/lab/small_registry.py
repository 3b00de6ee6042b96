"""A registry of a few lines, for tests that need to see or spoil what a registry says.

Paths and answers are those of the OCI distribution specification; tokens are handed out as
``distribution`` describes ("Token Authentication Specification").
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Literal

from tests.lab.server import EffectCounter, Response
from tests.lab.standin import Call, Refusal, StandIn, json_response, route, violation

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def image_config(config: object, architecture: str = "amd64") -> bytes:
    return json.dumps({"os": "linux", "architecture": architecture, "config": config}).encode()


def image_manifest(config: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an image without layers.

    Args:
        config: the descriptor of the configuration's blob.
    """
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, **config},
        "layers": [],
    }


class SmallRegistry(StandIn):
    """Holds repositories in memory.

    Args:
        auth: how callers sign in as ``me`` with the password; empty for not at all.

    Attributes:
        manifests: media type and content by repository and tag or digest.
        blobs: content by digest, shared by all repositories.
        storage: a URL that blob downloads are redirected to, or empty.
        upload_host: what the Location of uploads begins with.
        page: how many tags one page of a list holds.
        tokens: scopes that were handed out.
    """

    def __init__(
        self,
        *,
        auth: Literal["", "Basic", "Bearer"] = "",
        password: str = "secret",
        port: int = 0,
        effects: EffectCounter | None = None,
    ) -> None:
        super().__init__(port=port, effects=effects)
        self.auth = auth
        self.password = password
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.storage = ""
        self.upload_host = ""
        self.page = 1000
        self.tokens: list[str] = []

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    # -- behind the API's back -------------------------------------------------------------------

    def put(self, repository: str, tag: str, content: object, media_type: str = MANIFEST) -> str:
        """Put a manifest under a tag and its digest, which is returned."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        held = self.manifests.setdefault(repository, {})
        held[tag] = held[digest_of(raw)] = (media_type, raw)
        return digest_of(raw)

    def put_blob(self, content: bytes, repository: str = "") -> dict[str, Any]:  # noqa: ARG002
        """Put a blob, for all repositories; returns its descriptor."""
        self.blobs[digest_of(content)] = content
        return {"digest": digest_of(content), "size": len(content)}

    def put_image(
        self, repository: str, tag: str, config: object, architecture: str = "amd64"
    ) -> str:
        """Put an image of nothing but a configuration."""
        blob = self.put_blob(image_config(config, architecture))
        return self.put(repository, tag, image_manifest(blob))

    def delete(self, repository: str) -> None:
        """Deletes a repository with all that no other one has a manifest of."""
        del self.manifests[repository]
        kept = {
            one["digest"]
            for held in self.manifests.values()
            for _, content in held.values()
            for document in [json.loads(content)]
            for one in (document.get("config"), *document.get("layers", ()))
            if one
        }
        self.blobs = {digest: blob for digest, blob in self.blobs.items() if digest in kept}

    # -- signing in ------------------------------------------------------------------------------

    def admit(self, call: Call) -> None:
        if not self.auth or call.path == "/token":
            return
        match = re.fullmatch(r"/v2/(.+?)/(?:manifests|blobs|tags)/.*", call.path)
        actions = "pull" if call.method == "GET" else "pull,push"
        scope = f"repository:{match[1]}:{actions}" if match else ""
        scheme, _, value = call.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic" == self.auth and self._signed_in(value):
            return
        if scheme == "Bearer" == self.auth and value.startswith(f"token for {scope}"):
            return
        challenge = 'Basic realm="small"'
        if self.auth == "Bearer":
            challenge = f'Bearer realm="{self.url}/token",service="small",scope="{scope}"'
        raise Refusal(401, "UNAUTHORIZED", challenge=challenge)

    def error(self, refusal: Refusal) -> Response:
        headers = {}
        if challenge := refusal.fields.get("challenge"):
            headers["WWW-Authenticate"] = str(challenge)
        body = {"errors": [{"code": refusal.message, "message": refusal.message}]}
        return json_response(refusal.status, body, **headers)

    @route("GET", "/token", query=("service", "scope"))
    def get_token(self, call: Call) -> Response:
        """Everybody may pull; pushing takes the password."""
        scheme, _, value = call.headers.get("Authorization", "").partition(" ")
        if call.query.get("service") != "small" or scheme not in ("", "Basic"):
            raise violation(400, "a token is for the service that asked for it")
        if scheme and not self._signed_in(value):
            raise Refusal(401, "UNAUTHORIZED")
        scope = call.query["scope"]
        self.tokens.append(scope)
        granted = scope if scheme else scope.removesuffix(",push")
        return json_response(200, {"token": f"token for {granted}"})

    # -- reading ---------------------------------------------------------------------------------

    @route("GET", "/v2/{name:path}/manifests/{reference}")
    def get_manifest(self, call: Call, name: str, reference: str) -> Response:
        if INDEX not in call.headers.get("Accept", ""):
            raise violation(406, "MANIFEST_UNKNOWN")
        try:
            media_type, content = self.manifests[name][reference]
        except KeyError:
            raise Refusal(404, "MANIFEST_UNKNOWN") from None
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(content)}
        return Response(200, headers, content)

    @route("GET", "/v2/{name:path}/tags/list", query=("last",))
    def list_tags(self, call: Call, name: str) -> Response:
        if name not in self.manifests:
            raise Refusal(404, "NAME_UNKNOWN")
        last = call.query.get("last", "")
        tags = sorted(tag for tag in self.manifests[name] if ":" not in tag and tag > last)
        body = {"name": name, "tags": tags[: self.page] or None}
        if len(tags) <= self.page:
            return json_response(200, body)
        following = f'</v2/{name}/tags/list?last={tags[self.page - 1]}>; rel="next"'
        return json_response(200, body, Link=following)

    @route("GET", "/v2/{name:path}/blobs/{digest}")
    def get_blob(self, call: Call, name: str, digest: str) -> Response:  # noqa: ARG002
        if digest not in self.blobs:
            raise Refusal(404, "BLOB_UNKNOWN")
        if self.storage:
            return Response(307, {"Location": f"{self.storage}/{digest}"})
        return Response(200, {"Content-Type": "application/octet-stream"}, self.blobs[digest])

    # -- writing ---------------------------------------------------------------------------------

    @route("POST", "/v2/{name:path}/blobs/uploads/")
    def start_upload(self, call: Call, name: str) -> Response:  # noqa: ARG002
        return Response(202, {"Location": f"{self.upload_host}/v2/{name}/blobs/uploads/1?state=a"})

    @route("PUT", "/v2/{name:path}/blobs/uploads/1", query=("digest", "state"))
    def end_upload(self, call: Call, name: str) -> Response:  # noqa: ARG002
        if call.query.get("state") != "a" or "Content-Length" not in call.headers:
            raise violation(400, "BLOB_UPLOAD_INVALID")
        if call.query.get("digest") != digest_of(call.content):
            raise Refusal(400, "DIGEST_INVALID")
        self.put_blob(call.content)
        return Response(201)

    @route("DELETE", "/v2/{name:path}/blobs/uploads/1", query=("state",))
    def cancel_upload(self, call: Call, name: str) -> Response:  # noqa: ARG002
        return Response(204)

    @route("PUT", "/v2/{name:path}/manifests/{reference}")
    def put_manifest(self, call: Call, name: str, reference: str) -> Response:
        document = json.loads(call.content)
        parts = [document.get("config"), *document.get("layers", ())]
        held = self.manifests.get(name, {})
        if any(part and part["digest"] not in self.blobs for part in parts):
            raise violation(400, "MANIFEST_BLOB_UNKNOWN")
        if any(one["digest"] not in held for one in document.get("manifests", ())):
            raise violation(400, "MANIFEST_UNKNOWN")
        digest = self.put(name, reference, call.content, call.headers.get_content_type())
        return Response(201, {"Docker-Content-Digest": digest})

    def _signed_in(self, value: str) -> bool:
        return base64.b64decode(value) == f"me:{self.password}".encode()
