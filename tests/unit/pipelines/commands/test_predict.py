"""``metalora predict``: what it reads and writes, in parts, here and on Ray; the oracle is `model.predict`."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metalora.config import from_dict
from metalora.errors import UserError
from pipelines.commands import predict as command
from pipelines.commands import train
from pipelines.run.folder import read_settings
from pipelines.run.model import load_model
from pipelines.run.predictions import Predictions


@pytest.fixture(scope="module")
def project(tmp_path_factory, tree):
    """A folder with a finished run, and images at several depths; one is damaged, one is hidden."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(
            ["--data", str(tree), "--workers", "0", "--epochs", "1", "--batch-size", "12", "--image-size", "28",
             "--knn", "1", "--tracking-uri", "none", "--run-name", "mine", "--format", "cp", "--rank", "2",
             "--evaluation-batch-size", "16", "--weights", "none"]
        )  # fmt: skip
    for number in range(7):
        file = folder / "new" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 25, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    (folder / "new/a/broken.jpg").write_bytes(b"nothing")
    (folder / "new/.hidden.png").write_bytes(b"nothing")
    (folder / "new/notes.txt").write_bytes(b"nothing")
    return folder


@pytest.fixture(autouse=True)
def apart(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(command, "PART", 3)


@pytest.fixture(scope="module")
def model(project):
    return load_model(from_dict(read_settings(project / "runs/mine")), project / "runs/mine", print)[0]


FILES = ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "a/broken.jpg", "b/1.png", "b/3.png", "b/5.png"]


def test_a_folder_is_predicted_image_by_image(model, capsys):
    command.main(["mine", "new", "--to", "out/a.csv", "--top", "2"])
    with Path("out/a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == FILES
    for row in rows:
        if row["image"] == "a/broken.jpg":
            assert "cannot decode image a/broken.jpg" in row["error"]
            assert row["label"] == row["probability"] == ""
            continue
        (wanted,) = model.predict(f"new/{row['image']}", top=2)
        found = [(row["label"], float(row["probability"])), (row["label_2"], float(row["probability_2"]))]
        assert [label for label, _ in found] == [label for label, _ in wanted.top]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted.top], abs=1e-5)
        assert not row["error"]
    said = capsys.readouterr().out
    assert "predicted 8 images, 1 of which could not be read" in said
    assert not Path("out/a.csv.parts").exists()


def test_parquet_is_predicted_row_by_row_with_features(model):
    images = [Path("new", name).read_bytes() for name in FILES if "broken" not in name]
    pq.write_table(
        pa.table({"image": images, "id": [f"number {i}" for i in range(7)]}), "new.parquet", row_group_size=2
    )
    command.main(["runs/mine", "new.parquet", "--to", "p.parquet", "--features", "--top", "99"])
    rows = pq.read_table("p.parquet").to_pylist()
    assert [row["image"] for row in rows] == [f"number {i}" for i in range(7)]
    wanted = model.predict(images, top=2, features=True)
    for row, one in zip(rows, wanted, strict=True):
        assert (row["label"], row["label_2"]) == (one.label, one.top[1][0])
        assert row["features"] == pytest.approx(one.features.tolist(), abs=1e-4)
    pq.write_table(pa.table({"image": images}), "bare.parquet")
    command.main(["mine", "bare.parquet", "--to", "bare.csv"])
    assert "bare.parquet row 6" in Path("bare.csv").read_text().splitlines()[-1]


def test_a_table_of_paths_is_predicted_as_its_files_are(model):
    command.main(["mine", "new", "--to", "files.csv"])
    Path("table.csv").write_text("\n".join(["id;file_name", *(f"n{i};new/{name}" for i, name in enumerate(FILES))]))
    command.main(["mine", "table.csv", "--to", "table-out.csv"])
    with Path("files.csv").open(newline="") as one, Path("table-out.csv").open(newline="") as other:
        files, named = list(csv.DictReader(one)), list(csv.DictReader(other))
    assert [row["image"] for row in named] == [f"n{i}" for i in range(len(FILES))]
    assert [row["label"] for row in named] == [row["label"] for row in files]
    assert [row["probability"] for row in named] == [row["probability"] for row in files]


