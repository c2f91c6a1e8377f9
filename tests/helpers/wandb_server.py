"""A stand-in for W&B's server that knows reports alone: it answers who we are, lists reports and saves them."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_WHEN = "2026-01-31T09:30:00"


@dataclass
class ReportServer:
    """A server with the reports that it was asked to save.

    Attributes:
        reports: id -> report as W&B's server describes it.
        saved: the ids of the reports that were saved, in this order.
        refuses: answer a report with an error.
    """

    url: str = ""
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    refuses: bool = False

    def answer(self, question: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a GraphQL question."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", question)
        if named and named[1] == "upsertView":
            return {"errors": [{"message": "no room"}]} if self.refuses else {"data": self._save(given)}
        page = {"endCursor": None, "hasNextPage": False}
        if named and named[1] == "ProjectViews":
            edges = [{"node": report, "cursor": "c"} for report in self.reports.values()]
            return {"data": {"project": {"allViews": {"edges": edges, "pageInfo": page}}}}
        if named and named[1] == "GetProjects":
            project: dict[str, Any] = {"id": "p", "internalId": "1", "name": "kvbench", "entityName": "team"}
            project |= {"createdAt": _WHEN, "isBenchmark": False, "user": None}
            return {"data": {"models": {"edges": [{"node": project, "cursor": "c"}], "pageInfo": page}}}
        viewer = {"id": "u", "entity": "team", "username": "u", "email": "", "flags": "{}", "admin": False}
        return {"data": {"viewer": {**viewer, "teams": {"edges": []}, "apiKeys": {"edges": []}}}}

    def _save(self, given: dict[str, Any]) -> dict[str, Any]:
        id = given["id"] or f"VmlldzoxMj{len(self.reports)}="
        self.saved.append(id)
        self.reports[id] = {
            "id": id,
            **{key: given[key] for key in ("type", "name", "displayName", "description", "spec")},
            "project": {"id": "p", "name": given["projectName"], "entityName": given["entityName"]},
            "user": {"username": "u", "photoUrl": "", "email": ""},
            "createdAt": _WHEN,
            "updatedAt": _WHEN,
        }
        return {"upsertView": {"view": self.reports[id], "inserted": not given["id"]}}


@contextlib.contextmanager
def report_server() -> Iterator[ReportServer]:
    """Run the server on this machine while the block runs."""
    state = ReportServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = json.loads(body) if self.path == "/graphql" else {}  # else W&B's own measurements
            text = json.dumps(state.answer(asked.get("query", ""), asked.get("variables") or {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
