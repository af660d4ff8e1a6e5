"""The command line: parse, call one function, print."""

import os
import signal
import sys
from types import FrameType

STOPPED = "stopped; run the same command again to resume"
INTERRUPTED = 130  # the exit code


def main() -> int:
    """Runs the command line and returns its exit code. A user's mistake is one line; Ctrl-C is one line and 130."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        from ldpruner.cli.app import run_app  # here, as Ctrl-C may come while it is imported

        return run_app()
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{STOPPED}\n")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, handler)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; during an import, ends the process: torch goes on with a numpy that is half there."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            sys.stderr.write(f"\n{STOPPED}\n")
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
