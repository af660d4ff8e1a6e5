"""Where a pruned pipeline comes from: the Hub id of its original, and the licence that it names."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from ldpruner.errors import LdPrunerError, one_line
from ldpruner.pipelines.index import read_index

LICENSE_KEYS = ("license", "license_name", "license_link")
LEGAL_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
CACHED = re.compile(r"models--([^/]+?)--([^/]+)")  # a folder in the cache of huggingface_hub

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The original of a pruned pipeline.

    Attributes:
        name: for people; of a local folder only its last part.
        hub_id: None if it is not known.
        license: the entries of its model card that name a licence.
        legal_files: licences and notices in its folder, which go along.
    """

    name: str
    hub_id: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)
    legal_files: tuple[Path, ...] = ()


def find_origin(model: str, base_model: str | None = None) -> Origin:
    """The origin of a pipeline that was opened by the name `model`.

    Args:
        model: a folder, a Hub id, or zoo:NAME.
        base_model: the Hub id; None looks for it in the name and in the folder.
    """
    folder = Path(model) if Path(model).is_dir() else None
    hub_id = base_model or (_hub_id_of_folder(folder) if folder else _as_hub_id(model))
    card = _card_of_folder(folder) if folder else {}
    if hub_id is not None and "license" not in card:
        card = _card_of_hub(hub_id)
    files = [path for pattern in LEGAL_FILES for path in (folder.glob(pattern) if folder else ())]
    return Origin(
        name=hub_id or (folder.resolve().name if folder else model),
        hub_id=hub_id,
        license={key: card[key] for key in LICENSE_KEYS if isinstance(card.get(key), str)},
        legal_files=tuple(sorted(path for path in files if path.is_file())),
    )


def _as_hub_id(name: str) -> str | None:
    return name if HUB_ID.fullmatch(name) and not name.startswith(".") else None


def _hub_id_of_folder(folder: Path) -> str | None:
    """The Hub id from which a folder came: by its place in the cache, or by what diffusers noted in it."""
    if cached := CACHED.search(folder.resolve().as_posix()):
        return f"{cached[1]}/{cached[2]}"
    try:
        noted = read_index(folder).get("_name_or_path")
    except (LdPrunerError, OSError):
        return None
    return _as_hub_id(noted) if isinstance(noted, str) and not Path(noted).exists() else None


def _card_of_folder(folder: Path) -> Mapping[str, Any]:
    return _read_card(folder / "README.md") if (folder / "README.md").is_file() else {}


def _card_of_hub(hub_id: str) -> Mapping[str, Any]:
    """The entries of a model card on the Hub; empty where it cannot be read."""
    try:
        return _read_card(Path(huggingface_hub.hf_hub_download(hub_id, "README.md")))
    except (OSError, ValueError) as error:
        logger.warning("the model card of %s cannot be read (%s); its licence is not known", hub_id, one_line(error))
        return {}


def _read_card(path: Path) -> Mapping[str, Any]:
    """The entries in front of a model card; empty where it has none."""
    try:
        header = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", path.read_text(encoding="utf-8"), re.DOTALL)
        entries = yaml.safe_load(header[1]) if header else {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        logger.warning("cannot read %s (%s)", path, one_line(error))
        return {}
    return entries if isinstance(entries, dict) else {}
