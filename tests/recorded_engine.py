"""Docker's engine as far as a recorded run needs one (Docker Engine API v1.44): it says what it is,
loads an image from a tar, and runs it for what ``info`` prints, which is recorded.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile

from tests.lab.server import Response
from tests.lab.standin import Call, Refusal, StandIn, json_response, route, violation

_API = "(?:/v[0-9.]+)?"
_STDOUT = 1
_ABOUT = {
    "/version": {"ApiVersion": "1.44", "Version": "25.0.0"},
    "/info": {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]},
}
_LIMITS = ("stdout", "stderr", "follow", "timestamps", "tail")


class RecordedEngine(StandIn):
    """Holds the images that it loaded, by name, and the containers that nobody removed yet.

    Attributes:
        images: the names of the files in each image.
        containers: the image of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, list[str]] = {}
        self.containers: dict[str, str] = {}
        self._created = 0

    @property
    def host(self) -> str:
        """For ``DOCKER_HOST``."""
        return self.url.replace("http:", "tcp:")

    def error(self, refusal: Refusal) -> Response:
        return json_response(refusal.status, {"message": refusal.message})

    @route("GET", f"{_API}/_ping")
    def ping(self, call: Call) -> Response:  # noqa: ARG002
        return Response(200, {}, b"OK")

    @route("GET", f"{_API}(?P<about>/version|/info)")
    def describe(self, call: Call, about: str) -> Response:  # noqa: ARG002
        return json_response(200, _ABOUT[about])

    @route("POST", f"{_API}/images/load")
    def load(self, call: Call) -> Response:
        """``docker load`` of a tar as ``docker save`` writes it."""
        said = b""
        with tarfile.open(fileobj=io.BytesIO(call.content)) as tar:

            def read(name: str) -> io.BytesIO:
                file = tar.extractfile(name)
                assert file
                return io.BytesIO(file.read())

            for image in json.load(read("manifest.json")):
                names: list[str] = []
                for layer in image["Layers"]:
                    with tarfile.open(fileobj=read(layer)) as files:
                        names += files.getnames()
                for name in image["RepoTags"]:
                    self.images[name] = names
                    line = {"stream": f"Loaded image: {name}\n"}
                    said += json.dumps(line).encode() + b"\r\n"
        return Response(200, {"Content-Type": "application/json"}, [said])

    @route("GET", f"{_API}/images/{{name:path}}/json")
    def inspect_image(self, call: Call, name: str) -> Response:  # noqa: ARG002
        self._find_image(name)
        return json_response(200, {"Id": name, "RepoTags": [name]})

    @route("POST", f"{_API}/containers/create")
    def create(self, call: Call) -> Response:
        wanted = json.loads(call.content)
        self._find_image(wanted["Image"])
        if wanted["Cmd"] != ["info"]:
            raise violation(400, f"no recorded result of {wanted['Cmd']}")
        self._created += 1
        name = f"{self._created:064x}"
        self.containers[name] = wanted["Image"]
        return json_response(201, {"Id": name, "Warnings": []})

    @route("GET", f"{_API}/containers/{{name}}/json")
    def inspect(self, call: Call, name: str) -> Response:  # noqa: ARG002
        self._find(name)
        return json_response(200, {"Id": name, "Config": {"Tty": False}})

    @route("POST", f"{_API}/containers/{{name}}/start")
    def start(self, call: Call, name: str) -> Response:  # noqa: ARG002
        self._find(name)
        return Response(204)

    @route("POST", f"{_API}/containers/{{name}}/wait")
    def wait(self, call: Call, name: str) -> Response:  # noqa: ARG002
        self._find(name)
        return json_response(200, {"StatusCode": 0})

    @route("GET", f"{_API}/containers/{{name}}/logs", query=_LIMITS)
    def logs(self, call: Call, name: str) -> Response:  # noqa: ARG002
        """What the image says of the sources in it, in one frame of the stream."""
        names = self._find_image(self._find(name))
        sources = [re.fullmatch(r"openzfs/zfs-(.+)\.tar\.gz", one) for one in names]
        said = "".join(f"  ZFS {one[1]} for Linux 3.10 to 6.7\n" for one in sources if one)
        return Response(200, {}, struct.pack(">BxxxL", _STDOUT, len(said)) + said.encode())

    @route("DELETE", f"{_API}/containers/{{name}}", query=("v", "link", "force"))
    def remove(self, call: Call, name: str) -> Response:  # noqa: ARG002
        self._find(name)
        del self.containers[name]
        return Response(204)

    def _find(self, container: str) -> str:
        if container not in self.containers:
            raise Refusal(404, f"No such container: {container}")
        return self.containers[container]

    def _find_image(self, name: str) -> list[str]:
        if name not in self.images:
            raise Refusal(404, f"No such image: {name}")
        return self.images[name]
