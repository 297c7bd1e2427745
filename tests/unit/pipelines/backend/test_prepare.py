"""What is built and checked before a training."""

import shutil
from pathlib import Path

import pytest

from metalora.config import from_dict
from metalora.data import images, load_table
from pipelines.cli import main
from pipelines.run.folder import read_settings


@pytest.mark.parametrize("keep_images", ["1", "0"])
def test_a_training_decodes_every_image_once_if_all_fit(keep_images, settings, tmp_path, monkeypatch):
    """To verify it, and to train, validate and test on it: the cache knows nothing of it yet."""
    decoded = []

    def count(data, name, max_pixels):
        decoded.append(name)
        return images.decode(data, name, max_pixels)

    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for place in ("metalora.data.verify.decode", "metalora.models.inputs.decode"):
        monkeypatch.setattr(place, count)
    main(settings("--epochs", "3", "--keep-images", keep_images))
    assert len(set(decoded)) == 40
    assert (len(decoded) == 40) == (keep_images == "1")


def test_bad_images_are_left_out_of_what_is_kept(settings, tree, tmp_path, monkeypatch):
    own = tmp_path / "own"
    shutil.copytree(tree, own)
    (own / "a/x/3.png").write_bytes((own / "a/x/3.png").read_bytes()[:40])
    reports = []
    for cache in ("first", "first", "second"):  # decoded to verify; known to be bad; decoded again
        monkeypatch.setenv("METALORA_CACHE", str(tmp_path / cache))
        monkeypatch.chdir(tmp_path)
        name = f"run{len(reports)}"
        main(settings("--data", str(own), "--on-bad-image", "skip", "--run-name", name, "--seed", "3"))
        reports.append((tmp_path / "runs" / name / "knn.json").read_text())
    assert len(set(reports)) == 1


def test_a_table_gives_the_training_that_its_folder_gives(settings, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tree, tmp_path / "own")
    files = sorted((file.relative_to("own") for file in Path("own").rglob("*.png")), key=lambda file: file.name)
    rows = [f"{file},{file.parts[1]},{file.parts[0]}" for file in files]
    main(settings("--data", "own", "--run-name", "folder"))
    Path("own/images.csv").write_text("\n".join(["path,label,domain", *rows]))
    main(settings("--data", "own/images.csv", "--run-name", "table"))
    for file in ("knn.json", "adapter/adapter.safetensors"):
        assert Path("runs/folder", file).read_bytes() == Path("runs/table", file).read_bytes()


def test_a_class_with_few_images_is_named(settings, tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [(file, "many" if file.stem in "01234567" else "few") for file in sorted(tree.rglob("*.png"))]
    rows = [f"{file},{label},{'test' if i % 8 == 7 else 'train'}" for i, (file, label) in enumerate(files)]
    kept = [row for row in rows if "few" not in row][:30] + [row for row in rows if "few,train" in row][:2]
    (tmp_path / "a.csv").write_text("\n".join(["path,label,split", *kept, rows[-1].replace("train", "test")]))
    main(settings("--data", "a.csv", "--val-fraction", "0", "--run-name", "mine"))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("          classes")]
    many = sum("many,train" in row for row in kept)
    assert told == [f"          classes differ in size: 'few' has 2 training images, 'many' has {many}"]


def test_the_data_are_told_and_gpus_that_are_not_there_are_refused(settings, tmp_path, monkeypatch, capsys, refused):
    monkeypatch.chdir(tmp_path)
    main(settings("--holdout-domains", "b", "--run-name", "mine"))
    table = load_table(from_dict(read_settings(tmp_path / "runs" / "mine")).data)
    counts = [int((table.rows(split) >= 0).sum()) for split in ("train", "val", "test")]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data ")]
    counted = ", ".join(f"{count} {split}" for count, split in zip(counts, ("train", "val", "test"), strict=True))
    assert line == f"data      {counted} images (20 more in held-out ones) of 2 classes in 1 domain"
    assert sum(counts) == 20
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = "gpus_per_worker 1: PyTorch finds no GPU on this machine (--gpus-per-worker)"
    assert refused(settings("--gpus-per-worker", "1", "--run-name", "other")) == message
    assert not (tmp_path / "runs" / "other").exists()
