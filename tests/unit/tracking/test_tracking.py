import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from metalora.config import Config, from_dict
from metalora.errors import UserError
from metalora.tracking import mlflow_tracker
from metalora.tracking.build import build_tracker, tracking_address
from metalora.tracking.mlflow_tracker import MlflowTracker, metric_name
from metalora.tracking.tracker import NullTracker, flatten

TAGS = {"metalora.kind": "train", "metalora.format": "cp"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what the tracker sets is undone
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its tables made, which takes seconds."""
    file = tmp_path_factory.mktemp("store") / "m.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(tmp_path, monkeypatch, empty_store):
    monkeypatch.chdir(tmp_path)  # artifacts go below it
    (tmp_path / "m.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path}/m.db"


@pytest.fixture
def tracker(uri):
    tracker = MlflowTracker(uri, "metalora", "mine")
    tracker.start(flatten(Config()), TAGS, None, [])
    return tracker


def record(step, **values):
    return step, 1_700_000_000.0 + step, {name.replace("_", "/"): value for name, value in values.items()}


def recorded(uri, run_id, name="train/loss"):
    """Return (step, value, milliseconds) in the order of steps."""
    history = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in history)


def expected(records, name="train/loss"):
    return [(step, values[name], round(when * 1000)) for step, when, values in records if name in values]


class Outage:
    """Lets every call of a client fail, counting them."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch
        self.calls = Counter()

    def begin(self):
        for name in ("log_batch", "set_terminated", "update_run", "get_run"):
            self.patch.setattr(MlflowClient, name, self._failing(name))

    def end(self):
        self.patch.undo()

    def _failing(self, name):
        def fail(*arguments, **more):
            self.calls[name] += 1
            raise MlflowException("API request failed")

        return fail


@pytest.fixture
def outage():
    with pytest.MonkeyPatch.context() as patch:
        yield Outage(patch)


def test_a_run_has_its_params_and_tags(uri):
    config = from_dict({"adapter": {"rank_pattern": {"a": 3}}})
    tracker = MlflowTracker(uri, "mine too", "first")
    run_id = tracker.start(flatten(config), TAGS, None, [])
    run = MlflowClient(uri).get_run(run_id)
    assert run.data.params == {name: str(value) for name, value in flatten(config).items()}
    assert run.data.params["adapter.rank_pattern"] == "{'a': 3}"
    assert TAGS.items() <= run.data.tags.items()
    assert (run.info.run_name, run.info.status) == ("first", "RUNNING")
    assert MlflowClient(uri).get_experiment(run.info.experiment_id).name == "mine too"
    assert run_id == tracker.run_id
    assert tracker.where() == f"mlflow ui --backend-store-uri {uri}   (experiment mine too, run first)"


def test_the_second_run_shares_the_experiment(uri, tracker):
    other = MlflowTracker(uri, "metalora", "other")
    other.start(flatten(Config()), TAGS, None, [])
    assert other.experiment_id == tracker.experiment_id
    assert other.run_id != tracker.run_id


def test_metrics_are_read_back_with_their_times(uri, tracker):
    records = [record(10, train_loss=1.5, val_knn5=0.25), record(20, train_loss=1.25)]
    for one in records:
        tracker.metrics(one)
    assert recorded(uri, tracker.run_id) == expected(records)
    assert recorded(uri, tracker.run_id, "val/knn5") == expected(records, "val/knn5")


def test_a_record_of_more_metrics_than_a_call_takes(uri, tracker):
    tracker.metrics((1, 1.0, {f"val/knn5/{i}": float(i) for i in range(1001)}))
    assert len(MlflowClient(uri).get_run(tracker.run_id).data.metrics) == 1001


DOMAINS = [
    "art painting", "café", "cafe\u0301", "a:b(c)", "Gemälde, alt", "a, b", "a; b", "https://unsplash.com", "photo/",
    "photo", "/photo", "x" * 250, "x" * 251, "é" * 300, "", ".", "..", "a/../b", "a//b", "a/b", " ", "$5_$10", "日本",
    "😀", "a\nb", "a\udce9", "[b]", "%s",
]  # fmt: skip


def test_no_domains_name_is_an_obstacle(uri, tracker):
    names = [f"val/knn10_weighted/{domain}" for domain in DOMAINS]
    tracker.metrics((1, 1.0, {name: float(number) for number, name in enumerate(names)}))
    assert tracker.queue == []
    assert tracker.refused == {}
    found = MlflowClient(uri).get_run(tracker.run_id).data.metrics
    assert sorted(found.values()) == sorted(map(float, range(len(names))))  # each its own
    assert {metric_name(name): float(number) for number, name in enumerate(names)} == found


def test_a_legal_name_stays_and_any_other_is_the_same_in_every_metric():
    assert metric_name("val/knn5/art painting") == "val/knn5/art painting"
    endings = {
        metric_name(f"{head}/https://x.y")[-9:] for head in ("val/knn5", "test/knn10_weighted", "holdout/unseen/knn5")
    }
    assert len(endings) == 1
    assert metric_name("val/knn5/https://x.y") == "val/knn5/https_/_/x.y" + endings.pop()


def test_what_the_server_refuses_for_good_is_set_aside_and_told(uri, tracker, monkeypatch):
    monkeypatch.setattr(mlflow_tracker, "metric_name", lambda name: name)
    tracker.metrics((1, 1.0, {"train/loss": 0.25, "val//x": 1.0, "val/accuracy": 0.5}))
    tracker.metrics((2, 2.0, {"train/loss": 0.5}))
    with pytest.raises(UserError, match=r"refused 1 metrics for good, the first 'val//x': .*metrics\.jsonl"):
        tracker.finish("FINISHED")
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 0.5, "val/accuracy": 0.5}
    assert recorded(uri, tracker.run_id) == [(1, 0.25, 1000), (2, 0.5, 2000)]


