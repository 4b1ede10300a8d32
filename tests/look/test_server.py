"""The server answers its own page on its own machine, keeps walks apart, and survives what it is sent."""

from __future__ import annotations

import http.client
import importlib.resources
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rad_bench.errors import UserError
from rad_bench.look import server as serving
from rad_bench.look.server import LARGEST_REQUEST, PlayServer, serve
from rad_bench.look.session import Session, World
from tests.runs import shaken

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[PlayServer]:
    with PlayServer(World(shaken()), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    server: PlayServer, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Send a request; `body` becomes JSON unless it is bytes. Returns status, answer and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, sent, {**JSON, **(headers or {})})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    told = json.loads(content) if response.headers.get_content_type() == "application/json" else content.decode()
    return response.status, told, response.headers


def post(server: PlayServer, path: str, **body: Any) -> Any:
    status, told, _ = request(server, "POST", path, body)
    assert status == 200, told
    return told


def walk(server: PlayServer, name: str, keys: list[str]) -> list[str]:
    return [post(server, "/press", session=name, key=key)["frames"][0]["image"] for key in keys]


def test_it_listens_on_this_machine_alone_and_serves_a_page_that_needs_nothing_else(server: PlayServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    status, page, headers = request(server, "GET", "/")
    assert status == 200
    assert page == importlib.resources.files("rad_bench.look").joinpath("play.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|\bsrc=\"(?!data:)|\bhref=\"(?!data:)", page)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "[::1]:{port}", "localhost:x", ""]
)
def test_other_names_of_this_machine_are_refused(server: PlayServer, host: str) -> None:
    headers = {"Host": host.format(port=server.server_port)}
    assert request(server, "GET", "/", headers=headers)[0] == 403
    assert request(server, "POST", "/start", {"episode": 0}, headers)[0] == 403


def test_other_pages_are_refused(server: PlayServer) -> None:
    here = f"127.0.0.1:{server.server_port}"
    for origin in (
        "http://evil.example",
        "null",
        f"https://{here}",
        "http://127.0.0.1:1",
        f"http://localhost:{server.server_port}",
    ):
        assert request(server, "POST", "/start", {"episode": 0}, {"Origin": origin})[0] == 403
    assert request(server, "POST", "/start", {"episode": 0}, {"Origin": f"http://{here}"})[0] == 200
    tunnel = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}  # ssh -L 9000:...
    assert request(server, "POST", "/start", {"episode": 0}, tunnel)[0] == 200


@pytest.mark.parametrize(
    ("status", "path", "body", "headers"),
    [
        (415, "/start", {"episode": 0}, {"Content-Type": "text/plain"}),
        (413, "/start", {"episode": 0, "more": "x" * LARGEST_REQUEST}, {}),
        (413, "/start", b"{}", {"Content-Length": "9" * 400}),
        (411, "/start", b"{}", {"Content-Length": "-1"}),
        (400, "/start", None, {}),
        (400, "/start", b"{", {}),
        (400, "/start", b"\xff", {}),
        (400, "/start", b"[" * 1000, {}),
        (400, "/start", [0], {}),
        (400, "/start", {}, {}),
        (400, "/start", {"episode": 4}, {}),
        (400, "/start", {"episode": -1}, {}),
        (400, "/start", {"episode": True}, {}),
        (400, "/start", {"episode": 1e999}, {}),
        (404, "/elsewhere", {"episode": 0}, {}),
        (410, "/press", {"session": "nobody", "key": "left"}, {}),
        (410, "/swap", {"session": ["nobody"], "episode": 0}, {}),
        (410, "/reset", {}, {}),
    ],
)  # fmt: skip
def test_what_is_no_request_of_the_page_is_refused_with_a_reason(
    server: PlayServer, status: int, path: str, body: Any, headers: dict[str, str]
) -> None:
    found, told, _ = request(server, "POST", path, body, headers)
    assert (found, list(told)) == (status, ["error"])
    assert 5 < len(told["error"]) < 200


def test_only_keys_of_this_world_are_taken(server: PlayServer) -> None:
    name = post(server, "/start", episode=0)["session"]
    for key in ("forward", "back", "", None, ["left"], {"left": 1}):
        assert request(server, "POST", "/press", {"session": name, "key": key})[0] == 400
    assert request(server, "POST", "/swap", {"session": name, "episode": "1"})[0] == 400
    assert len(walk(server, name, ["left"])) == 1


def test_other_paths_and_methods_are_refused(server: PlayServer) -> None:
    assert request(server, "GET", "/../session.py")[0] == 404
    assert request(server, "PUT", "/", {})[0] == 501


def test_walks_at_the_same_time_do_not_touch_each_other(server: PlayServer) -> None:
    ways = [["left"] * 6, ["right"] * 6, ["left", "right"] * 3, ["right", "left"] * 3]
    alone = [walk(server, post(server, "/start", episode=e)["session"], way) for e, way in enumerate(ways)]
    found: dict[int, list[str]] = {}

    def go(e: int) -> None:
        found[e] = walk(server, post(server, "/start", episode=e)["session"], ways[e])

    threads = [threading.Thread(target=go, args=(e,)) for e in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[e] for e in range(len(ways))] == alone


def test_memory_is_emptied_and_exchanged_in_one_walk_alone(server: PlayServer) -> None:
    first, second, third = (post(server, "/start", episode=1)["session"] for _ in range(3))
    assert post(server, "/reset", session=first) == {"memory_of": None}
    assert post(server, "/swap", session=second, episode=3) == {"memory_of": 3}
    after = [walk(server, name, ["left"])[0] for name in (first, second, third)]
    assert len(set(after)) == 3


def test_the_walk_used_longest_ago_makes_room(server: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_SESSIONS", 2)
    server.walks._sessions.clear()
    first, second = (post(server, "/start", episode=0)["session"] for _ in range(2))
    walk(server, first, ["left"])
    third = post(server, "/start", episode=0)["session"]
    assert request(server, "POST", "/press", {"session": second, "key": "left"})[0] == 410
    for name in (first, third):
        walk(server, name, ["left"])


def test_a_step_that_fails_is_told_and_ends_that_walk_alone(
    server: PlayServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (post(server, "/start", episode=0)["session"] for _ in range(2))

    def fails(session: Session) -> None:
        raise RuntimeError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_generate", fails)
        status, told, _ = request(server, "POST", "/press", {"session": first, "key": "left"})
    assert (status, told) == (500, {"error": "the step failed: RuntimeError: no such luck"})
    assert "no such luck" in capsys.readouterr().err
    assert request(server, "POST", "/press", {"session": first, "key": "left"})[0] == 410
    walk(server, second, ["left"])


def test_a_port_that_is_taken_is_told(server: PlayServer) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="choose another, or 0"):
            serve(server.walks.world, other.getsockname()[1], print)
