"""The page, and what it asks for: a few requests over HTTP, answered to this machine alone.

Anything a browser has open may send requests to 127.0.0.1, and a name of a stranger's may be made to lead there. So a
request must be addressed to this machine by name, and what changes anything must be JSON from the page itself.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from PIL import Image
from torch import Tensor

from rad_bench.errors import UserError, one_line
from rad_bench.look.places import relative_to
from rad_bench.look.session import Session, Shown, World

ADDRESS = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost"}  # of this machine, in addresses a browser was given
MOST_SESSIONS = 32  # the one used longest ago is forgotten for a new one
LARGEST_REQUEST = 1024  # bytes
TIMEOUT = 20  # seconds that a connection may be silent
LAST_STEP = 20  # seconds that a step in progress is given when the server stops
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Answer = dict[str, Any]


class RefusedError(Exception):
    """A request that is not answered, and with which status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Walks:
    """All walks through one world: a session a page, one step at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.lock = world, threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._answers: dict[str, Callable[[Answer], Answer]] = {
            "/start": self._start, "/press": self._press, "/reset": self._reset, "/swap": self._swap,
        }  # fmt: skip

    def answer(self, path: str, asked: Answer) -> Answer:
        """Answer a request. Raises `RefusedError`."""
        if path not in self._answers:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path}")
        with self.lock:
            return self._answers[path](asked)

    def _start(self, asked: Answer) -> Answer:
        episode = self._episode(asked)
        session = Session(self.world, episode)
        if len(self._sessions) >= MOST_SESSIONS:
            self._sessions.popitem(last=False)
        name = secrets.token_urlsafe(16)
        self._sessions[name] = session
        trained, place, world = self.world.trained, self.world.places.of[episode], self.world
        plan = [
            {"points": relative_to(session.poses[0], s.points).tolist(), "colour": s.colour, "filled": s.filled}
            for s in place.plan()
        ]
        return {
            "session": name,
            "run": trained.name,
            "folder": str(trained.folder.path),
            "episode": episode,
            "episodes": world.episodes,
            "keys": world.places.keys,
            "frames_per_step": trained.run.config.trunk.frames_per_step,
            "has_memory": world.has_memory,
            "has_truth": place.look(session.poses[0]) is not None,
            "fov": place.fov,
            "plan": plan,
            "frames": [_told(shown) for shown in session.context()],
        }

    def _press(self, asked: Answer) -> Answer:
        session, key = self._session(asked), asked.get("key")
        if key not in self.world.places.keys:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"there is no key {key!r:.40}")
        try:
            press = session.press(key)
        except UserError:
            raise
        except Exception:
            del self._sessions[asked["session"]]  # it stopped half way
            raise
        return {
            "blocked": press.blocked,
            "pending": press.pending,
            "frames": [_told(shown) for shown in press.frames],
        }

    def _reset(self, asked: Answer) -> Answer:
        session = self._session(asked)
        session.reset()
        return {"memory_of": None}

    def _swap(self, asked: Answer) -> Answer:
        session, episode = self._session(asked), self._episode(asked)
        session.swap(episode)
        return {"memory_of": episode}

    def _session(self, asked: Answer) -> Session:
        name = asked.get("session")
        if not isinstance(name, str) or name not in self._sessions:
            raise RefusedError(HTTPStatus.GONE, "this walk is no longer known to the server; start again")
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def _episode(self, asked: Answer) -> int:
        episode = asked.get("episode")
        if type(episode) is not int or not 0 <= episode < self.world.episodes:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"episode {episode!r:.40}: there are 0 to {self.world.episodes - 1}"
            )
        return episode


class PlayServer(ThreadingHTTPServer):
    """Serves one world to this machine."""

    daemon_threads = True

    def __init__(self, world: World, port: int) -> None:
        self.walks = Walks(world)
        self.page = resources.files("rad_bench.look").joinpath("play.html").read_bytes()
        super().__init__((ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of pages that were closed while they were answered."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer
    timeout = TIMEOUT

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path != "/":
                raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {self.path:.80}")
        except RefusedError as refused:
            self._send_json(refused.status, {"error": str(refused)})
        else:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, self.server.walks.answer(self.path, self._asked()))
        except RefusedError as refused:
            self._send_json(refused.status, {"error": str(refused)})
        except UserError as error:
            self._send_json(HTTPStatus.CONFLICT, {"error": str(error)})
        except OSError:
            raise  # the page is gone
        except Exception as error:  # of the user's block, or ours: the page says so, and the terminal where
            traceback.print_exc()
            reason = one_line(f"the step failed: {type(error).__name__}: {error}", 300)
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": reason})

    def _asked(self) -> Answer:
        """Return what a request holds, once it is known to come from the page."""
        self._check_host()
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise RefusedError(HTTPStatus.FORBIDDEN, "requests are taken from this server's own page alone")
        if self.headers.get_content_type() != "application/json":  # which other pages cannot send without asking first
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "requests are JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "requests say their length")
        if len(length) > 9 or int(length) > LARGEST_REQUEST:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"requests have at most {LARGEST_REQUEST} bytes")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "requests are JSON objects")
        return asked

    def _check_host(self) -> None:
        name, _, port = self.headers.get("Host", "").partition(":")
        if name not in NAMES or not (port or "80").isdigit():
            raise RefusedError(HTTPStatus.FORBIDDEN, "requests are addressed to 127.0.0.1 or localhost, with the port")

    def _send_json(self, status: HTTPStatus, answer: Answer) -> None:
        self._send(status, "application/json", json.dumps(answer, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal for what matters."""


def serve(world: World, port: int, say: Callable[[str], object]) -> None:
    """Serve a world until Ctrl-C. Raises `UserError` if the port is taken."""
    try:
        server = PlayServer(world, port)
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be opened on {ADDRESS} ({error.strerror}); choose another, or 0 for a free one."
        ) from None
    with server:
        try:
            say(f"{world.trained.name}: http://{ADDRESS}:{server.server_port}/ (this machine only; Ctrl-C stops it)")
            server.serve_forever()
        except KeyboardInterrupt:
            server.walks.lock.acquire(timeout=LAST_STEP)  # let a step in progress end
            say("stopped")


def _told(shown: Shown) -> Answer:
    """Return a frame as the page is told of it."""
    norm = shown.norm if shown.norm is not None and shown.norm < float("inf") else None
    return {
        "number": shown.number,
        "given": shown.given,
        "image": _uri(shown.frame),
        "truth": None if shown.truth is None else _uri(shown.truth),
        "other": None if shown.other is None else _uri(shown.other),
        "pose": shown.pose,
        "kind": shown.kind,
        "gap": shown.gap,
        "psnr": shown.psnr,
        "psnr_other": shown.psnr_other,
        "norm": norm,
    }


def _uri(frame: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
