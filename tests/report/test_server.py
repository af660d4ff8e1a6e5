"""The page of the live comparison, asked over HTTP as a browser does."""

import html
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio_client
import httpx
import numpy as np
import pytest
from gradio_client.exceptions import AppError
from numpy.testing import assert_array_equal
from PIL import Image

from ldpruner.errors import ServingError
from ldpruner.report.live import MAX_STEPS, Live, open_live
from ldpruner.report.server import HOST, LiveServer, _escaped, _listener, serve_run
from tests.report.conftest import HOSTILE

PROMPT = "a dog on the sea"
SCALE = 32  # 16 pixels become 512
MANY = 900  # steps

pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio and its client


@pytest.fixture(scope="module")
def live(text_run: Path) -> Live:
    return open_live(text_run, device="cpu")


@pytest.fixture(scope="module")
def server(live: Live) -> Iterator[LiveServer]:
    started = LiveServer(live, _listener(HOST, 0))
    yield started
    started.close()


@pytest.fixture
def client(server: LiveServer, tmp_path: Path) -> Iterator[Any]:
    with_files = gradio_client.Client(server.address, verbose=False, download_files=tmp_path, analytics_enabled=False)
    yield with_files
    with_files.close()


def compare(client: Any, prompt: Any = PROMPT, seed: Any = "5", steps: Any = 2, smaller: Any = "pruned") -> list[Any]:
    """The captions and files that the page gets: of the original, then of the other."""
    return list(client.predict(prompt, seed, steps, smaller, api_name="/compare"))


def pixels(path: str) -> np.ndarray[Any, Any]:
    """The picture without its enlargement."""
    enlarged = np.asarray(Image.open(path))
    picture = enlarged[::SCALE, ::SCALE]
    assert_array_equal(picture.repeat(SCALE, 0).repeat(SCALE, 1), enlarged)
    return picture


def expected(live: Live, name: str, seed: int, prompt: str = PROMPT) -> np.ndarray[Any, Any]:
    *_, sample = live.sample(name, live.request(prompt, seed, 2))
    assert sample.batch is not None
    assert sample.batch.pictures is not None
    return np.asarray(sample.batch.pictures[0, 0])


@pytest.mark.parametrize("smaller", ["pruned", "recovered"])
def test_a_comparison_gives_both_pictures_and_their_seconds(client: Any, live: Live, smaller: str) -> None:
    before, original, after, pruned = compare(client, smaller=smaller)
    assert_array_equal(pixels(original), expected(live, "original", 5))
    assert_array_equal(pixels(pruned), expected(live, smaller, 5))
    assert re.fullmatch(r"\*\*original\*\*: \d+\.\d\d s", before)
    assert re.fullmatch(rf"\*\*{smaller}\*\*: \d+\.\d\d s, \d+ % of the original", after)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": "-1"}, "seed='-1'"),
        ({"seed": "1.5"}, "seed='1.5'"),
        ({"seed": HOSTILE}, "seed="),
        ({"seed": None}, "seed=None"),
        ({"seed": ["a", {"b": 1}]}, "seed="),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10_000}, f"less than or equal to {MAX_STEPS}"),
        ({"steps": "many"}, "steps='many'"),
        ({"steps": {"a": 1}}, "steps={"),
        ({"prompt": "x" * 100_000}, "the prompt has 100000 characters"),
        ({"smaller": "nowhere"}, "nowhere"),
    ],
)
def test_a_bad_request_is_one_line_and_the_server_goes_on(
    client: Any, live: Live, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AppError) as raised:
        compare(client, **changes)
    message = str(raised.value)
    assert problem in html.unescape(message)
    assert "\n" not in message
    assert "<" not in message or "class" in message  # Gradio's own message of a choice that does not exist
    assert_array_equal(pixels(compare(client)[3]), expected(live, "pruned", 5))


@pytest.mark.parametrize("prompt", ["", HOSTILE, "x" * 9_000, "\0\x1b[31m"])
def test_any_text_is_a_prompt(client: Any, live: Live, prompt: str) -> None:
    assert_array_equal(pixels(compare(client, prompt)[1]), expected(live, "original", 5, prompt))


@pytest.mark.parametrize(
    "body", [b"{}", b"[", b'{"data": []}', b'{"data": [1, 2, 3, 4, 5, 6]}', b'{"data": {"a": 1}}']
)
def test_a_malformed_call_is_refused(server: LiveServer, client: Any, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.address}gradio_api/call/compare", content=body, headers=headers)
    text = answer.text
    if answer.status_code == httpx.codes.OK:
        text = httpx.get(f"{server.address}gradio_api/call/compare/{answer.json()['event_id']}").text
        assert "event: error" in text
    assert "Traceback" not in text
    assert compare(client)[3]


def test_nobody_passes_the_queue_or_uploads_or_reads_files(server: LiveServer, text_run: Path) -> None:
    api = f"{server.address}gradio_api/"
    assert httpx.post(f"{api}api/compare", json={"data": [PROMPT, "1", 2, "pruned"]}).status_code == 404
    assert httpx.post(f"{api}upload", files={"files": b"several bytes"}).status_code >= 400
    for path in (text_run / "plan.json", "/etc/passwd", f"{text_run}/../run/plan.json"):
        assert httpx.get(f"{api}file={path}").status_code == 403