def test_first_starts_at_once_wait_for_one_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_first_start, args=(f"sqlite:///{tmp_path}/new/m.db", results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    ids = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    client = MlflowClient(f"sqlite:///{tmp_path}/new/m.db")
    assert sorted(ids) == sorted(run.info.run_id for run in client.search_runs([_experiment_id(client)]))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["m.db"]


def _first_start(uri, results):
    try:
        results.put(MlflowTracker(uri, "metalora", "mine").start({}, TAGS, None, []))
    except UserError as error:
        results.put(str(error))


def _experiment_id(client):
    return client.get_experiment_by_name("metalora").experiment_id


def test_an_experiment_that_another_process_makes_meanwhile_is_used(uri, monkeypatch):
    look, looks = MlflowClient.get_experiment_by_name, []

    def too_early(self, name):
        looks.append(name)
        if len(looks) > 1:
            return look(self, name)
        self.create_experiment(name)  # by another process, right after this one has looked
        return None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    tracker = MlflowTracker(uri, "metalora", "mine")
    tracker.start({}, TAGS, None, [])
    assert MlflowClient(uri).get_run(tracker.run_id).info.experiment_id == tracker.experiment_id


@pytest.mark.parametrize("uri", ["http://alice:secret-word@127.0.0.1:9", "postgresql://u:secret-word@127.0.0.1:9/db"])
def test_a_password_is_in_no_message(uri, monkeypatch):
    monkeypatch.setattr("metalora.tracking.mlflow_tracker.TIMEOUT_SECONDS", 1)
    tracker = MlflowTracker(uri, "metalora", "mine")
    with pytest.raises(UserError) as error:
        tracker.start({}, TAGS, None, [])
    tracker.experiment_id = tracker.run_id = "1"
    assert "secret-word" not in str(error.value) + tracker.where()
    assert ":***@127.0.0.1:9" in str(error.value)


def test_an_address_without_its_password_is_completed_from_the_environment(monkeypatch):
    recorded_uri = "http://alice:***@host"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="was recorded without its password: set MLFLOW_TRACKING_URI"):
        tracking_address(recorded_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:x@host")
    with pytest.raises(UserError):
        tracking_address(recorded_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:secret@host")
    assert tracking_address(recorded_uri) == "http://alice:secret@host"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")  # MLflow reads it itself
    assert tracking_address(recorded_uri) == "http://host"


def test_parameters_have_no_password():
    config = from_dict({"tracking": {"tracking_uri": "http://alice:secret@host"}, "data": {"data": "s3://K:secret@b"}})
    assert "secret" not in str(flatten(config))


def test_artifacts_are_kept(uri, tracker, tmp_path):
    (tmp_path / "adapter" / "deep").mkdir(parents=True)
    (tmp_path / "adapter" / "deep" / "x").write_text("x")
    (tmp_path / "knn.json").write_text("{}")
    tracker.artifact(tmp_path / "adapter")
    tracker.artifact(tmp_path / "knn.json")
    tracker.artifact(tmp_path / "knn.json", "reports")
    client = MlflowClient(uri)
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"adapter", "knn.json", "reports"}
    assert [item.path for item in client.list_artifacts(tracker.run_id, "adapter/deep")] == ["adapter/deep/x"]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_with_its_status(uri, tracker, status):
    tracker.finish(status)
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == status


def test_a_resumed_run_gets_only_what_it_missed(uri, tracker):
    records = [
        record(10, train_loss=1.0),
        record(20, train_loss=2.0),
        record(20, val_loss=3.0),
        record(30, train_loss=4.0),
    ]
    tracker.metrics(records[0])
    tracker.finish("FAILED")
    resumed = MlflowTracker(uri, "metalora", "mine")
    assert resumed.start(flatten(Config()), TAGS, tracker.run_id, iter(records)) == tracker.run_id
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "RUNNING"
    again = MlflowTracker(uri, "metalora", "mine")
    again.start(flatten(Config()), TAGS, tracker.run_id, iter(records))
    assert again.queue == []
    assert recorded(uri, tracker.run_id) == expected(records)
    assert recorded(uri, tracker.run_id, "val/loss") == expected(records, "val/loss")


def test_a_long_runs_history_is_asked_for_once_a_metric(uri, tracker, monkeypatch):
    asked = Counter()
    history = MlflowClient.get_metric_history

    def counted(self, run_id, key):
        asked[key] += 1
        return history(self, run_id, key)

    monkeypatch.setattr(MlflowClient, "get_metric_history", counted)
    records = [record(step, train_loss=1.0) for step in range(50)]
    MlflowTracker(uri, "metalora", "mine").start(flatten(Config()), TAGS, tracker.run_id, records)
    assert asked == {"train/loss": 1}
    assert recorded(uri, tracker.run_id) == expected(records)


def test_a_run_continued_on_another_server_is_told_all(uri, tmp_path):
    records = [record(10, train_loss=1.0), record(20, train_loss=2.0)]
    tracker = MlflowTracker(uri, "metalora", "mine")
    run_id = tracker.start(flatten(Config()), TAGS, None, records)
    assert recorded(uri, run_id) == expected(records)


def test_an_unknown_run_is_refused(uri):
    with pytest.raises(UserError, match=r"^MLflow at 'sqlite:.*' cannot be used: .*0123456789abcdef"):
        MlflowTracker(uri, "metalora", "mine").start(flatten(Config()), TAGS, "0123456789abcdef" * 2, [])


def test_an_outage_does_not_stop_a_training_and_loses_nothing(uri, tracker, outage):
    records = [record(step, train_loss=float(step)) for step in range(50)]
    tracker.metrics(records[0])
    outage.begin()
    for one in records[1:40]:
        tracker.metrics(one)
    assert outage.calls["log_batch"] == 1  # it is not asked again at every step
    outage.end()
    for one in records[40:]:
        tracker.metrics(one)
    tracker.finish("FINISHED")
    assert recorded(uri, tracker.run_id) == expected(records)
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_server_that_is_back_is_found_in_mid_run(uri, tracker, outage, monkeypatch):
    outage.begin()
    tracker.metrics(record(10, train_loss=1.0))
    outage.end()
    tracker.metrics(record(20, train_loss=2.0))
    assert recorded(uri, tracker.run_id) == []
    monkeypatch.setattr(mlflow_tracker, "RETRY_SECONDS", 0.0)
    tracker.metrics(record(30, train_loss=3.0))
    assert [step for step, *_ in recorded(uri, tracker.run_id)] == [10, 20, 30]


@pytest.mark.parametrize("waiting", [0, 3])
def test_a_server_away_at_the_end_is_a_connection_error(tracker, outage, waiting):
    outage.begin()
    for step in range(waiting):
        tracker.metrics(record(step, train_loss=1.0))
    with pytest.raises(ConnectionError, match=r"^MLflow at 'sqlite:.* cannot be reached"):
        tracker.finish("FINISHED")


def test_a_metric_the_server_will_never_take_does_not_hold_up_the_others(uri, tracker):
    tracker.metrics((1, 1.0, {"": 0.5}))
    tracker.metrics((2, 2.0, {"train/loss": 0.5}))
    tracker.finish("FINISHED")
    assert recorded(uri, tracker.run_id) == [(2, 0.5, 2000)]


def test_the_null_tracker_tracks_nothing(tmp_path):
    tracker = build_tracker("none", "metalora", "mine")
    assert isinstance(tracker, NullTracker)
    assert tracker.start(flatten(Config()), TAGS, None, []) is None
    tracker.metrics(record(1, train_loss=1.0))
    tracker.artifact(tmp_path)
    tracker.model(tmp_path, {})
    tracker.finish("FINISHED")
    assert "none" in tracker.where()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["file:mlruns", "file:///x", "mlruns", ""])
