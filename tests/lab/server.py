"""What the servers of the lab share: transport, request log, faults, effects.

A :class:`LabServer` listens on loopback and is a context manager. It records each request, can be
told to fail (:meth:`LabServer.fail`), and tells an :class:`EffectCounter`, which several servers
may share, before and after each request that changes something.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from socket import SHUT_RDWR, socket
from socketserver import ThreadingTCPServer
from typing import Any, Literal, Self, cast

BLOCK = 64 * 1024
MUTATING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Dropped(Exception):  # noqa: N818 - an event of the transport, not an error of ours
    """The connection ends without an answer: broken by the client, a fault or an effect hook."""


@dataclass(frozen=True)
class Recorded:
    """A request as the log keeps it; status 0 means that the connection was dropped."""

    method: str
    path: str
    query: str
    status: int


@dataclass(frozen=True)
class Request:
    """A request as it arrives: the path is still percent-encoded, the body not yet read.

    Iterating over the body raises :class:`Dropped` when the client stops before its end.
    """

    method: str
    path: str
    query: str
    headers: Message
    body: Iterator[bytes]

    @property
    def line(self) -> str:
        """``METHOD /path?query``, what :meth:`LabServer.fail` and ``count`` match against."""
        return f"{self.method} {self.path}" + (f"?{self.query}" if self.query else "")


@dataclass(frozen=True)
class Response:
    """An answer.

    Args:
        length: bytes of the body, where neither ``bytes`` nor a file's size tell; without it an
            iterable is sent chunked.
        keep: bytes of the body to send before the connection breaks.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path | Iterable[bytes] = b""
    length: int | None = None
    keep: int | None = None


@dataclass(frozen=True)
class Drop:
    """A fault: no answer; the request was applied, or not."""

    applied: bool = False


@dataclass(frozen=True)
class Truncate:
    """A fault: the connection breaks after ``keep`` bytes of the body of the true answer."""

    keep: int


@dataclass(frozen=True)
class Delay:
    """A fault: the true answer, so many seconds late."""

    seconds: float


Fault = Response | Drop | Truncate | Delay
"""A response as a fault takes the place of the true answer; the request is not applied."""


def retry_after(when: int | datetime, status: int = 429) -> Response:
    """A refusal with ``Retry-After`` in seconds or, for an aware datetime, as an HTTP date."""
    value = str(when) if isinstance(when, int) else format_datetime(when, usegmt=True)
    return Response(status, {"Retry-After": value}, b"Too Many Requests\n")


def html_page() -> Response:
    """A proxy's or a status page where JSON was expected."""
    page = b"<!DOCTYPE html><html><body><h1>Be right back</h1></body></html>"
    return Response(200, {"Content-Type": "text/html; charset=utf-8"}, page)


Phase = Literal["before", "after"]


@dataclass(frozen=True)
class Effect:
    """A mutating request; numbers start at 1 and run over all servers that share a counter."""

    number: int
    server: str
    method: str
    path: str
    phase: Phase


class EffectCounter:
    """Numbers mutating requests over the servers that share it, and can stop the world at one.

    Attributes:
        effects: those that began, in order.
        on_effect: called for each effect before and after it is applied, from the thread that
            answers the request; raising :class:`Dropped` breaks the connection.
    """

    def __init__(self, on_effect: Callable[[Effect], None] | None = None) -> None:
        self.effects: list[Effect] = []
        self.on_effect = on_effect
        self._lock = threading.Lock()
        self._stop: tuple[int, Phase] | None = None
        self._then: Callable[[Effect], None] | None = None
        self._stopped = False

    def stop_at(
        self, number: int, phase: Phase, then: Callable[[Effect], None] | None = None
    ) -> None:
        """Break the connection of effect ``number`` before or after it is applied.

        ``then`` is called first: the place to kill the client. All later effects are refused until
        :meth:`resume`, so a client that is still alive cannot just try again.
        """
        self._stop, self._then = (number, phase), then

    def resume(self) -> None:
        """Start the world again and count from 1."""
        with self._lock:
            self.effects, self._stop, self._then, self._stopped = [], None, None, False

    def begin(self, server: str, request: Request) -> Effect:
        """Number the request and report it. Raises :class:`Dropped` if it is not to be applied."""
        with self._lock:
            if self._stopped:
                raise Dropped
            effect = Effect(
                len(self.effects) + 1, server, request.method, request.path, phase="before"
            )
            self.effects.append(effect)
            self._stopped = self._stop == (effect.number, effect.phase)
        self._report(effect)
        return effect

    def end(self, effect: Effect) -> None:
        """Report that it was applied. Raises :class:`Dropped` if nobody is to hear of it."""
        effect = replace(effect, phase="after")
        with self._lock:
            self._stopped = self._stopped or self._stop == (effect.number, effect.phase)
        self._report(effect)

    def _report(self, effect: Effect) -> None:
        if self.on_effect:
            self.on_effect(effect)
        if self._stop == (effect.number, effect.phase):
            if self._then:
                self._then(effect)
            raise Dropped


@dataclass
class _PlannedFault:
    pattern: re.Pattern[str]
    fault: Fault
    left: float


