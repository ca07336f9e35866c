"""Captions of a server that speaks OpenAI's protocol of chat completions."""

import base64
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from PIL import Image
from pydantic import Field, SecretStr, field_validator

from magicdistill.data_pipeline.captioning.base import (
    REFUSED,
    Answer,
    CaptionWriter,
    Task,
    WriterError,
)
from magicdistill.data_pipeline.rows import UNREACHABLE, Array

TRIED_AGAIN = (408, 409, 425, 429)
"""HTTP codes below 500 that may pass; so may all from 500 on."""
OF_ALL_CLIPS = (401, 402, 403, 404)
"""HTTP codes that every other clip would get, too: key, account, address or model are wrong."""
LONGEST_PAUSE_S = 300.0
"""Longest pause between two attempts, whatever the server asks for."""
PROBE_TIMEOUT_S = 10.0
JPEG_QUALITY = 90
MESSAGE_LENGTH = 200
"""Characters of a server's message that are kept."""


class Endpoint(CaptionWriter):
    """A server that speaks OpenAI's chat completions: vLLM, SGLang, Ollama, or a hosted one."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    """Address up to the version, such as `http://vlm:8000/v1`."""
    model: str = Field(min_length=1)
    """Name of the model as the server knows it."""
    revision: str = ""
    """Version of the model behind that name, in words of yours, because a server does not tell its
    weights apart. With another one all captions are written again."""
    key_variable: str | None = None
    """Name of the environment variable that holds the server's key; null sends none. The key itself
    is never in a recipe, a log or the ledger."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one answer may take."""
    num_attempts: int = Field(default=5, ge=1)
    """Attempts at one clip while the server is busy (429), fails (500 and above), does not answer
    in time or answers with something else; the next run tries again."""
    pause_s: float = Field(default=1.0, gt=0)
    """Seconds before the second attempt, doubled for each further one. A server's `Retry-After`
    goes before it."""
    num_parallel: int = Field(default=8, ge=1)
    """Requests of one process at the same time; there are `num_actors` processes."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an address such as http://vlm:8000/v1")
        if parts.username or parts.password:
            raise ValueError("give the key by key_variable, not in the address")
        return url.rstrip("/")

    def identity(self) -> Mapping[str, object]:
        """Return the model's name and revision."""
        return {"model": self.model, "revision": self.revision}

    def key(self) -> SecretStr | None:
        """Return the key from the environment; raises WriterError if it is not set."""
        if self.key_variable is None:
            return None
        if not (key := os.environ.get(self.key_variable, "").strip()):
            raise WriterError(
                self.url,
                f"the environment has no {self.key_variable}, which key_variable names: export "
                "it, or leave key_variable out",
            )
        return SecretStr(key)

    def demand_ready(self) -> None:
        """Raise WriterError if the key is missing or refused, or the server does not answer."""
        client = _Client(self, self.key(), PROBE_TIMEOUT_S)
        try:
            client.get("models")
        except HTTPError as error:  # a server need not list its models
            if error.code in (401, 403):
                fix = (
                    f"is the key in {self.key_variable} right?"
                    if self.key_variable
                    else ("name the variable of its key in key_variable")
                )
                raise WriterError(self.url, f"{client.explain(error)}; {fix}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise WriterError(
                self.url,
                f"does not answer ({client.explain(error)}): start the server, or mend "
                "data.captions.writer.url",
            ) from None

    def open(self, task: Task, key: SecretStr | None) -> "EndpointWriter":
        """Return a client of the server."""
        return EndpointWriter(self, task, key)


