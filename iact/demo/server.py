"""The server behind `iact demo`: a page, and landmarks for the pictures that it sends.

GET / is the page, GET /model describes the network, and POST /predict takes the bytes of a picture and gives its faces
as JSON, or {"error": <sentence>} and a status that says whose fault it is. POST /predict?camera=NAME takes one picture
after the other of a camera, and follows the faces. Nothing is written to disk."""

import ipaddress
import json
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from iact.demo.answering import TimedPredictor
from iact.errors import InputError
from iact.predictor import Predictor

LARGEST = 50_000_000  # bytes of a picture
DISCARDED = 10 * LARGEST  # bytes that are read, and forgotten, to let a sender of too many hear the answer
AT_ONCE = 4  # pictures; more wait for their turn
PATIENCE = 30  # s without a byte from a browser until its connection is closed
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/drawing.js": "drawing.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class DemoServer(ThreadingHTTPServer):
    """Listens as soon as it is made, and answers, each request in a thread, while `serve_forever` runs."""

    request_queue_size = 32
    daemon_threads = False

    def __init__(self, predictor: Predictor, host: str = "127.0.0.1", port: int = 8765):
        """`host` is a name or IPv4 address of this machine; 0.0.0.0 lets others in. Port 0 has a free one chosen.
        InputError when the port cannot be opened."""
        if not 0 <= port < 65536:
            raise InputError(f"port: expected 0 to 65535, got {port}")
        self.predictor, self.host = TimedPredictor(predictor), host
        self.turns = threading.Semaphore(AT_ONCE)
        self._connections: set[Any] = set()
        self._closing = False
        self.page = {path: (Path(__file__).parent / name).read_bytes() for path, name in PAGE.items()}
        try:
            super().__init__((host, port), _Handler)
        except (OSError, UnicodeError) as error:  # UnicodeError: no host could be called that
            problem = f"{host}:{port} cannot be opened ({getattr(error, 'strerror', None) or error})"
            raise InputError(f"port: {problem}; expected a free port of this machine, or 0 for any") from None

    @property
    def url(self) -> str:
        """The page's address for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0") else self.host
        return f"http://{host}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Ends all connections, and waits for the pictures under way, but not for those that wait for their turn:
        PyTorch's threads must not outlive Python."""
        self._closing = True
        for connection in list(self._connections):
            with suppress(OSError):  # it has gone already
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def predict(self, data: bytes, camera: str | None) -> dict[str, Any]:
        """The predictor's answer, when it is this picture's turn, and the sentence "about" the network: a page of an
        earlier server then sees that this is another. ConnectionAbortedError where the server has closed."""
        with self.turns:
            if self._closing:
                raise ConnectionAbortedError
            return self.predictor(data, camera) | {"about": self.predictor.describe()["about"]}

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that leaves is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    protocol_version = "HTTP/1.1"  # keeps the connection: a camera sends many pictures
    timeout = PATIENCE

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._is_ours():
            return
        if path == "/model":
            self._answer(HTTPStatus.OK, self.server.predictor.describe() | {"largest": LARGEST})
        elif path in self.server.page:
            content_type = TYPES[Path(PAGE[path]).suffix] + "; charset=utf-8"
            self._send(HTTPStatus.OK, self.server.page[path], content_type)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"{path}: there is nothing here (the page is at /)")

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        if not self._is_ours():
            return
        if path != "/predict":
            return self._refuse(HTTPStatus.NOT_FOUND, f"{path}: nothing is taken here (pictures go to /predict)")
        data = self._read_body()
        if data is None:
            return
        try:
            found = self.server.predict(data, camera=parse_qs(query).get("camera", [None])[0])
        except InputError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except ConnectionAbortedError:
            raise
        except Exception:
            sentence = "the server made a mistake; the terminal where it was started says which"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)
            raise
        else:
            self._answer(HTTPStatus.OK, found)

    def _is_ours(self) -> bool:
        """Whether the request is for this server by a name that is its own, and not sent by another site's page: a
        foreign name that leads here (DNS rebinding) would let its owner's pages read the answers."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not _is_own_name(host, self.server.host):
            self._refuse(HTTPStatus.FORBIDDEN, f"Host: expected localhost or an address, got {host!r}")
        elif origin is not None and origin.partition("://")[2] != host:
            self._refuse(HTTPStatus.FORBIDDEN, f"Origin: expected a page of this server, got {origin!r}")
        else:
            return True
        return False

    def _read_body(self) -> bytes | None:
        """The request's body; None where it was refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, f"Content-Length: expected a number of bytes, got {length!r}")
            return None
        size = int(length[:20])  # Python refuses to read much longer numbers
        if size <= LARGEST:
            return self.rfile.read(size)
        self._discard(size)
        sentence = f"the picture has {size / 1e6:.1f} MB; expected at most {LARGEST / 1e6:.0f} MB"
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
        return None

    def _discard(self, size: int) -> None:
        """Reads a body away: closing while it is under way would cut off the answer too."""
        left = min(size, DISCARDED)
        while left and (part := self.rfile.read(min(left, 1 << 20))):
            left -= len(part)

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Says why, and closes the connection: its next bytes may be those of a body that was not read."""
        self.close_connection = True
        self._answer(status, {"error": sentence})

    def _answer(self, status: HTTPStatus, fields: dict[str, Any]) -> None:
        self._send(status, json.dumps(fields).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        headers = HEADERS | {"Content-Type": content_type, "Content-Length": str(len(body))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""


def _is_own_name(host_header: str, host: str) -> bool:
    """Whether a Host header names localhost, this machine, an address, or the host that the server was started with."""
    try:
        name = urlsplit(f"//{host_header}").hostname or ""
        if name not in ("localhost", host.lower(), socket.gethostname().lower()):
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
