"""A server on loopback that speaks OpenAI's chat completions, and fails as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], None]
"""Answers one request instead of a caption."""
TEXT = "A woman with short hair speaks to the camera in a bright room."


class Handler(BaseHTTPRequestHandler):
    """Answers requests by the server's list of faults, and then with captions."""

    server: "ChatServer"

    def do_GET(self) -> None:
        """List the models, or refuse."""
        self.server.paths.append(self.path)
        self.reply(self.server.probe_code, {"data": []})

    def do_POST(self) -> None:
        """Answer with the next fault, or else with a caption."""
        length = int(self.headers["Content-Length"])
        with self.server.lock:
            self.server.paths.append(self.path)
            self.server.keys.append(self.headers.get("Authorization"))
            self.server.bodies.append(json.loads(self.rfile.read(length)))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is None:
            self.reply(200, completion(self.server.text))
        else:
            fault(self)

    def reply(self, code: int, content: Any, **headers: str) -> None:
        """Send JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class ChatServer(ThreadingHTTPServer):
    """Remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.bodies: list[Any] = []
        self.text, self.probe_code = TEXT, 200

    @property
    def url(self) -> str:
        """Address up to the version."""
        return f"http://127.0.0.1:{self.server_port}/v1"


def completion(text: str | None, reason: str = "stop") -> dict[str, Any]:
    """Return a chat completion."""
    choice = {
        "index": 0,
        "finish_reason": reason,
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def error(code: int, message: str = "", **headers: str) -> Fault:
    """Return a fault that answers with an HTTP code and OpenAI's form of a message."""
    return lambda handler: handler.reply(code, {"error": {"message": message}}, **headers)


def answer(content: Any, **headers: str) -> Fault:
    """Return a fault that answers with 200 and any content."""
    return lambda handler: handler.reply(200, content, **headers)


def slow(seconds: float) -> Fault:
    """Return a fault that sends nothing for some time."""
    return lambda handler: time.sleep(seconds)


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serve while the body runs."""
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
