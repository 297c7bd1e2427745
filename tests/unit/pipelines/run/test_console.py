import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from metalora.tracking.tracker import NullTracker
from metalora.train.reporter import Progress as State
from pipelines.run.console import Output, ProgressDisplay, terminal
from pipelines.run.log import RunLog

ROOT = Path(__file__).parents[4]


def test_names_from_data_are_no_markup(capsys):
    console = terminal()
    table = Table(title="campaign [b]x[/b]")
    table.add_column("[red]task")
    table.add_row(":smile: [link=x]")
    console.print("runs/[b]/[/nothing]", "[red]", soft_wrap=True)
    console.print(table)
    shown = capsys.readouterr().out
    for text in ("runs/[b]/[/nothing] [red]", "campaign [b]x[/b]", "[red]task", ":smile: [link=x]"):
        assert text in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    output = Output(stream)
    output.write("素描 und Gemälde\n")
    output.flush()
    assert raw.getvalue().decode(encoding).startswith("\\u7d20\\u63cf und Gem")


def test_secrets_are_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "longertoken")
    terminal().print("MLflow at http://alice:pw@host, longertoken", soft_wrap=True)
    assert capsys.readouterr().out == "MLflow at http://alice:***@host, ***\n"


def test_a_stream_that_breaks_is_silent_from_then_on():
    class Broken(io.StringIO):
        writes = 0

        def write(self, text):
            self.writes += 1
            raise OSError(28, "No space left on device")

    stream = Broken()
    output = Output(stream)
    for _ in range(3):
        assert output.write("x") == 1
        output.flush()
    assert stream.writes == 1


def test_a_reader_that_goes_away_does_not_end_the_command(tmp_path):
    code = (
        "from pipelines.run.console import terminal; from pathlib import Path; import sys\n"
        "console = terminal()\n"
        "for _ in range(20000): console.print('x' * 100)\n"
        "Path(sys.argv[1]).touch()"
    )
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "end")], stdout=write, stderr=-1, cwd=ROOT)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert (tmp_path / "end").exists()


def test_the_bar_shows_phases_as_they_are(capsys):
    from metalora.train.reporter import Progress

    with ProgressDisplay(terminal()) as display:
        display.show(Progress("[b]phase", 1, 2))
    assert "[b]phase" in capsys.readouterr().out


def test_the_figures_of_a_validation_are_a_line_in_the_order_of_k(capsys, tmp_path):
    display = ProgressDisplay(terminal())
    display.show(State("train", 5, 10, 2, 3))
    log = RunLog(tmp_path / "m.jsonl", NullTracker(), display.say, display.show, tell=display.tell)
    log.metrics(5, {"train/loss": 1.0})
    metrics = {"val/loss": 0.5, "val/accuracy": 0.75, "val/knn5": 0.5, "val/knn5/sketch": 0.1, "val/knn5_weighted": 0.2}
    log.metrics(5, {**metrics, "val/knn10": 0.25})
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "epoch 2 validated  k-NN, K = 5: 50.0%  k-NN, K = 10: 25.0%  classifier 75.0%, loss 0.5000"
    assert len([line for line in said if "validated" in line]) == 1


def test_the_best_validation_and_an_early_end_are_told(capsys):
    display = ProgressDisplay(terminal())
    display.tell({"best/epoch": 3.0, "best/val/knn5": 0.593, "best/kept": 1.0, "best/waited": 2.0, "val/knn5": 0.593})
    display.tell({"best/epoch": 1.0, "best/val/loss": 0.25, "best/waited": 1.0})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best")]
    assert said == [
        "best      ended early, after 2 validations without a better val/knn5; keeping the weights of epoch 3 "
        "(val/knn5 59.3%)",
        "best      ended early, after 1 validation without a better val/loss; keeping the last weights; the best "
        "epoch is 1 (val/loss 0.2500)",
    ]
