"""The loader fetches over HTTPS, from a server that takes no old TLS."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.lab.setup import Setup

pytestmark = pytest.mark.lab

CONTENT = b"a module image" * 100_000
# The loader's own function, without the command at its end.
FETCH = """
/bin/busybox mkdir -p /download
/bin/busybox sed '$d' /install-zfs >/download/functions
. /download/functions
fetch "$0" /download/asset some-slug
/bin/busybox cat /download/asset
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _server(directory: Path) -> Iterator[int]:
    """A server with a certificate of its own making. Yields its port on loopback."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_the_image_fetches_over_tls(built_in: Setup, tmp_path: Path) -> None:
    (entry,) = built_in.load().kernels
    with _server(tmp_path) as port:
        fetched = built_in.world.client.containers.run(
            f"install-zfs:{entry.slug}",
            ["sh", "-c", FETCH, f"https://127.0.0.1:{port}/asset"],
            entrypoint="/bin/busybox",
            network_mode="host",
            remove=True,
        )
    assert fetched == CONTENT