def test_a_file_store_is_refused(uri):
    with pytest.raises(UserError, match=r"^tracking_uri "):
        build_tracker(uri, "metalora", "mine")


class Server:
    """A real MLflow server on the loopback."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.log = (self.folder / "server.log").open("ab")
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=self.log, stderr=self.log, start_new_session=True, env=environment
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def stop(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.log.close()
            self.process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_real_server_may_go_away_and_come_back(server, tmp_path, how):
    tracker = MlflowTracker(server.uri, "metalora", "mine")
    tracker.start(flatten(Config()), TAGS, None, [])
    (tmp_path / "knn.json").write_text("{}")
    tracker.artifact(tmp_path / "knn.json")
    records = [record(step, train_loss=float(step), val_knn5=0.5) for step in range(30)]
    for one in records[:10]:
        tracker.metrics(one)

    if how == "killed":
        server.stop()
    else:
        server.signal(signal.SIGSTOP)
    started = time.monotonic()
    for one in records[10:20]:
        tracker.metrics(one)
    assert time.monotonic() - started < 15
    with pytest.raises(ConnectionError, match="10 records were not sent"):
        tracker.finish("FINISHED")

    if how == "killed":
        server.start()
    else:
        server.signal(signal.SIGCONT)
    for one in records[20:]:
        tracker.metrics(one)
    tracker.finish("FINISHED")
    for name in ("train/loss", "val/knn5"):
        assert recorded(server.uri, tracker.run_id, name) == expected(records, name)
    client = MlflowClient(server.uri)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["knn.json"]
    assert tracker.where() == f"{server.uri}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"
