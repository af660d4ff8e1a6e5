"""The documentation site builds strictly, is complete, and loads nothing from elsewhere."""

import ast
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import griffe
import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import ldpruner
from ldpruner import errors
from ldpruner.values import Settings

ROOT = Path(__file__).parents[1]
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
MAX_FIGURE_BYTES = 200_000
TREE = (errors.LdPrunerError, errors.DenoiserNotFound)  # of errors, without its leaves


class Page(HTMLParser):
    """What a page loads, links to, and offers as anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        self.classes.update((values.get("class") or "").split())
        if address := values.get(LOADED.get(tag, "")):
            self.loaded.append(address)
        if tag == "a" and (address := values.get("href")):
            self.links.append(address)


def build(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site of a checkout, as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT, folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def entries(navigation: object) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, list):
        yield from (page for entry in navigation for page in entries(entry))
    elif isinstance(navigation, dict):
        yield from entries(list(navigation.values()))


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    listed = list(entries(navigation))
    assert not sources - set(listed)
    assert len(listed) == len(set(listed))
    assert not [page for page in listed if not (ROOT / page).exists()]


def test_figures_are_small() -> None:
    figures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert not [path.name for path in figures if path.stat().st_size > MAX_FIGURE_BYTES]


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    foreign = re.compile(r"(?:\w+:)?//")
    assert not [address for page in pages.values() for address in page.loaded if foreign.match(address)]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"""(?:@import\s*|url\()["']?(?:https?:)?//""", styles)
    # The theme would load its script from elsewhere for a diagram.
    assert not [path for path, page in pages.items() if "mermaid" in page.classes]


def test_links_lead_to_files_and_anchors_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for address in [*page.links, *page.loaded]:
            place, _, anchor = address.partition("#")
            if re.match(r"\w+:", address) or path.name == "404.html":  # its links start at the root of the site
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            is_missing = not target.is_relative_to(site.resolve()) or not target.exists()
            if is_missing or (anchor and target in pages and unquote(anchor) not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {address}")
    assert not broken


def test_every_public_name_is_on_the_api_page(site: Path, pages: dict[Path, Page]) -> None:
    described = pages[site / "api" / "index.html"].ids
    assert not [name for name in ldpruner.__all__ if f"ldpruner.{name}" not in described]
    family = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__base__ in TREE}
    listed = {name.removeprefix("ldpruner.errors.") for name in described if name.startswith("ldpruner.errors.")}
    assert listed == family


@pytest.mark.parametrize("settings", [ldpruner.Budget, ldpruner.Probe, ldpruner.Training])
def test_the_signature_of_settings_has_their_fields(settings: type[Settings]) -> None:
    extensions = griffe.load_extensions(str(ROOT / "docs" / "signatures.py"))
    shown = griffe.load(
        f"{settings.__module__}.{settings.__name__}", search_paths=[ROOT / "src"], extensions=extensions
    )
    assert isinstance(shown, griffe.Class)
    parameters = {parameter.name: str(parameter.default) for parameter in shown.parameters if parameter.name != "self"}
    fields = settings.model_fields
    assert list(parameters) == list(fields)
    for name, field in fields.items():
        assert field.default_factory is not None or ast.literal_eval(parameters[name]) == field.default


def test_every_page_can_be_searched(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert '"location":"method/"' in index
    assert "score_operators" in index


def test_each_kind_of_broken_link_fails_the_build(tmp_path: Path) -> None:
    for folder in ("docs", "benchmarks", "examples", "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc", "*.safetensors"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "orphan.md").write_text("# Orphan\n")
    with (tmp_path / "docs" / "faq.md").open("a") as page:
        page.write("[a](missing.md) [b](budgets.md#missing-anchor) [c](/absolute) [d](missing-folder)\n")
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode != 0
    faults = ("orphan.md", "missing.md", "#missing-anchor", "'/absolute'", "'missing-folder'")
    assert not [fault for fault in faults if fault not in result.stderr]


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serves the site, as its search needs a server."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.browser
def test_search_finds_pages_and_nothing_is_requested_from_elsewhere(address: str) -> None:
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        browser: Any = driver  # selenium types a part of it
        browser.get(f"{address}?q=knapsack")
        results = (By.CSS_SELECTOR, ".md-search-result__item")
        WebDriverWait(browser, 20).until(lambda page: page.find_elements(*results))
        for page in ("method/", "api/", "architecture/", "results/"):
            browser.get(address + page)
        messages: list[Any] = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert requested
    assert not [url for url in requested if not url.startswith((address, "data:", "blob:"))]
