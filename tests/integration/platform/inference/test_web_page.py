"""The page of the job, over HTTP."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from magicdistill.data_pipeline.media.video import probe
from magicdistill.platform.export.pretrained_model import ASSETS
from tests.browser import CHROMIUM, opened

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]
FACE = (ASSETS / "portrait-tiny" / "face.png").read_bytes()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, str(ROOT / "jobs" / "sample.py"), "--serve", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stdout
        lines = (re.search(r"http://127\.0\.0\.1:(\d+) is ready", line) for line in job.stdout)
        ready = next(line for line in lines if line)
        yield int(ready[1])
        job.send_signal(signal.SIGINT)
        assert job.wait() == 0


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[HTTPResponse, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request(method, path, body, names)
        response = connection.getresponse()
        return response, response.read()


def post(port: int, query: str, body: bytes = FACE, kind: str = "image/png") -> tuple[int, bytes]:
    response, content = ask(port, "POST", f"/videos?{query}", body, content_type=kind)
    return response.status, content


def test_the_page_asks_for_nothing_from_elsewhere(port: int) -> None:
    response, page = ask(port, "GET", "/")
    assert response.status == 200
    assert "'self'" in (response.getheader("Content-Security-Policy") or "")
    assert re.findall(rb'name="steps" value="(\d+)"', page) == [b"1", b"4", b"28"]
    assert b"//" not in page.replace(b"<!--", b"")
    assert ask(port, "GET", "/example.png")[1] == FACE


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_portrait_becomes_a_video(port: int, steps: int, tmp_path: Path) -> None:
    response, video = ask(port, "POST", f"/videos?steps={steps}", FACE, content_type="image/png")
    assert response.status == 200, video
    timing = response.getheader("Server-Timing") or ""
    network_ms, total_ms = map(float, re.findall(r"dur=([\d.]+)", timing))
    assert 0 < network_ms < total_ms
    (tmp_path / "v.mp4").write_bytes(video)
    header = probe(tmp_path / "v.mp4")
    assert (header.codec, header.num_frames, header.width) == ("h264", 17, 64)


def test_the_seed_decides(port: int) -> None:
    first, same, other = (post(port, f"steps=1&seed={seed}") for seed in (0, 0, 1))
    assert first == same != other


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says how large it is, and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "reason"),
    [
        ("steps=4", b"no picture", "image/png", 422, "the upload is no picture"),
        ("steps=4", FACE[: len(FACE) // 2], "image/png", 422, "the upload is no picture"),
        ("steps=4", b"", "image/png", 422, "the upload is no picture"),
        ("steps=4", FACE, "application/pdf", 415, "this is application/pdf"),
        ("steps=4", bytes(21 << 20), "image/png", 413, "more than 20 MB"),
        ("steps=4", png_header(8000, 7000), "image/png", 422, "8000 x 7000 pixels"),
        ("steps=4", png_header(60000, 60000), "image/png", 422, "the upload is no picture"),
        ("steps=7", FACE, "image/png", 422, "choose one of [1, 4, 28]"),
        ("steps=four", FACE, "image/png", 422, "steps 'four'"),
        ("seed=-1", FACE, "image/png", 422, "seed '-1'"),
        ("prompt=a+man", FACE, "image/png", 422, "this model comes without text encoders"),
    ],
)
def test_what_is_wrong_with_an_upload_is_said(port, query, body, kind, status, reason) -> None:
    answered, content = post(port, query, body, kind)
    assert answered == status
    assert reason in json.loads(content)["error"]


def test_another_site_s_name_is_refused(port: int) -> None:
    assert ask(port, "GET", "/", host="example.org")[0].status == 400


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser_a_video_plays_is_downloaded_and_goes_before_an_error(port, tmp_path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with opened(f"http://127.0.0.1:{port}/", tmp_path / "profile") as page:
        submit = "document.querySelector('button[type=submit]').click()"
        page.run("document.querySelector('#example').click()")
        page.wait_for("document.querySelector('#portrait').naturalWidth > 0")
        page.run("document.querySelector('input[value=\"1\"]').click()")
        page.run(submit)
        page.wait_for("!document.querySelector('#videos').hidden")
        video = "document.querySelector('#chosen video')"
        page.wait_for(f"{video}.readyState >= 3")
        assert page.run(f"[{video}.controls, {video}.videoWidth, {video}.duration > 0.6]") == [
            True,
            64,
            True,
        ]
        link = "document.querySelector('#chosen a')"
        assert page.run(f"{link}.download") == "student-1step-1-steps-seed-0.mp4"
        assert page.run(f"{link}.getBoundingClientRect().height") > 0
        head = "[...new Uint8Array(b)].slice(4, 8)"
        fetched = f"fetch({link}.href).then(r => r.arrayBuffer()).then(b => {head})"
        assert bytes(page.run(fetched)) == b"ftyp"

        page.choose_file("input[type=file]", text)
        page.wait_for("picture.name === 'text.png'")
        page.run(submit)
        page.wait_for("document.querySelector('#answer').classList.contains('error')")
        assert "the upload is no picture" in page.run("document.querySelector('#answer').innerText")
        assert page.run("document.querySelector('#videos').hidden")
        assert page.run(f"{video}.hasAttribute('src')") is False
