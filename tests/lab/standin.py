"""Stand-ins for APIs: routes, and strictness about what the APIs' descriptions say.

What the description does not know (path, method, query parameter, content type, field) is answered
with an error and kept in ``violations``, so that a test can end with
``assert server.violations == []``.
"""

from __future__ import annotations

import json
import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import parse_qsl, unquote

from tests.lab.server import LabServer, Request, Response


def json_response(status: int, value: object, **headers: str) -> Response:
    """An answer in JSON; header names are written with underscores."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, kind | names, json.dumps(value).encode())


@dataclass
class RateLimit:
    """A limit of requests per window, as both Docker Hub and GitHub count them."""

    limit: int
    window: float
    """seconds"""
    used: int = 0
    reset: float = 0.0
    """Unix time"""

    def take(self) -> bool:
        """Count a request; False when the limit was already reached."""
        if time.time() >= self.reset:
            self.used, self.reset = 0, time.time() + self.window
        if self.used >= self.limit:
            return False
        self.used += 1
        return True

    @property
    def headers(self) -> dict[str, str]:
        """``X-RateLimit-*`` as they go with every answer."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.limit - self.used),
            "X-RateLimit-Reset": str(math.ceil(self.reset)),
        }


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """Ends a request with an error answer; ``fields`` go into its body.

    Args:
        violation: the request itself is wrong by the API's description, whatever the state.
    """

    def __init__(
        self, status: int, message: str, *, violation: bool = False, **fields: object
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.violation = violation
        self.fields = fields


def violation(status: int, message: str) -> Refusal:
    """The refusal of a request that the API's description does not know."""
    return Refusal(status, message, violation=True)


@dataclass(frozen=True)
class Call:
    """A request whose route is known and whose body was read whole."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    content: bytes

    def number(self, name: str, default: int, maximum: int | None = None) -> int:
        """A query parameter from 1 up, silently capped at ``maximum``."""
        text = self.query.get(name, str(default))
        if not text.isdecimal() or int(text) < 1:
            raise violation(422, f"{name}={text} is not a number from 1 up")
        return int(text) if maximum is None else min(int(text), maximum)

    def json(self, fields: Mapping[str, type | tuple[type, ...]], *required: str) -> dict[str, Any]:
        """The JSON object in the body, with these fields of these types and no others."""
        if self.headers.get_content_type() != "application/json":
            raise violation(415, f"a body of type {self.headers.get('Content-Type')}")
        try:
            value = json.loads(self.content)
        except ValueError:
            raise violation(400, "Problems parsing JSON") from None
        if not isinstance(value, dict):
            raise violation(400, "Body should be a JSON object")
        wrong = [key for key, item in value.items() if not isinstance(item, fields.get(key, ()))]
        missing = [key for key in required if key not in value]
        if wrong or missing:
            raise violation(422, f"unknown or mistyped fields {wrong}, missing fields {missing}")
        return value


_Method = TypeVar("_Method", bound=Callable[..., Response])
_PARTS = {"": "[^/]+", "int": "[0-9]+", "path": ".+", "rest": ".*"}


def route(method: str, template: str, *, query: Iterable[str] = ()) -> Callable[[_Method], _Method]:
    """Make a method of a :class:`StandIn` answer ``method`` on ``template``.

    ``{name}`` is one segment, ``{name:int}`` a number, ``{name:path}`` one or more segments,
    ``{name:rest}`` any number of them; they are passed on decoded, by name. The text between them
    is a regular expression. A GET answers HEAD too.
    """
    parts = re.split(r"\{(\w+):?(\w*)\}", template)
    pattern = parts[0]
    for name, kind, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pattern += f"(?P<{name}>{_PARTS[kind]}){text}"

    def mark(function: _Method) -> _Method:
        entry = _Route(method, re.compile(pattern), frozenset(query), function)
        function.__dict__.setdefault("routes", []).append(entry)
        return function

    return mark


@dataclass(frozen=True)
class _Route:
    method: str
    pattern: re.Pattern[str]
    query: frozenset[str]
    function: Callable[..., Response]


class StandIn(LabServer):
    """A server made of :func:`route` methods ``(self, call, **parts) -> Response``.

    Methods run one at a time, under :attr:`lock`, after the whole body has arrived.
    """

    _routes: ClassVar[list[_Route]] = []

    def __init_subclass__(cls) -> None:
        marked = [getattr(member, "routes", []) for member in vars(cls).values()]
        cls._routes = [*cls._routes, *(entry for entries in marked for entry in entries)]

    def respond(self, request: Request) -> Response:
        content = b"".join(request.body)
        with self.lock:
            try:
                return self._dispatch(request, content)
            except Refusal as refusal:
                if refusal.violation:
                    self.violations.append(f"{request.line}: {refusal.message}")
                return self.error(refusal)

    def admit(self, call: Call) -> None:
        """Called before each route: authentication, rate limit. May raise :class:`Refusal`."""

    @abstractmethod
    def error(self, refusal: Refusal) -> Response:
        """The error answer in the API's own shape."""

    def _dispatch(self, request: Request, content: bytes) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        known = [entry for entry in self._routes if entry.pattern.fullmatch(request.path)]
        entry = next((entry for entry in known if entry.method == method), None)
        if entry is None:
            raise violation(405 if known else 404, "unknown method or path")
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if unknown := query.keys() - entry.query:
            raise violation(422, f"unknown query parameters {sorted(unknown)}")
        call = Call(method, request.path, query, request.headers, content)
        self.admit(call)
        match = cast(re.Match[str], entry.pattern.fullmatch(request.path))
        parts = {name: unquote(text) for name, text in match.groupdict().items()}
        return entry.function(self, call, **parts)
