"""Captions of a real server on loopback: what it is asked, and what becomes of its failures."""

import base64
import io
import logging
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr, ValidationError

from magicdistill.data_pipeline.captioning.base import Answer, Task, WriterError
from magicdistill.data_pipeline.captioning.endpoint import Endpoint
from tests.chat_server import TEXT, ChatServer, Fault, answer, chat_server, completion, error, slow

KEY = "sk-very-secret-0123456789"
FRAMES = [np.full((24, 32, 3), grey, np.uint8) for grey in (10, 200)]


@pytest.fixture(scope="module")
def _server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(_server: ChatServer) -> ChatServer:
    for known in (_server.faults, _server.paths, _server.keys, _server.bodies):
        known.clear()
    _server.text, _server.probe_code = TEXT, 200
    return _server


def endpoint(server: ChatServer, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {"num_attempts": 3, "pause_s": 0.01, "timeout_s": 5.0}
    return Endpoint(url=server.url, model="tiny-vlm", **(settings | changes))


def ask(config: Endpoint, num_clips: int = 1, key: str | None = None) -> list[Answer]:
    writer = config.open(Task("Describe.", 64), SecretStr(key) if key else None)
    return [*writer.write([FRAMES] * num_clips)]


def test_the_server_gets_the_frames_in_order_the_prompt_and_the_key(server: ChatServer):
    (found,) = ask(endpoint(server), key=KEY)
    assert (found.text, found.failure, found.is_cut) == (TEXT, "", False)
    assert (found.tokens_in, found.tokens_out, found.requests) == (100, 20, 1)
    assert found.seconds > 0
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [f"Bearer {KEY}"]
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny-vlm", 64, 0)
    *pictures, prompt = body["messages"][0]["content"]
    assert prompt == {"type": "text", "text": "Describe."}
    for picture, frame in zip(pictures, FRAMES, strict=True):
        kind, _, data = picture["image_url"]["url"].partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64"
        assert np.abs(np.asarray(image).astype(int) - frame).max() <= 3


def cut(handler: Any) -> None:
    """Announce more than is sent."""
    handler.reply(200, b'{"choices": [', Content_Length="1000")


PASSING: dict[str, Fault] = {
    "busy": error(429, "slow down", Retry_After="0"),
    "broken": error(500, "out of memory"),
    "gateway": error(502),
    "no JSON": answer(b"<html>proxy</html>"),
    "no completion": answer({"object": "list"}),
    "no choice": answer({"choices": []}),
    "another type": answer({"choices": [{"message": {"content": 7}}]}),
    "broken off": cut,
    "too slow": slow(0.6),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_is_tried_again_and_counted(server: ChatServer, name: str):
    server.faults[:] = [PASSING[name]]
    (found,) = ask(endpoint(server, timeout_s=0.4))
    assert (found.text, found.failure, found.requests) == (TEXT, "", 2)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (error(429, "slow down", Retry_After="0"), "HTTP 429 Too Many Requests: slow down"),
        (error(503), "HTTP 503 Service Unavailable"),
        (answer(b"<html>"), "the answer is no chat completion (JSONDecodeError)"),
        (slow(0.4), "no answer in 0.2 s"),
    ],
)
def test_after_the_last_attempt_the_reason_stays_and_may_pass(
    server: ChatServer, fault: Fault, reason: str
):
    server.faults[:] = [fault] * 3
    (found,) = ask(endpoint(server, timeout_s=0.2))
    assert (found.text, found.requests) == ("", 3)
    assert found.failure == f"unreachable: {reason} (3 attempts)"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (error(400, "image too large"), "HTTP 400 Bad Request: image too large"),
        (answer(completion(None, "content_filter")), "the answer has no text"),
        (answer(completion("  \n ")), "the answer has no text"),
        (error(401, "bad key"), "unreachable: refused: HTTP 401 Unauthorized: bad key"),
        (error(404, "no model"), "unreachable: refused: HTTP 404 Not Found: no model"),
        (error(302, Location="http://127.0.0.1:9/"), "unreachable: refused: HTTP 302"),
    ],
)
def test_what_would_not_pass_is_asked_once(server: ChatServer, fault: Fault, reason: str):
    server.faults[:] = [fault]
    (found,) = ask(endpoint(server))
    assert found.failure.startswith(reason)
    assert (found.requests, len(server.bodies)) == (1, 1)


@pytest.mark.parametrize("is_date", [False, True])
def test_the_servers_pause_is_kept(server: ChatServer, is_date: bool):
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.faults[:] = [error(429, Retry_After=until if is_date else "1")]
    before = datetime.now(UTC)
    (found,) = ask(endpoint(server, pause_s=60))
    assert found.text == TEXT
    assert 0.9 < (datetime.now(UTC) - before).total_seconds() < 5
    assert found.seconds < 0.9  # pauses are no work


def test_a_caption_that_reached_the_last_token_is_marked(server: ChatServer):
    server.faults[:] = [answer(completion("A woman speaks to the", "length"))]
    (found,) = ask(endpoint(server))
    assert (found.text, found.is_cut, found.failure) == ("A woman speaks to the", True, "")


def test_answers_come_in_the_order_of_the_clips_and_a_failure_costs_one(server: ChatServer):
    server.faults[:] = [error(400, "too large")]
    found = ask(endpoint(server, num_parallel=4), num_clips=12)
    assert sorted(one.text for one in found) == ["", *[TEXT] * 11]
    assert len(server.bodies) == 12


def test_the_key_is_nowhere_in_what_is_said(
    server: ChatServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VLM_KEY", KEY)
    config = endpoint(server, key_variable="VLM_KEY")
    server.faults[:] = [error(401, f"Incorrect API key provided: {KEY}")]
    (found,) = ask(config, key=KEY)
    assert "Incorrect API key provided: ***" in found.failure
    server.probe_code = 401
    with pytest.raises(WriterError) as refused:
        config.demand_ready()
    said = f"{refused.value} {config!r} {config.key()!r} {config.model_dump_json()} {caplog.text}"
    assert KEY not in said and "is the key in VLM_KEY right?" in said


def test_a_server_that_is_not_there_is_named_with_the_fix(server: ChatServer):
    endpoint(server).demand_ready()
    server.probe_code = 404  # it need not list its models
    endpoint(server).demand_ready()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(
            WriterError, match=f"{url}: does not answer .*refused.*start the server"
        ):
            Endpoint(url=url, model="m").demand_ready()


def test_a_key_that_is_not_in_the_environment_is_asked_for(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VLM_KEY", raising=False)
    with pytest.raises(WriterError, match="has no VLM_KEY"):
        endpoint(server, key_variable="VLM_KEY").demand_ready()
    assert endpoint(server).key() is None


@pytest.mark.parametrize("url", ["vlm:8000", "ftp://vlm/v1", "http:///v1", "http://me:sk@vlm/v1"])
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(ValidationError, match="give"):
        Endpoint(url=url, model="m")
