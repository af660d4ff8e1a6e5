"""The command line: parse, call one function, print."""

import os
import signal
import sys
from types import FrameType

STOPPED = "stopped; run the same command again to resume"
INTERRUPTED = 130  # the exit code after Ctrl-C
# Ctrl-C; what a scheduler or a container sends before it kills; a terminal that is closed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULTS = (signal.default_int_handler, signal.SIG_DFL)


def main() -> int:
    """Runs the command line and returns its exit code.

    A user's mistake is one line. So is a signal, with an exit code of 128 and its number: 130 for Ctrl-C.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt; during an import, ends the process: torch goes on with a half-imported numpy."""
        received.append(number)
        while frame is not None:
            if "importlib._bootstrap" in frame.f_code.co_filename:
                sys.stderr.write(f"\n{STOPPED}\n")
                sys.stderr.flush()
                os._exit(128 + number)
            frame = frame.f_back
        raise KeyboardInterrupt

    # one that is ignored stays so, as after nohup
    handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) in DEFAULTS}
    try:
        for number in handlers:
            signal.signal(number, interrupt)
        from ldpruner.cli.app import run_app  # here, as Ctrl-C may come while it is imported

        code = run_app()
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{STOPPED}\n")
        code = INTERRUPTED
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 128 + received[0] if received and code == INTERRUPTED else code
