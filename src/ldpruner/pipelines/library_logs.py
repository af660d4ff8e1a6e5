"""Messages of diffusers and transformers that say nothing to somebody who calls ld-pruner."""

import contextlib
import logging
from collections.abc import Iterator

LIBRARIES = ("diffusers", "transformers")
CHATTER = (
    "Expected types for",  # a pruned network is no instance of the class that a pipeline annotates
    "You have passed a non-standard module",  # an exported network of a class that only its pipeline has
    "requires torchvision",  # the fallback works
    "You are using a model of type",  # of a configuration that diffusers itself writes
)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return not any(phrase in record.getMessage() for phrase in CHATTER)


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Hides the messages in `CHATTER` inside a `with` block, which may hold another. All other messages pass."""
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
    handlers = [handler for handler in handlers if _is_worth_reading not in handler.filters]
    for handler in handlers:
        handler.addFilter(_is_worth_reading)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_worth_reading)