class EndpointWriter:
    """Asks the server, several requests at a time, with pauses where it fails."""

    def __init__(self, config: Endpoint, task: Task, key: SecretStr | None) -> None:
        self._config, self._task = config, task
        self._client = _Client(config, key, config.timeout_s)

    def write(self, clips: Iterable[Sequence[Array]]) -> Sequence[Answer]:
        """Return an answer for each clip, in order."""
        with ThreadPoolExecutor(self._config.num_parallel) as pool:
            return [*pool.map(self._ask, clips)]

    def _ask(self, frames: Sequence[Array]) -> Answer:
        """Return the answer of the first attempt that is not worth repeating."""
        request, answer, seconds = self._request(frames), Answer(), 0.0
        for number in range(1, self._config.num_attempts + 1):
            start_s, wait_s = time.monotonic(), None
            try:
                answer = _answer_in(self._client.post("chat/completions", request))
            except HTTPError as error:
                answer = Answer(failure=self._reason(error))
                wait_s = _asked_pause_s(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:
                answer = Answer(failure=f"{UNREACHABLE}: {self._client.explain(error)}")
            seconds += time.monotonic() - start_s
            answer = replace(answer, requests=number, seconds=seconds)
            if not answer.failure.startswith(f"{UNREACHABLE}: ") or REFUSED in answer.failure:
                return answer
            if number < self._config.num_attempts:
                doubled_s = self._config.pause_s * 2 ** (number - 1)
                time.sleep(min(doubled_s if wait_s is None else wait_s, LONGEST_PAUSE_S))
        return replace(answer, failure=f"{answer.failure} ({answer.requests} attempts)")

    def _reason(self, error: HTTPError) -> str:
        said = self._client.explain(error)
        if error.code in OF_ALL_CLIPS or 300 <= error.code < 400:
            return f"{UNREACHABLE}: {REFUSED}: {said}"
        return f"{UNREACHABLE}: {said}" if error.code in TRIED_AGAIN or error.code >= 500 else said

    def _request(self, frames: Sequence[Array]) -> Mapping[str, object]:
        content: list[Mapping[str, object]] = [
            {"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in frames
        ]
        content.append({"type": "text", "text": self._task.prompt})
        return {
            "model": self._config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._task.max_tokens,
            "temperature": 0,
        }


class _Unmoved(HTTPRedirectHandler):
    """Follows no redirection: the key is for one server."""

    def redirect_request(self, *_: Any) -> None:
        """Return nothing, which makes the redirection an error."""


class _Client:
    """Sends requests with the key, and keeps the key out of what is said about errors."""

    def __init__(self, config: Endpoint, key: SecretStr | None, timeout_s: float) -> None:
        self._url, self._key, self._timeout_s = config.url, key, timeout_s
        self._opener = build_opener(_Unmoved)

    def get(self, path: str) -> None:
        """Ask for something; raises as `post`."""
        self._send(Request(f"{self._url}/{path}"))

    def post(self, path: str, content: Mapping[str, object]) -> bytes:
        """Return the answer to a request.

        Raises:
            HTTPError: if the server answers with an error.
            OSError: if it cannot be reached or is too slow.
            HTTPException: if the answer breaks off.
        """
        return self._send(Request(f"{self._url}/{path}", json.dumps(content).encode()))

    def _send(self, request: Request) -> bytes:
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_unredirected_header(
                "Authorization", f"Bearer {self._key.get_secret_value()}"
            )
        with self._opener.open(request, timeout=self._timeout_s) as response:
            return response.read()

    def explain(self, error: Exception) -> str:
        """Return an error in one line without the key, which servers like to repeat."""
        if isinstance(error, HTTPError):
            said = f"HTTP {error.code} {error.reason}: {_message_in(error)}".removesuffix(": ")
        elif isinstance(getattr(error, "reason", error), TimeoutError):
            said = f"no answer in {self._timeout_s:g} s"
        else:
            said = str(getattr(error, "reason", error)) or type(error).__name__
        said = " ".join(said.split())
        if self._key:
            said = said.replace(self._key.get_secret_value(), "***")
        return said[:MESSAGE_LENGTH]


def _answer_in(body: bytes) -> Answer:
    """Return the answer in a chat completion; raises ValueError if it is none."""
    try:
        reply: Any = json.loads(body)
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        usage = reply.get("usage") or {}
        tokens_in, tokens_out = (
            int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")
        )
        text = " ".join(text.split())
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the answer is no chat completion ({type(error).__name__})") from error
    why = choice.get("finish_reason")
    failure = "" if text else f"the answer has no text (finish_reason {why})"
    return Answer(text, failure, why == "length", tokens_in, tokens_out)


def _message_in(error: HTTPError) -> str:
    """Return what the server says about an error, if it says anything."""
    try:
        body = error.read().decode(errors="replace")
    except (OSError, HTTPException):
        return ""
    try:
        return str(json.loads(body)["error"]["message"])
    except (LookupError, TypeError, ValueError):
        return body


def _asked_pause_s(retry_after: str | None) -> float | None:
    """Return the seconds of a `Retry-After`, a number or a date; null for anything else."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _data_url(frame: Array) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
