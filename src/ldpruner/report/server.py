"""The page of the live comparison: built with Gradio, served on one address of this machine."""

import asyncio
import contextlib
import html
import ipaddress
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from ldpruner.errors import LdPrunerError, ServingError, is_out_of_memory, one_line
from ldpruner.evaluation.gallery import write_sample
from ldpruner.pipelines.probe import Probe
from ldpruner.progress import Progress, unreported
from ldpruner.report.live import ORIGINAL, Live, LiveSample, open_live
from ldpruner.report.samples import MAX_SIDE

HOST, PORT = "127.0.0.1", 7860
TITLE = "ld-pruner: live comparison"
MAX_WAITING = 32  # comparisons in the queue
CACHE, MAX_AGE = "cache", 3600.0  # Gradio's copies of the samples, and for how many seconds they are kept
# The page loads nothing from elsewhere. Gradio's own scripts are inline, and compile templates.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
STYLE = "footer { display: none !important }"
RANDOM_SEED = "() => String(Math.floor(Math.random() * 2 ** 31))"
TIMEOUT = 10.0  # seconds for the server to start or to stop

logger = logging.getLogger(__name__)


class LiveServer:
    """The page of a live comparison on a port, from the constructor to `close`.

    Attributes:
        address: of the page.
        folder: of the samples and of Gradio's copies of them; deleted by `close`.
    """

    def __init__(self, live: Live, listener: socket.socket) -> None:
        gradio, uvicorn = _packages()
        self._live, self._cleanup = live, contextlib.ExitStack()
        self.folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ldpruner-")))
        self._cleanup.enter_context(_environment("GRADIO_TEMP_DIR", str(self.folder / CACHE)))
        app = asyncio.run(_application(gradio, live, self.folder))
        settings = {"log_config": None, "log_level": "critical", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(app, **settings))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        self.address = _address(listener)
        self._wait_for_start()

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise ServingError(f"the server on {self.address} does not start; try again")
            time.sleep(0.01)

    def wait(self) -> None:
        """Serves until Ctrl-C."""
        try:
            self._thread.join()
        finally:
            self.close()

    def close(self) -> None:
        """Stops sampling and serving, and deletes the samples."""
        self._live.close()
        self._server.should_exit = True
        self._thread.join(TIMEOUT)
        self._cleanup.close()


def serve_run(
    run: Path | str,
    *,
    host: str = HOST,
    port: int = PORT,
    probe: Probe | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> LiveServer:
    """Opens the pipelines of a run folder (see `open_live`), and serves their comparison.

    Args:
        run: the run folder.
        host: the address to listen on; one that other machines reach is warned about.
        port: 0 takes a free one.
        probe, device, dtype: see `open_live`.

    Raises:
        ServingError: Gradio is not installed, or the port is in use.
    """
    _packages()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(host, port))
        live = open_live(run, probe=probe, device=device, dtype=dtype, progress=progress)
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            logger.warning("anybody who reaches port %d of %s can use the page", listener.getsockname()[1], host)
        server = LiveServer(live, listener)
        stack.pop_all()  # the server closes it
    return server


