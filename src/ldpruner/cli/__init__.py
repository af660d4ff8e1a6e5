"""The command line: parse, call one function, print."""

import sys

STOPPED = "stopped; run the same command again to resume"


def main() -> int:
    """Runs the command line and returns its exit code. A user's mistake is one line; Ctrl-C is one line and 130."""
    try:
        from ldpruner.cli.app import run_app  # here, as Ctrl-C may come while it is imported

        return run_app()
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{STOPPED}\n")
        return 130
