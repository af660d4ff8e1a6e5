"""Classes that diffusers cannot find by a folder's entries, under names by which it can.

For `[this module, "LIBRARY.CLASS"]` in a model_index.json, diffusers takes the attribute of that name, and the base
classes by which it knows how to load it.
"""

from typing import Any

import diffusers

from ldpruner.pipelines.meta import special_class


def __getattr__(name: str) -> Any:
    library, _, class_name = name.rpartition(".")
    return special_class(library, class_name) if library else getattr(diffusers, name)
