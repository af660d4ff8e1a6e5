"""The ledger: what was finished is there, and a file that is no ledger is told from one that is."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ldpruner.errors import RunStoreError, StorageError
from ldpruner.scoring.blocks import Block, layout
from ldpruner.scoring.importance import METRICS, Moments, importance, moments
from ldpruner.scoring.store import BASELINE, RunStore

KEY = ("mid_block", "identity")
FIRST = Block(0, 8)


def some_moments(seed: int, samples: int = 8) -> Moments:
    draw = np.random.default_rng(seed).normal(size=(2, samples, 4, 2, 2))
    return moments(draw[0], draw[1])


def assert_same(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    np.testing.assert_array_equal(one.squared_errors, other.squared_errors)
    np.testing.assert_array_equal(one.cosine_distances, other.cosine_distances)
    for name in ("mean", "m2", "pooled"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_was_recorded_is_there_to_the_bit_when_opened_again(tmp_path: Path) -> None:
    blocks = {FIRST: some_moments(0), Block(8, 11): some_moments(1, samples=3), Block(8, 16): some_moments(2)}
    with RunStore(tmp_path) as store:
        store.record(KEY, blocks, 10)
        store.record_failure(("mid_block", "zero"), "RuntimeError: no")
        store.set_fact("model", {"name": "größer", "values": [1, 2.5, None]})
    with RunStore(tmp_path) as store:
        finished = store.finished(KEY)
        assert set(finished) == set(blocks)
        for block, one in blocks.items():
            assert_same(finished[block], one)
        assert store.finished(BASELINE) == {}
        assert store.failures() == {("mid_block", "zero"): "RuntimeError: no"}
        assert store.fact("model") == {"name": "größer", "values": [1, 2.5, None]}
        assert store.fact("nothing") is None
        assert store.denoiser_calls() == 10 * (8 + 3 + 8)


def test_untouched_latents_are_kept_with_their_shape(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(8, 4, 2, 3))
    with RunStore(tmp_path) as store:
        store.record(BASELINE, {FIRST: moments(latents, latents)}, 1, {FIRST: latents})
    with RunStore(tmp_path) as store:
        np.testing.assert_array_equal(store.baseline()[FIRST], latents)


def test_moments_that_are_not_finite_stay_so(tmp_path: Path) -> None:
    baseline = np.ones((2, 4, 2, 2))
    with RunStore(tmp_path) as store:
        store.record(KEY, {Block(0, 2): moments(np.full_like(baseline, np.nan), baseline)}, 1)
        (read,) = store.finished(KEY).values()
    base = moments(baseline, baseline)
    assert [importance(base, read, metric) for metric in METRICS] == [np.inf] * len(METRICS)


def test_blocks_are_written_all_or_none(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store._database.execute("CREATE TRIGGER no BEFORE INSERT ON untouched BEGIN SELECT RAISE(ABORT, 'no'); END")
        with pytest.raises(RunStoreError):
            store.record(BASELINE, {FIRST: some_moments(0)}, 1, {FIRST: np.ones((8, 4, 2, 2))})
        assert store.finished(BASELINE) == {}  # its moments were not written without its latents
        assert store.baseline() == {}
        store.record(KEY, {FIRST: some_moments(0)}, 1)
        assert list(store.finished(KEY)) == [FIRST]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunStore(None, {"model": "a"}) as store:
        store.record(KEY, {FIRST: some_moments(0)}, 1)
        assert list(store.finished(KEY)) == [FIRST]
    assert list(tmp_path.iterdir()) == []


def test_another_identity_is_refused_and_the_difference_told(tmp_path: Path) -> None:
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
        with pytest.raises(RunStoreError, match="another process is writing"):
            RunStore(tmp_path, {"model": "a"})
        with RunStore(tmp_path) as reader:
            assert reader.fact("identity") == {"model": "a"}
        first.set_fact("costs", 1)
    with RunStore(tmp_path, {"model": "a"}) as second:
        assert second.fact("costs") == 1


def test_a_corrupt_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"\x93garbage\n" * 1000)
    with pytest.raises(RunStoreError) as caught:
        RunStore(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "run.sqlite") in str(caught.value)
    assert (tmp_path / "run.sqlite").read_bytes() == b"\x93garbage\n" * 1000


def test_a_ledger_damaged_in_the_middle_is_told(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.record(KEY, {block: some_moments(block.start) for block in layout(400)}, 1)
    path = tmp_path / "run.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(RunStoreError) as caught, RunStore(tmp_path) as store:
        store.finished(KEY)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_foreign_database_is_told_and_left_alone(tmp_path: Path) -> None:
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


def test_a_ledger_of_another_format_is_told(tmp_path: Path) -> None:
    with RunStore(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RunStoreError, match="format 99"):
        RunStore(tmp_path)


@pytest.mark.parametrize("folder", ["/dev/null/run", "/proc/ld-pruner-run"])
def test_a_folder_that_cannot_be_written_is_told(folder: str) -> None:
    with pytest.raises(StorageError) as caught:
        RunStore(folder)
    assert folder in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("notes")
    with pytest.raises(StorageError) as caught:
        RunStore(file)
    assert str(file) in str(caught.value)
    assert file.read_text() == "notes"


def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    def fill(store: RunStore) -> None:
        for start in range(0, 8000, 8):
            store.record(KEY, {Block(start, start + 8): some_moments(start)}, 1)

    with RunStore(tmp_path) as store:
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages + 8}").fetchone()
        with pytest.raises(StorageError) as caught:
            fill(store)
        kept = len(store.finished(KEY))
    assert "full" in str(caught.value)
    assert str(tmp_path / "run.sqlite") in str(caught.value)
    assert "\n" not in str(caught.value)
    with RunStore(tmp_path) as store:  # the limit is the connection's own
        finished = store.finished(KEY)
        assert [block.start for block in finished] == list(range(0, 8 * kept, 8))
        assert 0 < kept < 1000
        store.record(KEY, {Block(8 * kept, 8 * kept + 8): some_moments(kept)}, 1)


def test_a_ledger_of_a_large_model_is_small_and_opened_at_once(tmp_path: Path) -> None:
    """As many blocks as Stable Diffusion XL's; `benchmarks/scaling.py` has them in full size."""
    elements, blocks = 2048, [Block(start, start + 8) for start in range(0, 64, 8)]
    one = Moments(8, np.ones(elements), np.ones(elements), np.ones(8), np.ones(8), np.ones((8, 4)))
    with RunStore(tmp_path) as store:
        for place in range(1300):
            store.record((f"operator {place}", "identity"), dict.fromkeys(blocks, one), 25)
    started = time.monotonic()
    with RunStore(tmp_path) as store:
        finished = store.finished_blocks()
        assert store.denoiser_calls() == 1300 * len(blocks) * 8 * 25
    assert time.monotonic() - started < 2
    assert sum(map(len, finished.values())) == 1300 * len(blocks)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 1.1 * 1300 * len(blocks) * 2 * 8 * elements
