"""A real S3 API over HTTP, with faults on request."""

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import boto3
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class QuietHandler(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Drop a line."""


class Server:
    """moto's server; refuses, breaks off or holds as many requests as it is told to."""

    def __init__(self) -> None:
        self.faulty_part = ""
        """Requests whose path lacks this are answered well."""
        self.num_slow_downs = 0
        self.num_broken = 0
        self.num_downloads = 0
        self.num_bytes_sent = 0
        """Of all downloads."""
        self.num_lists = self.most_lists_at_once = self._lists_under_way = 0
        self.list_s = 0.0
        """Seconds that a listing takes at least."""
        self._counting = threading.Lock()
        self.fault_share = 0.0
        """Of all requests: half of these are refused, half done but never answered."""
        self.held_part = ""
        """An upload with this in its address is never done; `holding` tells that it has come."""
        self.holding, self.released = threading.Event(), threading.Event()
        self._chance = random.Random(0)
        self._s3 = DomainDispatcherApplication(create_backend_app)

    def fail_at_random(self, share: float) -> None:
        """Fail so many of the requests from now on, the same ones whatever came before."""
        self.fault_share, self._chance = share, random.Random(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        address = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if environ["REQUEST_METHOD"] == "PUT" and self.held_part and self.held_part in address:
            self.holding.set()
            self.released.wait()
            raise ConnectionAbortedError
        if self._chance.random() < self.fault_share:
            return self._fail(environ, start_response)
        return self._answer(environ, start_response)

    def _fail(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._chance.random() < 0.5:
            list(self._s3(environ, lambda *_: None))
            raise ConnectionResetError
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [SLOW_DOWN]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "list-type" in environ["QUERY_STRING"]:
            return self._list(environ, start_response)
        if environ["REQUEST_METHOD"] != "GET":
            return self._s3(environ, start_response)
        self.num_downloads += 1
        if self.faulty_part not in environ["PATH_INFO"]:
            return self._counted(self._s3(environ, start_response))
        if self.num_slow_downs:
            self.num_slow_downs -= 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        body = b"".join(self._s3(environ, start_response))
        if self.num_broken:
            self.num_broken -= 1
            body = body[: len(body) // 2]
        return [body]

    def _list(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._counting:
            self.num_lists += 1
            self._lists_under_way += 1
            self.most_lists_at_once = max(self.most_lists_at_once, self._lists_under_way)
        try:
            time.sleep(self.list_s)
            return self._s3(environ, start_response)
        finally:
            with self._counting:
                self._lists_under_way -= 1

    def _counted(self, body: Iterable[bytes]) -> Iterator[bytes]:
        for piece in body:
            self.num_bytes_sent += len(piece)
            yield piece


@contextmanager
def serve_s3() -> Iterator[Server]:
    """Run a server and point this process, and those that it starts, to it."""
    application = Server()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem.clear_instance_cache()  # its instances keep the last server's address
    try:
        with patch.dict(os.environ, variables):
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield application
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
        server.server_close()