def _packages() -> tuple[Any, Any]:
    """Gradio, and the server that it brings."""
    try:
        import gradio
        import uvicorn
    except ImportError as error:
        raise ServingError(
            'the live comparison needs gradio, which is not installed; pip install "ld-pruner[serve]"'
        ) from error
    return gradio, uvicorn


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(cast(tuple[str, int], address[:2]), family=family)
    except (OSError, UnicodeError) as error:
        raise ServingError(f"cannot listen on {host} port {port}: {one_line(error)}; choose --host, --port") from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    place = ipaddress.ip_address(host)
    if place.is_unspecified:
        host = "::1" if place.version == 6 else HOST
    return f"http://[{host}]:{port}/" if place.version == 6 else f"http://{host}:{port}/"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable inside a `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


async def _application(gradio: Any, live: Live, folder: Path) -> Any:
    """The application; where no event loop runs, Gradio would leave some open."""
    return _with_policy(_mounted(gradio, _page(gradio, live, folder)))


def _mounted(gradio: Any, page: Any) -> Any:
    """The page as an application of its own: Gradio's `launch` sends requests through proxies to look at itself."""
    from fastapi import FastAPI

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        theme=gradio.themes.Default(**fonts),
        css=STYLE,
        footer_links=[],
        max_file_size=1,  # byte: nothing is uploaded
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )


def _with_policy(app: Any) -> Callable[..., Any]:
    """The application with a header that forbids the page every request to elsewhere."""
    from starlette.datastructures import MutableHeaders

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await app(scope, receive, send_guarded)

    return guarded


def _page(gradio: Any, live: Live, folder: Path) -> Any:
    """The page as Blocks; `folder` keeps the samples."""
    smaller = live.names[1:]
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.HTML(f"<h1>Live comparison</h1><p>{_escaped(live.model)}, run folder {_escaped(str(live.run))}</p>")
        prompt = gradio.Textbox(live.prompt, label="Prompt", visible=live.prompt is not None)
        with gradio.Row(equal_height=True):
            seed = gradio.Textbox("0", label="Seed", max_lines=1)
            steps = gradio.Number(live.probe.steps, label="Steps", step=1)
            choice = gradio.Radio(smaller, value=smaller[-1], label="Compare with", visible=len(smaller) > 1)
        with gradio.Row():
            button = gradio.Button("Sample", variant="primary")
            new_seed = gradio.Button("New seed")
        outputs = []
        with gradio.Row():
            for name in (ORIGINAL, smaller[-1]):
                with gradio.Column():
                    outputs += [gradio.Markdown(f"**{name}**"), _player(gradio, live)]
        event = {
            "fn": _comparison(gradio, live, folder),
            "inputs": [prompt, seed, steps, choice],
            "outputs": outputs,
            "concurrency_id": "sampling",
            "concurrency_limit": 1,
            "show_progress": "minimal",
            "show_progress_on": outputs[1::2],
        }
        triggers = [button.click, prompt.submit, seed.submit, steps.submit, choice.input]
        gradio.on(triggers, **event, api_name="compare")
        new_seed.click(None, None, seed, js=RANDOM_SEED).then(**event, api_visibility="private")
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _player(gradio: Any, live: Live) -> Any:
    if live.has_sound:
        return gradio.Audio(show_label=False, interactive=False, buttons=["download"])
    return gradio.Image(show_label=False, interactive=False, buttons=["download", "fullscreen"])


def _comparison(gradio: Any, live: Live, folder: Path) -> Callable[..., Iterator[list[Any]]]:
    """What the page calls: it yields at each report of the steps, where Gradio stops it if the browser is closed."""

    def compare(prompt: str | None, seed: str | None, steps: float | None, smaller: str | None) -> Iterator[list[Any]]:
        with _errors_on_page(gradio), tempfile.TemporaryDirectory(dir=folder) as samples:
            _delete_old(folder / CACHE)
            probe, names = live.request(prompt, seed, steps), (ORIGINAL, smaller or live.names[-1])
            shown = [part for name in names for part in (f"**{name}**", None)]
            yield shown
            seconds: list[float] = []
            for place, name in zip((0, 2), names, strict=True):
                for sample in live.sample(name, probe):
                    if sample.batch is None:
                        progress = f"**{name}**: step {min(sample.steps + 1, probe.steps)} of {probe.steps}"
                        yield [progress if index == place else gradio.skip() for index in range(len(shown))]
                seconds.append(sample.seconds)
                shown[place : place + 2] = f"**{name}**: {_duration(seconds)}", _written(sample, Path(samples) / name)
                yield shown if place else [*shown[:2], gradio.skip(), gradio.skip()]

    return compare


def _written(sample: LiveSample, path: Path) -> str | None:
    file = write_sample(sample.batch, path, MAX_SIDE) if sample.batch is not None else None
    return str(file) if file is not None else None


def _delete_old(cache: Path) -> None:
    for file in cache.glob("*/*"):
        if time.time() - file.stat().st_mtime > MAX_AGE:
            file.unlink(missing_ok=True)


def _duration(seconds: list[float]) -> str:
    """The seconds of the latest pipeline, and which part of the first one's they are."""
    first, latest = seconds[0], seconds[-1]
    share = f", {100 * latest / first:.0f} % of the original" if len(seconds) > 1 else ""
    return f"{latest:.2f} s{share}"


@contextlib.contextmanager
def _errors_on_page(gradio: Any) -> Iterator[None]:
    """Shows an error as one line on the page. Its text is read as HTML there."""
    try:
        yield
    except Exception as error:  # whatever it is, the server goes on
        message = str(error) if isinstance(error, LdPrunerError) else one_line(error)
        if is_out_of_memory(error):
            message = "out of memory; serve again with --dtype float16"
        raise gradio.Error(html.escape(message), print_exception=False) from error


def _escaped(text: str) -> str:
    """Text that HTML and Gradio's templates show as it is."""
    return "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
