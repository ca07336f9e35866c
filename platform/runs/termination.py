"""End a job that receives SIGTERM as Ctrl-C ends it, so that it cleans up behind itself."""

import signal
import sys
import threading
from types import FrameType


def end_in_order() -> None:
    """Let SIGTERM end the process by SystemExit, with 143, and a second one at once.

    Changes nothing in a thread, or where SIGTERM is ignored or handled otherwise.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(128 + signum)
