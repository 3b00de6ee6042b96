"""Docker's documentation: pages of release notes in Markdown, as GitHub serves raw files."""

from __future__ import annotations

from tests.lab.server import LabServer, Request, Response


class Docs(LabServer):
    """Pages of release notes by their paths."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[str, str] = {}

    def respond(self, request: Request) -> Response:
        page = self.pages.get(request.path)
        return Response(404) if page is None else Response(200, {}, page.encode())
