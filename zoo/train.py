"""Trains a zoo model: `python -m zoo.train satellite --data FOLDER --out FOLDER`.

To resume, run the same command again.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoo.digits import DIGITS, make_digits
from zoo.emoji import EMOJI, make_emoji
from zoo.satellite import SATELLITE, make_satellite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zoo.recipe import Recipe

MAKERS: Mapping[str, tuple[Callable[..., None], Recipe]] = {
    "digits": (make_digits, DIGITS),
    "emoji": (make_emoji, EMOJI),
    "satellite": (make_satellite, SATELLITE),
}


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MAKERS))
    parser.add_argument("--data", type=Path, required=True, help="folder with train.zip and test.zip")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--device", default="cpu", help="where the networks are trained")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    make, recipe = MAKERS[options.model]
    make(replace(recipe, device=options.device), options.data, options.out)


if __name__ == "__main__":
    main()