def test_an_interrupted_prediction_goes_on_and_another_does_not(monkeypatch):
    command.main(["mine", "new", "--to", "whole.csv"])
    here, seen = command.predict_here, []

    def interrupted(predictor, chunks, *more):
        for number, (index, names, found) in enumerate(here(predictor, chunks, *more)):
            if number == 2:
                raise KeyboardInterrupt
            seen.append(index)
            yield index, names, found

    monkeypatch.setattr(command, "predict_here", interrupted)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        command.main(["mine", "new", "--to", "again.csv"])
    assert interrupt.value.__notes__ == ["to continue: the same command"]
    assert sorted(path.name for path in Path("again.csv.parts").iterdir()) == [
        "000000.parquet", "000001.parquet", "plan.json",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"again\.csv\.parts has parts of another prediction \(top differ\)"):
        command.main(["mine", "new", "--to", "again.csv", "--top", "2"])
    command.main(["mine", "new", "--to", "again.csv"])
    assert seen == [0, 1, 2]
    assert Path("again.csv").read_text() == Path("whole.csv").read_text()
    with pytest.raises(UserError, match=r"'again\.csv' exists: remove it"):
        command.main(["mine", "new", "--to", "again.csv"])


def test_one_command_at_a_time_writes_a_file():
    message = r"--to 'twice\.csv' is being written by another command"
    with Predictions("twice.csv", {}, 1, False), pytest.raises(UserError, match=message):
        command.main(["mine", "new", "--to", "twice.csv"])
    with Predictions("twice.csv", {}, 1, False) as second:
        assert not second.has(0)
    late = Predictions("twice.csv", {}, 1, False)
    Path("twice.csv").touch()  # the other command has ended
    with pytest.raises(UserError, match="exists: remove it"), late:
        pass
    with pytest.raises(UserError, match="exists: remove it"):
        Predictions("twice.csv", {}, 1, False)


@pytest.mark.slow
def test_actors_on_ray_predict_the_same():
    command.main(["mine", "new", "--to", "here.csv"])
    command.main(["mine", "new", "--to", "there.csv", "--workers", "2"])
    assert Path("there.csv").read_text() == Path("here.csv").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["mine", "nowhere", "--to", "x.csv"], "images: no such file or folder: 'nowhere'"),
        (["mine", "runs/mine/seeds/seeds.parquet", "--to", "x.csv"], "has 0 columns 'image'"),
        (
            ["mine", "new/empty", "--to", "x.csv"],
            "no images found in '.*/new/empty'; wanted: image files, Parquet or CSV",
        ),
        (["mine", "new", "--to", "x.txt"], r"--to 'x\.txt' must end in \.parquet or \.csv"),
        (["mine", "new", "--to", "x.csv", "--features"], r"--features needs --to FILE\.parquet"),
        (["mine", "new", "--to", "x.csv", "--top", "0"], "--top must be 1 or more, got 0"),
        (["mine", "new", "--to", "x.csv", "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (["mien", "new", "--to", "x.csv"], "no run 'mien' in .*, did you mean 'mine'"),
        (["mine", "new", "--to", "x.csv", "--rank", "3"], "option --rank is a setting of trainings"),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_leaves_nothing(line, message):
    Path("new/empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        command.main(line)
    assert not list(Path().glob("x.*"))


def test_a_run_with_seeds_by_task_is_refused(project, monkeypatch):
    config = (project / "runs/mine/config.yaml").read_text()
    (project / "runs/mine/config.yaml").write_text(config.replace("seed_granularity: sample", "seed_granularity: task"))
    try:
        with pytest.raises(UserError, match="was trained with one seed per task"):
            command.main(["mine", "new", "--to", "x.csv"])
    finally:
        (project / "runs/mine/config.yaml").write_text(config)


def test_one_image_file_is_predicted():
    command.main(["mine", "new/b/1.png", "--to", "one.csv"])
    assert Path("one.csv").read_text().splitlines()[1].startswith('"1.png"')
    assert io.StringIO(Path("one.csv").read_text()).readline().count(",") == 3


def test_without_a_file_the_labels_are_printed(model, capsys):
    command.main(["mine", "new/a/0.png", "new/b", "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    (first,) = model.predict("new/a/0.png", top=2)
    shown = ", ".join(f"{label} {probability:.1%}" for label, probability in first.top)
    assert lines[0] == f"new/a/0.png  {shown}"
    assert [line.partition("  ")[0] for line in lines[1:]] == ["1.png", "3.png", "5.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["new/a", "new/b", "--to", "x.csv"], "--to takes the predictions of one file, folder or table, got 2"),
        (["new/a", "--features"], "--features needs a file to write: --to FILE"),
        (["new/a", "--workers", "2"], "--workers needs a file to write: --to FILE"),
    ],
)
def test_what_takes_a_file_says_so(given, message):
    with pytest.raises(UserError, match=message):
        command.main(["mine", *given])