def test_users_at_once_get_the_pictures_of_their_own_seeds(server: LiveServer, live: Live, tmp_path: Path) -> None:
    def pictures(seed: int) -> list[np.ndarray[Any, Any]]:
        place = tmp_path / str(seed)
        user = gradio_client.Client(server.address, verbose=False, download_files=place, analytics_enabled=False)
        captions = compare(user, seed=str(seed), smaller=live.names[1 + seed % 2])
        user.close()
        return [pixels(captions[1]), pixels(captions[3])]

    with ThreadPoolExecutor(3) as users:
        results = list(users.map(pictures, (1, 2, 3)))
    for seed, (original, smaller) in zip((1, 2, 3), results, strict=True):
        assert_array_equal(original, expected(live, "original", seed))
        assert_array_equal(smaller, expected(live, live.names[1 + seed % 2], seed))


def test_samples_are_kept_for_an_hour(client: Any, server: LiveServer) -> None:
    compare(client, seed="81")
    old = set(server.folder.glob("cache/*/*"))
    assert len(old) >= 2
    for file in old:
        os.utime(file, (0, 0))
    compare(client, seed="82")
    left = set(server.folder.glob("cache/*/*"))
    assert len(left) == 2
    assert not left & old


def test_a_user_who_leaves_is_not_waited_for(client: Any, live: Live) -> None:
    counted: list[int] = []
    hook = live._pipelines["original"].unet.register_forward_hook(lambda *_: counted.append(1))
    job = client.submit(PROMPT, "1", MANY, "pruned", api_name="/compare")
    while not counted:
        assert not job.done()
    job.cancel()
    assert_array_equal(pixels(compare(client)[3]), expected(live, "pruned", 5))
    hook.remove()
    assert len(counted) < MANY


def test_names_and_prompts_are_data_and_no_markup(server: LiveServer) -> None:
    page = httpx.get(server.address)
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "<b>original" not in page.text
    config = httpx.get(f"{server.address}config").json()
    (header,) = [part["props"]["value"] for part in config["components"] if part["type"] == "html"]
    assert "<b>" not in header
    assert html.unescape(header).endswith("run</p>")
    assert "<b>original, run folder" in html.unescape(header)
    assert html.unescape(_escaped(HOSTILE)) == HOSTILE
    assert not set("<>{}$[]\"'`") & set(_escaped(HOSTILE))


def test_the_page_asks_for_nothing_from_elsewhere(server: LiveServer) -> None:
    config = httpx.get(f"{server.address}config").json()
    assert config["analytics_enabled"] is False
    assert not config["stylesheets"]
    page = httpx.get(server.address).text
    addresses = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="([^"]+)"', page)
    assert addresses
    assert not [address for address in addresses if "//" in address.replace(server.address, "")]


def other_addresses() -> list[str]:
    """Addresses of this machine that are not 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return ["127.0.0.2", str(probe.getsockname()[0])]
        except OSError:
            return ["127.0.0.2"]


def test_only_this_machine_can_connect(server: LiveServer) -> None:
    port = int(server.address.rstrip("/").rpartition(":")[2])
    socket.create_connection((HOST, port), 5).close()
    for address in other_addresses():
        with pytest.raises(OSError, match=r"refused|unreachable|assign"):
            socket.create_connection((address, port), 5)


@pytest.mark.parametrize("host", ["0.0.0.0", *["::"] * socket.has_dualstack_ipv6(), "localhost"])
def test_a_host_that_others_reach_is_warned_about(
    text_run: Path, live: Live, host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.report.server.open_live", lambda *_, **__: Live(
        live._pipelines, live.probe, live.model, live.run, has_sound=False
    ))  # fmt: skip
    with caplog.at_level(logging.WARNING, "ldpruner"):
        server = serve_run(text_run, host=host, port=0)
    assert httpx.get(server.address).status_code == 200
    assert server.folder.is_dir()
    assert not server.folder.stat().st_mode & 0o77
    server.close()
    assert not server.folder.exists()
    own = [record for record in caplog.records if record.name.startswith("ldpruner")]
    assert [record.getMessage().startswith("anybody who reaches port ") for record in own] == (
        [True] if host != "localhost" else []
    )
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)


def test_a_port_in_use_is_one_line(server: LiveServer, tmp_path: Path) -> None:
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ServingError, match=rf"cannot listen on 127.0.0.1 port {port}: .*in use.*--port"):
        serve_run(tmp_path, port=port)
    with pytest.raises(ServingError, match=r"cannot listen on nowhere\.invalid"):
        serve_run(tmp_path, host="nowhere.invalid")


def test_a_missing_gradio_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ServingError, match=re.escape('pip install "ld-pruner[serve]"')):
        serve_run(tmp_path)


def test_one_call_is_offered_to_programs(server: LiveServer) -> None:
    info = httpx.get(f"{server.address}gradio_api/info").json()["named_endpoints"]
    assert list(info) == ["/compare"]
    assert [value["parameter_name"] for value in info["/compare"]["parameters"]] == [
        *("prompt", "seed", "steps", "smaller"),
    ]
