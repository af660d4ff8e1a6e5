"""The run store: what was finished is there, and a damaged file is one line."""

import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ldpruner.errors import LdPrunerError, RunFolderBusy, RunStoreError, StorageError
from ldpruner.scoring.estimates import CURVES, Curve
from ldpruner.scoring.importance import Moments, merged, moments
from ldpruner.scoring.store import RunStore

KEY = ("mid_block", "identity")


def some_moments(seed: int, samples: int = 8) -> Moments:
    generator = np.random.default_rng(seed).normal(size=(2, samples, 4, 2, 2))
    return moments(generator[0], generator[1])


def curve_of(known: Moments) -> Curve:
    return Curve(known.squared_errors, {metric: {known.count: known.count / 3} for metric in CURVES}, 10 * known.count)


def record(store: RunStore, key: tuple[str, str], known: Moments) -> None:
    store.record(key, curve_of(known), known)


def single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


def test_what_was_recorded_is_there_when_opened_again(tmp_path: Path) -> None:
    known = some_moments(0)
    with RunStore(tmp_path, {}) as store:
        record(store, KEY, known)
        store.record_failure(("mid_block", "zero"), "RuntimeError: no")
        store.set_fact("model", {"name": "größer", "values": [1, 2.5, None]})
    with RunStore(tmp_path, {}) as store:
        curves, read = store.curves(), store.moments(KEY)
        assert list(curves) == [KEY]
        np.testing.assert_array_equal(curves[KEY].squared_errors, known.squared_errors)
        assert curves[KEY].scores == {metric: {8: 8 / 3} for metric in CURVES}
        np.testing.assert_array_equal(read.mean, single(known.mean))
        np.testing.assert_array_equal(read.m2, single(known.m2))
        np.testing.assert_array_equal(read.squared_errors, known.squared_errors)
        assert store.failures() == {("mid_block", "zero"): "RuntimeError: no"}
        assert store.fact("model") == {"name": "größer", "values": [1, 2.5, None]}
        assert store.fact("nothing") is None
        assert store.denoiser_calls() == 80


def test_one_running_moment_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    with RunStore(tmp_path, {}) as store:
        record(store, KEY, some_moments(0))
        running = merged(store.moments(KEY), some_moments(1, samples=3))
        record(store, KEY, running)
        assert store.moments(KEY).count == store.curves()[KEY].samples == 11
        assert store.denoiser_calls() == 110
        np.testing.assert_allclose(store.moments(KEY).mean, running.mean, rtol=1e-6)


def test_baseline_latents_are_kept_by_sample_with_their_shape(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(8, 4, 2, 3))
    with RunStore(tmp_path, {}) as store:
        store.record_baseline(dict(enumerate(latents)), 5)
    with RunStore(tmp_path, {}) as store:
        baseline = store.baseline()
        np.testing.assert_array_equal(np.stack([baseline[sample] for sample in range(8)]), latents)
        assert store.denoiser_calls() == 40


def test_moments_that_are_not_finite_stay_so(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, 1e300):
        known = Moments(np.full(4, value), np.full(4, value), np.full(2, value))
        with RunStore(tmp_path, {}) as store:
            record(store, KEY, known)
            read = store.moments(KEY)
        assert not np.isfinite(read.mean).any()
        np.testing.assert_array_equal(read.squared_errors, known.squared_errors)


def test_samples_are_written_all_or_none(tmp_path: Path) -> None:
    with RunStore(tmp_path, {}) as store:
        store._database.execute("CREATE TRIGGER no BEFORE INSERT ON moments BEGIN SELECT RAISE(ABORT, 'no'); END")
        with pytest.raises(RunStoreError):
            record(store, KEY, some_moments(0))
        assert store.curves() == {}
        store._database.execute("DROP TRIGGER no")
        record(store, KEY, some_moments(0))
        assert list(store.curves()) == [KEY]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunStore(None, {"model": "a"}) as store:
        record(store, KEY, some_moments(0))
        assert list(store.curves()) == [KEY]
    assert list(tmp_path.iterdir()) == []


