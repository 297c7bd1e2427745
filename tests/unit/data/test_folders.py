import pickle
from pathlib import Path

import numpy as np
import pytest

from metalora.config import DataConfig
from metalora.data import SPLITS, load_table
from metalora.data.folders import load_tree
from metalora.errors import UserError

PLACES = {"photo/cat": 20, "photo/dog": 10, "sketch/cat": 3, "sketch/dog": 5}


def splits_of(table):
    return {name: SPLITS[split] for name, split in zip(table.id, table.split, strict=True)}


def test_a_tree_is_read(make_tree):
    root = make_tree(PLACES)
    table = load_table(DataConfig(data=str(root)))
    assert (table.labels, table.domains) == (("cat", "dog"), ("photo", "sketch"))
    assert table.id.tolist() == sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    for row in (0, 20, 37):
        assert table.id[row] == (
            f"{table.domains[table.domain[row]]}/{table.labels[table.label[row]]}/{Path(table.name(row)).name}"
        )
        assert table.read(row) == (root / table.id[row]).read_bytes()


def test_splits_are_stratified_within_each_class_of_each_domain(make_tree):
    table = load_tree(make_tree(PLACES), val_fraction=0.1, test_fraction=0.2)
    counts = np.zeros((2, 2, 3), dtype=int)
    np.add.at(counts, (table.domain, table.label, table.split), 1)
    assert counts.tolist() == [[[14, 2, 4], [7, 1, 2]], [[1, 1, 1], [3, 1, 1]]]


@pytest.mark.parametrize(("val", "test"), [(0.9, 0.05), (0.0, 0.95), (0.4, 0.4), (0.1, 0.01)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_smallest_classes_have_train_and_test_images(make_tree, val, test, count):
    split = load_tree(make_tree({"a/x": count}), val, test).split
    counts = np.bincount(split, minlength=3)
    assert counts[0] >= 1
    assert counts[2] >= 1
    assert (counts[1] > 0) == (val > 0 and count > 2 and counts[2] < count - 1)


def test_no_val_images_without_a_val_fraction(make_tree):
    table = load_table(DataConfig(data=str(make_tree(PLACES)), val_fraction=0))
    assert table.rows("val").tolist() == []


def test_splits_follow_the_paths_alone(make_tree):
    one, two = (load_tree(make_tree(PLACES, name), 0.1, 0.2) for name in ("one", "two"))
    assert splits_of(one) == splits_of(two)
    changes = np.flatnonzero(np.diff(one.split[:20]))
    assert len(changes) > 2  # more than files in the order of their names would have


def test_a_new_image_moves_at_most_two_others_of_its_class_and_none_elsewhere(make_tree, png):
    root = make_tree(PLACES)
    before = splits_of(load_tree(root, 0.1, 0.2))
    for i in range(5):
        (root / "photo" / "cat" / f"new{i}.png").write_bytes(png(i))
        after = splits_of(load_tree(root, 0.1, 0.2))
        moved = [name for name in before if before[name] != after[name]]
        assert len(moved) <= 2
        assert all(name.startswith("photo/cat/") for name in moved)
        before = after


def test_image_extensions_in_any_case_and_nothing_else(make_tree, png):
    root = make_tree({"a/x": 2})
    names = ["a.JPG", "b.jpeg", "c.PNG", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF"]
    for name in [*names, ".hidden.png", "notes.txt", "png"]:
        (root / "a" / "x" / name).write_bytes(png(0))
    (root / "README.md").touch()
    (root / "a" / "preview.png").touch()
    (root / ".git" / "x").mkdir(parents=True)
    table = load_tree(root, 0.1, 0.2)
    assert table.id.tolist() == [f"a/x/{name}" for name in sorted(["000.png", "001.png", *names])]


def test_the_fingerprint_follows_files_and_splits(make_tree, png):
    root = make_tree(PLACES)
    before = load_tree(root, 0.1, 0.2).fingerprint
    assert load_tree(root, 0.1, 0.2).fingerprint == before
    assert load_tree(root, 0.1, 0.5).fingerprint != before
    (root / "photo" / "cat" / "000.png").write_bytes(png(5) + b" ")
    assert load_tree(root, 0.1, 0.2).fingerprint != before


def test_the_store_survives_pickling(make_tree):
    table = load_tree(make_tree({"a/x": 3}), 0.1, 0.2)
    assert pickle.loads(pickle.dumps(table.store)).read(1) == table.read(1)


@pytest.mark.parametrize(("count", "met"), [(0, "no images"), (1, "one image")])
def test_a_class_with_too_few_images_is_named(make_tree, count, met):
    root = make_tree(PLACES | {"sketch/fox": count})
    with pytest.raises(UserError, match=f"class sketch/fox in .* has {met}; at least 2 are needed"):
        load_table(DataConfig(data=str(root)))


def test_a_bad_domain_can_be_left_out(make_tree):
    root = make_tree(PLACES | {"toy/fox": 1})
    table = load_table(DataConfig(data=str(root), exclude_domains=("toy",)))
    assert (table.labels, table.domains) == (("cat", "dog"), ("photo", "sketch"))


def test_an_unknown_domain_to_leave_out_is_named(make_tree):
    config = DataConfig(data=str(make_tree(PLACES)), exclude_domains=("skech",))
    with pytest.raises(UserError, match=r"domain 'skech', did you mean 'sketch'\? \(domains: photo, sketch\)"):
        load_table(config)


@pytest.mark.parametrize("places", [{}, {"cat": 3}])
def test_no_images(make_tree, tmp_path, places):
    (tmp_path / "tree").mkdir()
    with pytest.raises(UserError, match=r"no images found in .*tree.*; wanted: a tree root/domain/class/image"):
        load_table(DataConfig(data=str(make_tree(places))))


def test_a_folder_that_cannot_be_read_is_named(make_tree, monkeypatch):
    root = make_tree(PLACES)
    listing = Path.iterdir

    def refuse(folder):
        if folder.name == "dog":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read folder .*photo/dog: Permission denied"):
        load_tree(root, 0.1, 0.2)


def test_an_image_that_cannot_be_read_is_named(make_tree):
    root = make_tree({"a/x": 3})
    table = load_tree(root, 0.1, 0.2)
    (root / "a" / "x" / "001.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*a/x/001\.png: No such file"):
        table.read(1)


def test_a_broken_link_is_named(make_tree):
    root = make_tree({"a/x": 3})
    (root / "a" / "x" / "lost.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match=r"cannot read image .*lost\.png: No such file"):
        load_tree(root, 0.1, 0.2)
