"""Where a pruned pipeline comes from."""

import json
from pathlib import Path

import pytest

from ldpruner.publishing.origin import find_origin
from tests.hub_server import Hub, Repository

CARD = "---\nlicense: other\nlicense_name: terms-1\nlicense_link: LICENSE\ntags: [x]\n---\n# Text\n"


def model(folder: Path, card: str | None = None, noted: str | None = None) -> str:
    folder.mkdir(parents=True)
    index = {"_class_name": "LDMPipeline", **({"_name_or_path": noted} if noted else {})}
    (folder / "model_index.json").write_text(json.dumps(index))
    if card is not None:
        (folder / "README.md").write_text(card)
    return str(folder)


def test_a_folder_names_its_licence_and_gives_its_legal_files(tmp_path: Path) -> None:
    name = model(tmp_path / "m", CARD)
    for file in ("LICENSE.md", "NOTICE", "other.txt"):
        (tmp_path / "m" / file).write_text("text")
    origin = find_origin(name)
    assert origin.license == {"license": "other", "license_name": "terms-1", "license_link": "LICENSE"}
    assert [path.name for path in origin.legal_files] == ["LICENSE.md", "NOTICE"]
    assert (origin.name, origin.hub_id) == ("m", None)


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# no header",
        "---\nlicense: [a, b]\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: {a\n---\n",
        "---\nlicense: 3\n---",
    ],
)
def test_a_card_that_names_no_licence_gives_none(tmp_path: Path, card: str) -> None:
    assert find_origin(model(tmp_path / "m", card)).license == {}


def test_a_folder_in_the_cache_or_with_a_note_has_a_hub_id(tmp_path: Path) -> None:
    cached = model(tmp_path / "models--owner--some-name" / "snapshots" / "0a1b", CARD)
    assert find_origin(cached).hub_id == "owner/some-name"
    assert find_origin(model(tmp_path / "a", CARD, noted="owner/name")).hub_id == "owner/name"
    assert find_origin(model(tmp_path / "b", CARD, noted=str(tmp_path / "a"))).hub_id is None
    assert find_origin("owner/name", base_model="other/base").hub_id == "other/base"


def test_the_zoo_has_no_hub_id() -> None:
    origin = find_origin("zoo:satellite")
    assert (origin.name, origin.hub_id, origin.license) == ("zoo:satellite", None, {})


def test_the_card_on_the_hub_names_the_licence(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/name"] = Repository(private=False)
    hub.repositories["owner/name"].branches["main"]["README.md"] = CARD.encode()
    assert find_origin("owner/name").license["license_name"] == "terms-1"
    assert find_origin(model(tmp_path / "m"), base_model="owner/name").license["license"] == "other"


def test_a_card_that_cannot_be_read_leaves_the_licence_unknown(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    assert find_origin("owner/none").license == {}
    assert "its licence is not known" in caplog.text
