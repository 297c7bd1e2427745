import io
import json

import pytest
from rich.console import Console

from metalora.tracking.tracker import NullTracker
from metalora.train.checkpoint import CheckpointFolder, write_state
from metalora.train.reporter import Progress
from pipelines.run import console as console_module
from pipelines.run.console import LINE_SECONDS, ProgressDisplay
from pipelines.run.log import RunLog, read_metrics


class RecordingTracker(NullTracker):
    def __init__(self):
        self.records = []

    def metrics(self, record):
        self.records.append(record)


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def tracker():
    return RecordingTracker()


@pytest.fixture
def output():
    return io.StringIO()


@pytest.fixture
def display(output):
    return ProgressDisplay(Console(file=output, width=200))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


def lines_of(output):
    return [line for line in output.getvalue().splitlines() if line]


def left(seconds):
    return f"{seconds // 60}:{seconds % 60:02d}"


def steps(records):
    return [(step, dict(values)) for step, _, values in records]


def test_metrics_go_to_the_file_and_to_the_tracker(tmp_path, tracker, display):
    log = RunLog(tmp_path / "m.jsonl", tracker, display.say, display.show)
    log.metrics(10, {"train/loss": 1.5, "train/images_per_second": 3.0})
    log.metrics(20, {"train/loss": float("nan")})
    assert steps(tracker.records)[0] == (10, {"train/loss": 1.5, "train/images_per_second": 3.0})
    assert [record[:2] for record in read_metrics(tmp_path / "m.jsonl")] == [record[:2] for record in tracker.records]
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [10, 20]


def test_steps_trained_again_are_recorded_once(tmp_path, tracker, display):
    log = RunLog(tmp_path / "m.jsonl", tracker, display.say, display.show)
    for step in (10, 20, 30, 20, 30, 40):
        log.metrics(step, {"train/loss": float(step)})
    log.metrics(30, {"train/loss": 0.0, "val/loss": 1.0})  # one of the names is new at this step
    log.metrics(30, {"val/loss": 9.0})
    expected = [(step, {"train/loss": float(step)}) for step in (10, 20, 30, 40)] + [(30, {"val/loss": 1.0})]
    assert steps(tracker.records) == expected
    assert steps(read_metrics(tmp_path / "m.jsonl")) == expected


def test_a_resumed_run_knows_what_its_file_has(tmp_path, tracker, display):
    file = tmp_path / "m.jsonl"
    RunLog(file, NullTracker(), display.say, display.show).metrics(10, {"train/loss": 1.0})
    resumed = RunLog(file, tracker, display.say, display.show)
    resumed.metrics(10, {"train/loss": 1.0})
    resumed.metrics(20, {"train/loss": 2.0})
    assert steps(tracker.records) == [(20, {"train/loss": 2.0})]
    assert steps(read_metrics(file)) == [(10, {"train/loss": 1.0}), (20, {"train/loss": 2.0})]


@pytest.mark.parametrize("cut", [1, 15, 30])
def test_a_line_cut_off_by_a_crash_costs_that_line_alone(tmp_path, tracker, display, cut):
    file = tmp_path / "m.jsonl"
    log = RunLog(file, NullTracker(), display.say, display.show)
    log.metrics(10, {"train/loss": 1.0})
    log.metrics(20, {"train/loss": 2.0})
    text = file.read_text()
    file.write_text(text[: text.index("\n") + 1 + cut])
    assert steps(read_metrics(file)) == [(10, {"train/loss": 1.0})]
    resumed = RunLog(file, tracker, display.say, display.show)
    resumed.metrics(20, {"train/loss": 2.0})
    resumed.metrics(30, {"train/loss": 3.0})
    assert steps(tracker.records) == [(20, {"train/loss": 2.0}), (30, {"train/loss": 3.0})]
    assert steps(read_metrics(file)) == [(step, {"train/loss": step / 10}) for step in (10, 20, 30)]


def test_a_run_without_a_file_has_no_metrics(tmp_path):
    assert list(read_metrics(tmp_path / "m.jsonl")) == []


def test_a_training_in_this_process_keeps_its_checkpoints(tmp_path, tracker, display):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    reporter = RunLog(tmp_path / "m.jsonl", tracker, display.say, display.show, checkpoints)
    for step in (10, 20):
        reporter.checkpoint(step, lambda folder: write_state(folder, {}))
    assert [path.name for path in checkpoints.all()] == ["checkpoint_00000020"]


def test_a_log_gets_few_lines_that_say_how_far_and_how_long(display, output, clock):
    with display:
        for step in range(1, 101):
            clock.now += 1
            display.show(Progress("train", step, 100, 1 + (step - 1) // 50, 2, loss=1 / step, rate=1234.4))
    first, *between, last = lines_of(output)
    assert first == "epoch 1/2  step 1/100  loss 1.0000  1,234 images/s"
    assert 100 / LINE_SECONDS - 3 <= len(between) <= 100 / LINE_SECONDS
    for line in between:
        step = int(line.split()[3].partition("/")[0])
        epoch = 1 + (step - 1) // 50
        facts = f"epoch {epoch}/2  step {step}/100  loss {1 / step:.4f}  1,234 images/s"
        assert line == f"{facts}  {left(100 - step)} left"
    assert last == "epoch 2/2  step 100/100  loss 0.0100  1,234 images/s"


def test_the_last_step_is_told_however_soon(display, output, clock):
    for step in (1, 2, 3):
        display.show(Progress("train", step, 3, 1, 1, loss=1.0, rate=1.0))
    assert [line.split()[3] for line in lines_of(output)] == ["1/3", "3/3"]


def test_a_resumed_training_reckons_from_where_it_began(display, output, clock):
    for step in (900, 910, 920):
        clock.now += 20
        display.show(Progress("train", step, 1000, 9, 10, loss=1.0, rate=1.0))
    assert [line.split("  ")[-1] for line in lines_of(output)[1:]] == [f"{left(180)} left", f"{left(160)} left"]


def test_short_phases_say_little(display, output, clock):
    for phase in ("validate", "test original", "test adapted"):
        for done in range(1, 9):
            display.show(Progress(phase, done, 8))
    assert len(lines_of(output)) <= 1


def test_a_long_phase_reckons_from_its_own_beginning(display, output, clock):
    clock.now += 1000
    display.show(Progress("train", 5, 10, 1, 2, loss=1.0, rate=1.0))
    for images in range(0, 2000, 100):
        clock.now += 1
        display.show(Progress("validate", images, 2000))
    said = [line for line in lines_of(output) if line.startswith("validate")]
    assert said == [f"validate  image 1000/2000  {left(10)} left"]


def test_a_full_disk_does_not_end_the_training(display, output, tracker, tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = RunLog(file, tracker, display.say, display.show)
    file.symlink_to("/dev/full")
    log.metrics(1, {"train/loss": 1.0})
    assert [record[2] for record in tracker.records] == [{"train/loss": 1.0}]
    assert "metrics.jsonl cannot be written: No space left on device" in output.getvalue()
