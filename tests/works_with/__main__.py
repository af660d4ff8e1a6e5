"""Tries every thing on every family, and writes the table of docs/works-with.md.

    python -m tests.works_with [--things LoRA] [--families Flux]

What has been tried is kept in a file, so that a run that was stopped goes on.
"""

import argparse
import json
import traceback
import warnings
from pathlib import Path

from tests.works_with.table import PAGE, replaced, written
from tests.works_with.things import THINGS
from tests.works_with.trial import NAMES, outcome


def main() -> None:
    """Tries what is missing or asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--things", nargs="+", default=[], help="parts of the names of those to try again")
    parser.add_argument("--families", nargs="+", choices=NAMES, default=[*NAMES])
    parser.add_argument("--kept", type=Path, default=Path("build/works-with.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    kept = json.loads(arguments.kept.read_text(encoding="utf-8")) if arguments.kept.exists() else {}
    for thing, (use, is_lossy) in THINGS.items():
        for name in arguments.families:
            key, is_asked = f"{thing} | {name}", any(part in thing for part in arguments.things)
            if not is_asked and (arguments.things or key in kept):
                continue
            try:
                kept[key] = outcome(use, name, is_lossy=is_lossy)
            except Exception:  # noqa: BLE001  (the table shows it, and the others go on)
                kept[key] = f"fails: {traceback.format_exc().strip().splitlines()[-1]}"
                traceback.print_exc()
            print(f"{key}: {kept[key]}", flush=True)  # noqa: T201  (it is a script)
            arguments.kept.parent.mkdir(parents=True, exist_ok=True)
            arguments.kept.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    outcomes = {(key.split(" | ")[0], key.split(" | ")[1]): value for key, value in kept.items()}
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), written(outcomes)), encoding="utf-8")


if __name__ == "__main__":
    main()
