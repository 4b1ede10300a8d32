"""The web server of `rad-bench play`: it serves the page and answers its requests, on this machine only.

Any page in the browser can send requests to 127.0.0.1, and a foreign host name can resolve to it (DNS rebinding). So
the host of a request must be this machine, and a request that changes anything must be JSON from our own page.
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
NAMES = {"127.0.0.1", "localhost"}  # allowed host names of requests
MOST_SESSIONS = 32  # a new session replaces the least recently used one
LARGEST_REQUEST = 1024  # bytes
TIMEOUT = 20  # seconds without data after which a connection is closed
LAST_STEP = 20  # seconds that the server waits for a step in progress when it stops
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Json = dict[str, Any]


class RefusedError(Exception):
    """A request that is refused, with an HTTP status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Walks:
    """All walks through one world. Each page has a session; steps run one at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.lock = world, threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._answers: dict[str, Callable[[Json], Json]] = {
            "/start": self._start, "/press": self._press, "/reset": self._reset, "/swap": self._swap,
        }  # fmt: skip

    def answer(self, path: str, request: Json) -> Json:
        """Answer a request. Raises `RefusedError`."""
        if path not in self._answers:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path}")
        with self.lock:
            return self._answers[path](request)

    def _start(self, request: Json) -> Json:
        episode = self._episode(request)
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
            "kind": world.places.kind,
            "keys": world.places.keys,
            "frames_per_step": trained.run.config.trunk.frames_per_step,
            "has_memory": world.has_memory,
            "has_truth": place.look(session.poses[0]) is not None,
            "fov": place.fov,
            "plan": plan,
            "frames": [_frame_json(shown) for shown in session.context()],
        }

    def _press(self, request: Json) -> Json:
        session, key = self._session(request), request.get("key")
        if key not in self.world.places.keys:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"there is no key {key!r:.40}")
        try:
            press = session.press(key)
        except UserError:
            raise
        except Exception:
            del self._sessions[request["session"]]  # its step is incomplete
            raise
        return {
            "blocked": press.blocked,
            "pending": press.pending,
            "frames": [_frame_json(shown) for shown in press.frames],
        }

    def _reset(self, request: Json) -> Json:
        session = self._session(request)
        session.reset()
        return {"memory_of": None}

    def _swap(self, request: Json) -> Json:
        session, episode = self._session(request), self._episode(request)
        session.swap(episode)
        return {"memory_of": episode}

    def _session(self, request: Json) -> Session:
        name = request.get("session")
        if not isinstance(name, str) or name not in self._sessions:
            raise RefusedError(HTTPStatus.GONE, "this walk is no longer known to the server; start again")
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def _episode(self, request: Json) -> int:
        episode = request.get("episode")
        if type(episode) is not int or not 0 <= episode < self.world.episodes:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"episode {episode!r:.40}: there are 0 to {self.world.episodes - 1}"
            )
        return episode


class PlayServer(ThreadingHTTPServer):
    """Serves one world on this machine."""

    daemon_threads = True

    def __init__(self, world: World, port: int) -> None:
        self.walks = Walks(world)
        self.page = resources.files("rad_bench.look").joinpath("play.html").read_bytes()
        super().__init__((ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print errors, except those of pages that were closed before the answer."""
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
            self._send_json(HTTPStatus.OK, self.server.walks.answer(self.path, self._read_json()))
        except RefusedError as refused:
            self._send_json(refused.status, {"error": str(refused)})
        except UserError as error:
            self._send_json(HTTPStatus.CONFLICT, {"error": str(error)})
        except OSError:
            raise  # the page was closed
        except Exception as error:  # in the user's block or in ours: the page shows it, and the terminal the traceback
            traceback.print_exc()
            reason = one_line(f"the step failed: {type(error).__name__}: {error}", 300)
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": reason})

    def _read_json(self) -> Json:
        """Return the JSON of a request after checking that it comes from the page."""
        self._check_host()
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise RefusedError(HTTPStatus.FORBIDDEN, "only requests from this server's own page are accepted")
        if self.headers.get_content_type() != "application/json":  # other pages cannot send it without a CORS preflight
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "requests must be JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "requests must have a Content-Length")
        if len(length) > 9 or int(length) > LARGEST_REQUEST:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"requests must have at most {LARGEST_REQUEST} bytes"
            )
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "requests must be JSON objects")
        return request

    def _check_host(self) -> None:
        name, _, port = self.headers.get("Host", "").partition(":")
        if name not in NAMES or not (port or "80").isdigit():
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "requests must be addressed to 127.0.0.1 or localhost, with the port"
            )

    def _send_json(self, status: HTTPStatus, answer: Json) -> None:
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
        """Do not log requests to the terminal."""


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


def _frame_json(shown: Shown) -> Json:
    """Return a frame as JSON for the page."""
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
