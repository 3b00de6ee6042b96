"""A reverse proxy in front of a real registry that counts, fails and stops as stand-ins do."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

from tests.lab.server import BLOCK, Dropped, EffectCounter, LabServer, Request, Response

# RFC 9110, section 7.6.1; the two ends of a proxy frame their messages on their own.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Gateway(LabServer):
    """Forwards everything to ``upstream`` (``http://HOST:PORT``) as it came.

    Bodies are streamed both ways. The client's ``Host`` goes along, so a registry writes its URLs
    for the gateway by itself; where an answer's header names the upstream all the same, it is
    rewritten. An upstream that cannot be reached is a 502.
    """

    def __init__(
        self, upstream: str, *, port: int = 0, effects: EffectCounter | None = None
    ) -> None:
        super().__init__(port=port, effects=effects)
        self.upstream = upstream.rstrip("/")

    def respond(self, request: Request) -> Response:
        where = urlsplit(self.upstream)
        connection = HTTPConnection(where.hostname or "", where.port, timeout=600)
        try:
            self._forward(connection, request)
            answer = connection.getresponse()
        except Dropped:
            connection.close()
            raise
        except (OSError, HTTPException) as error:
            connection.close()
            return Response(502, {"Content-Type": "text/plain"}, f"{error}\n".encode())
        here = f"http://{request.headers.get('Host', urlsplit(self.url).netloc)}"
        headers: dict[str, str] = {}
        for name, value in answer.getheaders():
            key = name.lower()
            if key in HOP_BY_HOP or key == "content-length":
                continue
            value = value.replace(self.upstream, here)
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        text = answer.headers.get("Content-Length")
        length = None if text is None else int(text)
        if answer.length == 0:  # also after HEAD, and with 204 and 304
            connection.close()
            return Response(answer.status, headers, (), length)
        return Response(answer.status, headers, _read_blocks(connection, answer), length)

    def _forward(self, connection: HTTPConnection, request: Request) -> None:
        target = request.path + (f"?{request.query}" if request.query else "")
        connection.putrequest(
            request.method, target, skip_host="Host" in request.headers, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            # The client was told to go on already; the upstream's own "continue" would be late.
            if name.lower() not in HOP_BY_HOP | {"expect"}:
                connection.putheader(name, value)
        chunked = "Transfer-Encoding" in request.headers
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for block in request.body:
            connection.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            connection.send(b"0\r\n\r\n")


def _read_blocks(connection: HTTPConnection, answer: HTTPResponse) -> Iterator[bytes]:
    try:
        while block := answer.read(BLOCK):
            yield block
    except HTTPException:
        raise Dropped from None  # the upstream broke off, so does the gateway
    finally:
        connection.close()
