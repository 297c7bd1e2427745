"""``metalora data inspect``: what it prints and writes."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main


@pytest.fixture
def own(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tree, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def inspect(capsys):
    """Run the command; return its lines by their first word."""

    def run(*given):
        main(["data", "inspect", *given])
        return {line.partition(" ")[0]: line for line in capsys.readouterr().out.splitlines()}

    return run


def test_a_sound_data_set_is_told_and_drawn(own, inspect):
    said = inspect("own")
    assert said["data"] == "data      28 train, 4 val, 8 test images of 2 classes in 2 domains"
    assert said["sizes"] == "sizes     8 x 8 least, 8 x 8 median, 8 x 8 most (width x height)"
    assert said["formats"] == "formats   40 PNG"
    assert said["training"] == "training  would start"
    for name in ("repeated", "leaks", "labels", "unread"):
        assert " 0 images " in said[name]
    with Path("inspected/own/counts.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["domain", "class", "train", "val", "test"]
    assert rows[1:] == [[domain, label, "7", "1", "2"] for domain in "ab" for label in "xy"]
    with Image.open("inspected/own/contact_sheet.png") as image:
        assert image.width > 400
    assert sorted(path.name for path in Path("inspected/own").iterdir()) == ["contact_sheet.png", "counts.csv"]


def test_what_is_wrong_is_told_and_stops_nothing(own, inspect):
    shutil.copy(own / "a/x/1.png", own / "a/y/copy.png")
    (own / "b/x/3.png").write_bytes((own / "b/x/3.png").read_bytes()[:40])
    (own / "b/x/4.png").write_bytes(b"")
    said = inspect("own", "--to", "here/there")
    assert said["labels"] == "labels    1 image with two labels in one domain"
    assert said["unread"] == "unread    2 images that cannot be read"
    assert said["training"].startswith("training  would stop: 2 images cannot be decoded; --on-bad-image skip")
    assert Path("here/there/contact_sheet.png").is_file()
    said = inspect("own", "--on-bad-image", "skip")
    assert said["training"] == "training  would start, and leave out 2 images"
    said = inspect("own", "--on-bad-image", "skip", "--holdout-domains", "b")
    assert " (20 more in held-out ones) of 2 classes in 1 domain" in said["data"]
    shutil.rmtree(own / "b/y")
    assert inspect("--data", "own", "--on-bad-image", "skip")["training"].startswith(
        "training  would stop: domain 'b' lacks 'y'"
    )


def test_a_table_with_missing_files_is_inspected_and_leaks_are_named(own, inspect):
    rows = [[f"own/{path.relative_to(own)}", path.parent.name, "test" if path.stem == "9" else "train"]
            for path in sorted(own.rglob("*.png"))]  # fmt: skip
    rows[3][0] = "gone.png"
    rows.append(["own/a/x/0.png", "x", "test"])
    with Path("a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    said = inspect("a.csv", "--val-fraction", "0")
    assert said["leaks"] == "leaks     1 image of val or test also in an earlier split, 1 of them in the same domain"
    assert "a.csv row 5 names the image gone.png: No such file or directory; mend the table" in said["training"]
    assert said["unread"] == "unread    1 image that cannot be read"


def test_what_cannot_be_used_is_refused_in_one_line(own, refused):
    assert "unknown domain 'z'" in refused(["data", "inspect", "own", "--exclude-domains", "z"])
    assert "no such file or folder: 'nothing'" in refused(["data", "inspect", "nothing"])
    assert "wanted: metalora data inspect DATA, got 'look'" in refused(["data", "look", "own"])
    assert "named twice, 'own' and --data 'own'" in refused(["data", "inspect", "own", "--data", "own"])
    Path("file").touch()
    assert "--to" in refused(["data", "inspect", "own", "--to", "file"])
    assert "--to" in refused(["data", "inspect", "own", "--to", "file/below"])


def test_links_at_the_files_places_are_replaced_and_not_followed(own, inspect, tmp_path):
    (tmp_path / "inspected" / "own").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    for name in ("counts.csv", "contact_sheet.png"):
        (tmp_path / "inspected" / "own" / name).symlink_to(tmp_path / "mine")
    inspect("own")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "inspected" / "own" / "counts.csv").is_symlink()


def test_the_embedded_images_are_inspected_without_an_argument(inspect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.commands.data.survey", lambda table, progress: pytest.fail(str(len(table))))
    with pytest.raises(pytest.fail.Exception, match="10000"):
        inspect()
