"""The page in Chromium: it opens from disk, asks for nothing, and answers."""

import contextlib
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from ldpruner import select
from ldpruner.budget import Budget
from ldpruner.report.live import open_live
from ldpruner.report.page import write_report
from ldpruner.report.server import HOST, LiveServer, _listener
from ldpruner.run_folder import RunFolder
from ldpruner.scoring.results import Scores
from tests.report.conftest import HOSTILE
from tests.report.test_samples import sounds

pytestmark = pytest.mark.browser
FAST = 0.1  # seconds
SERIOUS = ("serious", "critical")
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def page(browser: Any, hostile: Path) -> Any:
    browser.set_window_size(1200, 900)
    browser.get(write_report(hostile).as_uri())
    return browser


def set_slider(page: Any, name: str, value: int) -> float:
    """Moves a slider; returns the seconds until the page has answered."""
    script = """
    const slider = document.querySelector(arguments[0]), started = performance.now();
    slider.value = arguments[1]; slider.dispatchEvent(new Event("input", {bubbles: true}));
    document.body.offsetHeight; return performance.now() - started;"""
    return float(page.execute_script(script, name, str(value))) / 1000


def set_theme(page: Any, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def removed(page: Any) -> set[str]:
    script = "return [...document.querySelectorAll('.operator.removed')].map(button => button.dataset.path)"
    return set(page.execute_script(script))


def test_it_opens_without_an_error_and_asks_for_nothing(page: Any) -> None:
    assert page.get_log("browser") == []
    addresses = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(address.startswith("data:") for address in addresses)
    assert page.find_elements("css selector", "img")
    assert page.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_the_budget_changes_the_map_and_the_numbers(page: Any, hostile: Path) -> None:
    scores, before = RunFolder(hostile).scores(), removed(page)
    text = page.find_element("id", "budget-text").text
    last = int(page.find_element("id", "budget").get_attribute("max"))
    assert set_slider(page, "#budget", last) < FAST
    plan = select(scores, Budget(latency=0.95 - 0.05 * last))
    names = {planned.operator for planned in plan.removed}
    assert names <= removed(page)
    assert all(any(path == name or path.startswith(f"{name}.") for name in names) for path in removed(page))
    assert f"{len(plan.removed)} operators removed" in page.find_element("id", "budget-text").text
    page.execute_script("document.getElementById('reset').click()")
    assert removed(page) == before
    assert page.find_element("id", "budget-text").text == text


def test_an_operator_is_described_when_it_is_reached_by_keyboard(page: Any) -> None:
    button = page.find_element("css selector", ".operator")
    page.execute_script("arguments[0].focus()", button)
    text = page.find_element("id", "operator-text").text
    assert text.startswith(f"{button.get_attribute('data-path')}, ")
    assert "score" in text or "cannot be removed" in text or "not sampled" in text


def test_a_point_of_the_chart_is_the_operator_of_the_map(page: Any) -> None:
    mark = page.find_element("css selector", "#importance-chart .mark[data-place]")
    page.execute_script("arguments[0].dispatchEvent(new Event('pointerover', {bubbles: true}))", mark)
    button = page.find_element("css selector", f".operator[data-place='{mark.get_attribute('data-place')}']")
    assert page.find_element("id", "operator-text").text.startswith(f"{button.get_attribute('data-path')}, ")
    assert ("removed" in mark.get_attribute("class")) == ("removed" in button.get_attribute("class"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(page: Any, theme: str) -> None:
    set_theme(page, theme)
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    violations = Axe().run(page)["violations"]
    assert not [(violation["id"], violation["help"]) for violation in violations if violation["impact"] in SERIOUS]


@pytest.mark.parametrize("seconds", [0.5, 20], ids=["wav", "mp3"])
def test_sounds_play(browser: Any, run: Path, seconds: float) -> None:
    shutil.rmtree(run / "samples")
    (run / "samples").mkdir()
    sounds(run / "samples", seconds, rate=16000)
    browser.get(write_report(run).as_uri())
    browser.find_element("tag name", "h1").click()  # sounds play only where a person is
    played = browser.execute_async_script("""
    const done = arguments[0], audio = document.querySelector("audio");
    const ended = () => { if (audio.currentTime > 0.1) done([audio.duration, audio.currentTime]); };
    audio.addEventListener("timeupdate", ended);
    audio.play().catch((error) => done(String(error)));""")
    assert isinstance(played, list), played
    duration, now = played
    assert duration == pytest.approx(seconds, abs=0.2)
    assert now > 0.1
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.get_log("browser") == []


def test_a_picture_is_uncovered(page: Any) -> None:
    style = "return getComputedStyle(document.querySelector('.pair .over')).clipPath"
    before = page.execute_script(style)
    set_slider(page, ".split", 10)
    assert page.execute_script(style) != before


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_a_phone_and_has_two_themes(page: Any, theme: str, width: int) -> None:
    emulated = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulated)
    set_theme(page, theme)
    try:
        assert page.execute_script(OVERFLOW) <= 0
        back = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (theme == "light")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_hostile_is_shown_and_never_run(page: Any) -> None:
    button = page.find_element("css selector", f".operator[data-path='{HOSTILE}']".replace("'too'", r"\'too\'"))
    page.execute_script("arguments[0].focus()", button)
    texts = [
        page.title,
        *(page.find_element("css selector", part).text for part in ("h1", "figcaption", "#operator-text")),
    ]
    assert all(HOSTILE in text for text in texts)


def enlarged(scores: Scores, count: int) -> Scores:
    """Scores of several copies of a denoiser, each a little different."""
    chance = random.Random(0)
    known = [score for score in scores.scores if math.isfinite(score.score)]
    rows = []
    for copy in range(-(-count // len(known))):
        for score in known:
            leaves = tuple(f"stage_{copy}.{leaf}" for leaf in score.candidate.leaves)
            changes = {
                "operator": f"stage_{copy}.{score.operator}",
                "candidate": score.candidate.model_copy(update={"leaves": leaves}),
                "score": score.score * chance.lognormvariate(0, 0.5),
            }
            rows.append(score.model_copy(update=changes))
    return scores.model_copy(update={"scores": tuple(rows[:count])})


def test_a_run_of_the_size_of_sdxl_opens_and_answers_at_once(
    browser: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = enlarged(RunFolder(run).scores(), 1300)
    monkeypatch.setattr(RunFolder, "scores", lambda _: large)
    path = write_report(run)
    started = time.monotonic()
    browser.get(path.as_uri())
    assert time.monotonic() - started < 2
    budgets = int(browser.find_element("id", "budget").get_attribute("max")) + 1
    assert budgets > 10
    assert max(set_slider(browser, "#budget", value) for value in range(budgets)) < FAST


@pytest.fixture
def live_page(text_run: Path) -> Iterator[str]:
    """The address of a live comparison."""
    server = LiveServer(open_live(text_run, device="cpu"), _listener(HOST, 0))
    yield server.address
    server.close()


def until(page: Any, script: str) -> Any:
    return WebDriverWait(page, 20).until(lambda _: page.execute_script(f"return {script}"))


def fill(page: Any, label: str, text: str) -> None:
    """Types into the field with a label."""
    field = page.find_element("xpath", f"//label[contains(., '{label}')]//*[self::input or self::textarea]")
    field.clear()
    field.send_keys(text)


def click_sample(page: Any) -> None:
    until(page, "[...document.querySelectorAll('button')].some(button => button.innerText == 'Sample')")
    page.find_element("xpath", "//button[normalize-space()='Sample']").click()


PICTURES = "[...document.images].filter(image => image.naturalWidth == 512).length == 2"
TEXT = "document.body.innerText"


@pytest.mark.filterwarnings("ignore")  # of Gradio
def test_the_live_comparison_shows_both_pictures_and_asks_for_nothing_from_elsewhere(
    live_page: str, tmp_path: Path
) -> None:
    with chromium() as page:
        page.set_window_size(1200, 1100)
        page.get(live_page)
        click_sample(page)
        assert until(page, PICTURES)
        assert until(page, f"{TEXT}.includes('% of the original')")
        page.save_screenshot(str(tmp_path / "page.png"))
        addresses = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert addresses
        assert not [address for address in addresses if not address.startswith((live_page, "data:", "blob:"))]
        assert page.get_log("browser") == []
        assert "<b>original" in page.find_element("tag name", "body").text
        fill(page, "Seed", HOSTILE)
        click_sample(page)
        assert until(page, f"{TEXT}.includes('<script>alert(1)</script>')")
        page.save_screenshot(str(tmp_path / "error.png"))
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        assert page.execute_script(OVERFLOW) <= 0


@pytest.mark.filterwarnings("ignore")  # of Gradio
def test_a_browser_that_is_closed_in_the_middle_keeps_nobody_waiting(live_page: str) -> None:
    with chromium() as page:
        page.get(live_page)
        until(page, f"{TEXT}.includes('Steps')")
        fill(page, "Steps", "900")
        click_sample(page)
        assert until(page, f"{TEXT}.includes('of 900')")
    with chromium() as page:
        page.get(live_page)
        started = time.monotonic()
        click_sample(page)
        assert until(page, PICTURES)
        assert time.monotonic() - started < 15