def test_another_identity_is_refused_with_the_difference(tmp_path: Path) -> None:
    with RunStore(tmp_path, {"model": "a", "steps": 3}):
        pass
    with RunStore(tmp_path, {"model": "a", "steps": 3}):
        pass
    with pytest.raises(RunStoreError) as caught:
        RunStore(tmp_path, {"model": "a", "steps": 4})
    assert all(part in str(caught.value) for part in ("steps", "3 there", "4 here", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_second_driver_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with RunStore(tmp_path, {"model": "a"}) as first:
        with ThreadPoolExecutor() as threads, pytest.raises(RunFolderBusy, match="another process is writing"):
            threads.submit(RunStore, tmp_path, {"model": "a"}).result()
        with RunStore(tmp_path) as reader:
            assert reader.fact("identity") == {"model": "a"}
        first.set_fact("costs", 1)
    with RunStore(tmp_path, {"model": "a"}) as second:
        assert second.fact("costs") == 1


@pytest.fixture
def read_only() -> Iterator[Path]:
    """An empty folder that anybody can reach; in the test it may be closed to writing, also for root."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        os.seteuid(os.getuid())
        Path(folder).chmod(0o755)


@pytest.mark.case(name="read-only-run-folder")
def test_a_folder_that_cannot_be_written_can_be_read(read_only: Path) -> None:
    with RunStore(read_only, {"model": "a"}) as store:
        store.set_fact("costs", 1)
    read_only.chmod(0o555)
    (read_only / "run.sqlite").chmod(0o444)
    if os.getuid() == 0:
        os.seteuid(65534)
    with RunStore(read_only) as store:
        assert store.fact("costs") == 1
    with pytest.raises(StorageError, match="choose another run folder"):
        RunStore(read_only, {"model": "a"})


def test_an_empty_store_is_no_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(RunStoreError, match="is empty; score again"):
        RunStore(tmp_path)
    with RunStore(tmp_path, {}) as store:
        store.set_fact("costs", 1)


def test_a_corrupt_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"\x93garbage\n" * 1000)
    with pytest.raises(RunStoreError) as caught:
        RunStore(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "run.sqlite") in str(caught.value)
    assert (tmp_path / "run.sqlite").read_bytes() == b"\x93garbage\n" * 1000


def filled(folder: Path) -> bytes:
    """The content of a store with something in every table."""
    with RunStore(folder, {"model": "a"}) as store:
        store.set_fact("model", "zoo:satellite")
        store.record_baseline(dict(enumerate(np.random.default_rng(0).normal(size=(4, 4, 8, 8)))), 5)
        for place in range(20):
            record(store, (f"operator {place}", "identity"), some_moments(place, samples=32))
        store.record_failure(("mid_block", "zero"), "RuntimeError: no")
    return (folder / "run.sqlite").read_bytes()


def answers(folder: Path) -> Iterator[object]:
    """All that a store can be asked."""
    with RunStore(folder, {"model": "a"}) as store:
        yield store.fact("model")
        yield store.failures()
        yield store.denoiser_calls()
        yield sorted((sample, latents.tobytes()) for sample, latents in store.baseline().items())
        for key, curve in sorted(store.curves().items()):
            yield key, curve.scores, curve.squared_errors.tobytes(), store.moments(key).mean.tobytes()


def asked(folder: Path) -> tuple[list[object], str | None]:
    """The answers of a store, or its error message."""
    try:
        return list(answers(folder)), None
    except LdPrunerError as error:
        return [], str(error)


def damaged(content: bytes, seed: int) -> bytes:
    """A store with a byte flipped, cut short, or with a page of zeros."""
    generator = random.Random(seed)
    place = generator.randrange(len(content))
    if seed % 10 == 0:
        return content[:place]
    if seed % 10 == 1:
        start = place // 4096 * 4096
        return content[:start] + bytes(4096) + content[start + 4096 :]
    return content[:place] + bytes([content[place] ^ (1 << generator.randrange(8))]) + content[place + 1 :]


@pytest.mark.case(name="damaged-store")
def test_a_damaged_store_is_one_line_or_answers_as_before(tmp_path: Path) -> None:
    path, content = tmp_path / "run.sqlite", filled(tmp_path)
    expected, refused = list(answers(tmp_path)), 0
    for seed in range(150):
        for leftover in tmp_path.glob("run.sqlite-*"):
            leftover.unlink()
        path.write_bytes(damaged(content, seed))
        found, message = asked(tmp_path)
        if message is None:  # what is lost is sampled again
            assert all(answer in expected for answer in found if isinstance(answer, tuple)), seed
        else:
            refused += 1
            assert "\n" not in message
            assert str(path) in message
    assert refused > 50


def test_a_store_damaged_in_the_middle_is_one_line(tmp_path: Path) -> None:
    content, path = bytearray(filled(tmp_path)), tmp_path / "run.sqlite"
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(RunStoreError) as caught, RunStore(tmp_path, {}) as store:
        store.curves()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_foreign_database_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE photographs (name TEXT)")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(RunStoreError) as caught:
        RunStore(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, {}):
        pass
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RunStoreError, match="format 99"):
        RunStore(tmp_path)


@pytest.mark.parametrize("folder", ["/dev/null/run", "/proc/ld-pruner-run"])
def test_a_folder_that_cannot_be_written_is_one_line(folder: str) -> None:
    with pytest.raises(StorageError) as caught:
        RunStore(folder)
    assert folder in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("notes")
    with pytest.raises(StorageError) as caught:
        RunStore(file)
    assert str(file) in str(caught.value)
    assert file.read_text() == "notes"


def test_a_full_disk_is_one_line_and_finished_samples_are_kept(tmp_path: Path) -> None:
    def fill(store: RunStore) -> None:
        for place in range(2000):
            record(store, (f"operator {place}", "identity"), some_moments(place))

    with RunStore(tmp_path, {}) as store:
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages + 8}").fetchone()
        with pytest.raises(StorageError) as caught:
            fill(store)
        kept = len(store.curves())
    assert "full" in str(caught.value)
    assert str(tmp_path / "run.sqlite") in str(caught.value)
    assert "\n" not in str(caught.value)
    with RunStore(tmp_path, {}) as store:  # the limit is the connection's own
        assert len(store.curves()) == kept
        assert 0 < kept < 2000
        record(store, KEY, some_moments(0))


def test_a_store_of_a_large_model_is_small_and_opened_at_once(tmp_path: Path) -> None:
    """As many modifications as Stable Diffusion XL's; `benchmarks/scaling.py` has them in full size."""
    elements, modifications = 2048, 1300
    known = Moments(np.ones(elements), np.ones(elements), np.ones(64))
    with RunStore(tmp_path, {}) as store:
        for place in range(modifications):
            record(store, (f"operator {place}", "identity"), known)
    started = time.monotonic()
    with RunStore(tmp_path, {}) as store:
        curves = store.curves()
        assert store.denoiser_calls() == modifications * 640
    assert time.monotonic() - started < 2
    assert len(curves) == modifications
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 1.2 * modifications * (2 * 4 * elements + 8 * 64)
