"""What the benchmarks make of what they have measured."""

import io
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from metalora.errors import UserError
from metalora.group import Group
from pipelines.bench import data, knn, memory, scaling, trials
from pipelines.bench.common import Timing, read_options
from pipelines.bench.photos import write_photos
from pipelines.bench.training import STOP_SECONDS, first_step, run_command, step_seconds, training_settings


def test_steps_are_timed_between_the_reports_of_an_epoch() -> None:
    # 25 steps an epoch, batch 8: warming up 1 s, then 0.1 s a step, then a pause, then 0.2 s a step
    first = [(10, 1.0 + 1.0), (20, 1.0 + 2.0), (25, 1.0 + 2.5)]
    second = [(35, 2.0), (45, 4.0), (50, 5.0)]
    reports = [(step, 0.0, ((step - 1) % 25 + 1) * 8 / seconds) for step, seconds in first + second]
    assert step_seconds(reports, 8, 25) == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert step_seconds(reports[:1], 8, 25) == []


def test_the_first_step_began_before_its_report() -> None:
    assert first_step([(10, 1000.0, 40.0)], 8) == pytest.approx(998.0)


def test_efficiency_is_the_rate_over_that_of_as_many_lone_workers() -> None:
    assert scaling.efficiency(4, 32, 1.0, 8, 1.0) == 1
    assert scaling.efficiency(4, 8, 0.5, 8, 1.0) == 0.5
    assert scaling.shares(8, 4) == {"weak": 8, "strong": 2}
    assert scaling.world_sizes(6) == [1, 2, 4]
    assert scaling.world_sizes(1) == [1]


def test_a_synthetic_trainer_trains_without_images() -> None:
    config = training_settings(read_options("scaling", "", {}, ["--small"], sections=scaling.SETTINGS))
    trainer = scaling.synthetic_trainer(config, 20, Group(torch.device("cpu")))
    assert scaling._time_epoch(trainer) > 0
    assert trainer.step == 20


def test_scaling_rows() -> None:
    one = scaling.Measurement(1, {"weak": 1.0, "strong": 1.0}, {"weak": 1.0, "strong": 1.0}, 0.0)
    two = scaling.Measurement(2, {"weak": 1.25, "strong": 1.0}, {"weak": 1.0, "strong": 0.5}, 0.01)
    config = training_settings(read_options("scaling", "", {}, ["--small"], sections=scaling.SETTINGS))
    result = scaling._result(config, [1, 2], [one, two], 1)
    assert [row["efficiency"] for row in result.rows] == [1, 0.8, 1, 0.5]
    assert [row["apart"] for row in result.rows] == [1, 1, 1, 1]
    assert result.facts == {"weak efficiency": 0.8, "strong efficiency": 0.5}


@pytest.mark.parametrize("kind", ["clustered", "random"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_knn_rows(kind: str, metric: knn.Metric) -> None:
    (row,) = knn.compare(kind, metric, *knn.make_features(kind, 300, 40, 16, 5), 5, 1)[:1]
    assert row["agreement"] == 1
    assert row["ratio to 4 calls"] == pytest.approx(row["4 calls s"] / row["ours s"])
    assert row["floor s"] == pytest.approx(2 * 300 * 40 * 16 / row["product GFLOP/s"] / 1e9)


def test_data_rows() -> None:
    options = read_options("data", "", data.SIZES, ["--small"], sections=("backbone", "data"))
    config = training_settings(options)
    backbone, _ = data.build_networks(config, print)
    times = {"bare": Timing((1.0,)), "no loader": Timing((2.0,)), "0": Timing((4.0,)), "1": Timing((2.5,))}
    result = data._result(config, backbone, 100, [0, 1], times)
    assert [row["images/s"] for row in result.rows] == [100, 50, 25, 40]
    assert [row["to floor"] for row in result.rows] == [1, 0.5, 0.25, 0.4]
    assert result.facts == {"best images/s": 40, "bare images/s": 100}


def test_pauses_and_trials_an_hour() -> None:
    spans = [trials.Span(0, 10), trials.Span(12, 20), trials.Span(21, 36)]
    campaign = trials.Campaign(spans, 60)
    assert campaign.pauses == [2, 1]
    assert campaign.hourly == 300
    assert campaign.training == 11


def test_photos_are_real_and_of_every_split(tmp_path: Path) -> None:
    table = pq.read_table(write_photos(tmp_path / "photos.parquet", 80, 32)).to_pylist()
    assert len(table) == 80
    for split in ("train", "val", "test"):
        assert {(row["domain"], row["label"]) for row in table if row["split"] == split} >= {("china", "upper left")}
    with Image.open(io.BytesIO(table[5]["image"])) as image:
        assert image.size == (32, 32)
        assert np.asarray(image).std() > 5


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it broke"):
        run_command([sys.executable, "-c", "raise SystemExit('it broke')"], tmp_path / "log.txt")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_command_is_stopped_when_it_has_done_enough(tmp_path: Path, handler: Any) -> None:
    """Interrupts are ignored, and children inherit that, in what a script starts in the background."""
    code = "import pathlib, time; pathlib.Path('log.txt.done').touch(); time.sleep(60)"
    done = tmp_path / "log.txt.done"
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"]
    before = signal.signal(signal.SIGINT, handler)
    try:
        began = run_command(command, tmp_path / "log.txt", until=done.exists)
        assert time.time() - began < STOP_SECONDS / 2
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("limit", [0, 1, 15, 16, 17, 100, 1600, 1700])
@pytest.mark.parametrize("guess", [0, 5, 100, 1690, 4000])
def test_largest_batch(limit: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    assert memory.largest_batch(fits, guess, 16) == limit // 16 * 16
    assert len(set(tried)) == len(tried) <= 16
    assert min(tried) > 0
    if limit == 1700 and guess == 1690:
        assert tried == [1680, 1696, 1728, 1712]