class LabServer(ABC):
    """A server on loopback; a subclass says in :meth:`respond` what it answers.

    Args:
        port: 0 takes any free one.
        effects: shared with other servers where effects are to be numbered over all of them.

    Attributes:
        url: where it listens, without a slash at the end.
        requests: the log, in the order of the answers.
        violations: what no client should send, and tracebacks of the server's own bugs.
    """

    def __init__(self, *, port: int = 0, effects: EffectCounter | None = None) -> None:
        self.requests: list[Recorded] = []
        self.violations: list[str] = []
        self.effects = effects or EffectCounter()
        self.lock = threading.RLock()
        self._faults: list[_PlannedFault] = []
        self._transport = _Transport(("127.0.0.1", port), self)
        self.port: int = self._transport.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._transport.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.shutdown()
        self._transport.server_close()
        self._transport.close_connections()

    def fail(self, match: str, fault: Fault, *, times: int | None = 1) -> None:
        """Let the next ``times`` requests fail whose ``METHOD /path?query`` matches ``match``.

        ``match`` is a regular expression that is searched for; ``times=None`` means for ever.
        Faults that match the same request come one after the other.
        """
        left = math.inf if times is None else times
        self._faults.append(_PlannedFault(re.compile(match), fault, left))

    def recover(self) -> None:
        """Forget the faults that are left."""
        self._faults.clear()

    def count(self, match: str = "") -> int:
        """How many recorded requests match (searched in ``METHOD /path?query``)."""
        lines = (f"{r.method} {r.path}" + (f"?{r.query}" if r.query else "") for r in self.requests)
        return sum(bool(re.search(match, line)) for line in lines)

    @abstractmethod
    def respond(self, request: Request) -> Response:
        """The true answer, with its effect applied. May raise :class:`Dropped`."""

    def mutates(self, request: Request) -> bool:
        """Whether the request is an outside effect."""
        return request.method in MUTATING

    def broken_off(self, request: Request, status: int) -> None:
        """Called for a request that a fault or its client broke off; status 0: no answer."""
        del request, status

    def exchange(self, request: Request) -> Response:
        """The answer with faults and effects, for the transport."""
        fault = self._next_fault(request)
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        elif isinstance(fault, Response):
            self.broken_off(request, fault.status)
            return fault
        elif fault == Drop(applied=False):
            self.broken_off(request, 0)
            raise Dropped
        effect = None
        if self.mutates(request):
            effect = self.effects.begin(type(self).__name__.lower(), request)
        try:
            response = self.respond(request)
        except Dropped:
            self.broken_off(request, 0)
            raise
        if effect:
            self.effects.end(effect)
        if isinstance(fault, Drop):
            raise Dropped
        return replace(response, keep=fault.keep) if isinstance(fault, Truncate) else response

    def _next_fault(self, request: Request) -> Fault | None:
        with self.lock:
            for planned in self._faults:
                if planned.left > 0 and planned.pattern.search(request.line):
                    planned.left -= 1
                    return planned.fault
        return None


class _Transport(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], lab: LabServer) -> None:
        self.lab = lab
        self._open: set[socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the kept-alive connections too: a server that has stopped must not answer."""
        for connection in list(self._open):
            try:
                connection.shutdown(SHUT_RDWR)
            except OSError:
                continue  # its own end was faster

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.lab.violations.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        # Clients of registries try TLS first and fall back when "HTTP/" comes back.
        if cast(BufferedReader, self.rfile).peek(1)[:1] == b"\x16":
            cast(BufferedReader, self.rfile).read1()
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
        else:
            super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """The log is :attr:`LabServer.requests`."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: an unknown method, a malformed request."""
        cast(_Transport, self.server).lab.violations.append(f"{self.requestline}: {message}")
        super().send_error(code, message, explain)

    def _exchange(self) -> None:
        lab = cast(_Transport, self.server).lab
        path, _, query = self.path.partition("?")
        body = _read_body(self.rfile, self.headers)
        request = Request(self.command, path, query, self.headers, body)
        try:
            response = lab.exchange(request)
            for _unread in body:
                pass
        except Dropped:
            lab.requests.append(Recorded(self.command, path, query, 0))
            self.close_connection = True
            return
        # Recorded before it is sent: who has the answer finds the request in the log.
        lab.requests.append(Recorded(self.command, path, query, response.status))
        try:
            self._send(response)
        except (Dropped, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _exchange  # noqa: N815

    def _send(self, response: Response) -> None:
        length, blocks = _blocks(response)
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        chunked = length is None
        empty = self.command == "HEAD" or response.status in (204, 304)
        if chunked and not empty:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None and response.status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if empty:
            return
        sent = 0
        for block in blocks:
            part = block if response.keep is None else block[: response.keep - sent]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part)
            sent += len(part)
            if len(part) < len(block):
                raise Dropped
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif sent != length:
            raise Dropped


def _blocks(response: Response) -> tuple[int | None, Iterable[bytes]]:
    """The length of the body in bytes, where it is known, and the body."""
    match response.body:
        case bytes(content):
            return response.length if response.length is not None else len(content), [content]
        case Path() as path:
            return path.stat().st_size, _read_file(path)
        case blocks:
            return response.length, blocks


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _read_body(stream: BufferedIOBase, headers: Message) -> Iterator[bytes]:
    try:
        if headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from _read_exactly(stream, int(headers.get("Content-Length", 0)))
            return
        while size := int(_read_line(stream).partition(b";")[0], 16):
            yield from _read_exactly(stream, size)
            _read_line(stream)
        while _read_line(stream).strip():
            pass  # trailers
    except ConnectionError:
        raise Dropped from None


def _read_line(stream: BufferedIOBase) -> bytes:
    line = stream.readline()
    if not line:
        raise Dropped
    return line


def _read_exactly(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size:
        block = stream.read(min(size, BLOCK))
        if not block:
            raise Dropped
        size -= len(block)
        yield block
