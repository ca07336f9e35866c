"""Lines fit the terminal, are aligned, and are coloured only where somebody sees it."""

import io
import os
import pty
import re
import sys
import termios
from collections.abc import Iterator

import pytest

from magicdistill.data_pipeline import console
from magicdistill.platform.runs import logs

TERMS = [
    "critic/discriminator 1.389",
    "critic/fake_score 0.09772",
    "generator/adversarial -0.7184",
    "validation/gap_cosine 0.9982",
]
CYCLE = "cycle 2/2  3.36 s each, 7 s left  " + "  ".join(TERMS)
END = "\x04"
"""What a test writes after all that it looks at."""
PATH = "/a/folder/whose/name/is/longer/than/the/line/" + "x" * 40


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.TextIOWrapper]:
    """The slave of a pseudo terminal, in an environment in which somebody watches."""
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 60))
    with open(slave, "w", buffering=1) as stream, open(master, "rb", buffering=0) as reader:
        stream.reader = reader  # type: ignore[attr-defined]
        yield stream


def written(stream: io.TextIOWrapper) -> str:
    """Return what came out of the terminal, whose kernel hands it over in parts of its own."""
    stream.write(END)
    stream.flush()
    received = b""
    while not received.endswith(END.encode()):
        received += os.read(stream.reader.fileno(), 65536)  # type: ignore[attr-defined]
    return received.decode().removesuffix(END)


@pytest.mark.parametrize(("elapsed_s", "time"), [(264.0, "[  4:24] "), (400_000.5, "[6666:40] ")])
@pytest.mark.parametrize("width", [40, 60, 80, 120, 400])
@pytest.mark.parametrize(
    "message",
    [
        "starting Ray",
        "the clips changed since the run began, and so the run cannot go on as it is " * 3,
        CYCLE,
        "time went to  forward 25.9%  backward 25.8%  other ranks 0.2%  logging 0.0%",
        "  rejected portrait-world/12: motion 0.01 px, and the policy wants at least 0.02 px",
        "several lines:\n  one\n  two, which goes on and on until it needs another row or two",
    ],
)
def test_lines_are_no_wider_than_the_terminal_and_lose_no_word(
    message: str, width: int, elapsed_s: float, time: str
) -> None:
    text = console.format_lines(message, elapsed_s, width)
    assert max(map(len, text.split("\n"))) <= width
    assert text.startswith(time)
    assert text.removeprefix(time).split() == message.split()


def test_a_path_stays_whole_and_as_far_right_as_it_can() -> None:
    text = console.format_lines(f"video  {PATH}", 0.0, len(PATH) + 3)
    assert text.split("\n") == ["[  0:00] video", "   " + PATH]


def test_metrics_stand_in_columns() -> None:
    assert console.format_lines(CYCLE, 0.0, 80).split("\n") == [
        "[  0:00] cycle 2/2  3.36 s each, 7 s left",
        "           critic/discriminator  1.389    critic/fake_score     0.09772",
        "           generator/adversarial -0.7184  validation/gap_cosine 0.9982",
    ]


def test_a_terminal_gets_the_time_since_the_start_and_colours(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    logs.say("warning: channels 3 hold the same value everywhere")
    assert re.fullmatch(
        r"\033\[2m\[ *\d+:\d\d\]\033\[0m \033\[33mwarning: [^\033]+\033\[0m\r\n",
        written(terminal),
    )


@pytest.mark.parametrize("value", ["1", "0", "no"])
def test_no_color_is_honoured(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    console.write("stopped", console.YELLOW)
    console.close_bar(console.open_bar(10, "{bar}"))
    assert "\033[3" not in (text := written(terminal)) and "stopped" in text


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb"), ("", "")])
def test_where_nobody_watches_lines_are_plain_and_dated(
    terminal: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    if name:
        monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", terminal)
    console.write(CYCLE, console.RED)
    text = written(terminal) if name else capsys.readouterr().out
    stamp, line = text.rstrip().split("] ")
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stamp)
    assert line == CYCLE


def test_a_line_is_printed_above_a_live_bar_which_goes_on(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = console.open_bar(4, "{desc} {n_fmt}/{total_fmt}", "score")
    console.write("a line")
    console.close_bars()
    rows = re.split(r"[\r\n]+", re.sub(r"\033\[\d*m", "", written(terminal)))
    shown = [row.strip() for row in rows if row.strip()]
    assert shown[0] == shown[2] == "score 0/4"
    assert shown[1].endswith("] a line")
    assert not shown[3:] and bar.disable
