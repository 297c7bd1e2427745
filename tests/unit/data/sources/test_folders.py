import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest

from metalora.config import DataConfig
from metalora.data import SPLITS, decode, load_table
from metalora.data.sources.folders import load_tree
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


def test_image_extensions_in_any_case_and_what_is_left_out_is_named(make_tree, png):
    root = make_tree({"a/x": 2, "a/x/deeper": 1})
    names = ["a.JPG", "b.jpeg", "c.PNG", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF", "i.jfif", "j.JPE", "k.avif"]
    others = ["data.h5", "notes.txt", "page.eps", "png"]
    for name in [*names, *others, ".hidden.png"]:
        (root / "a" / "x" / name).write_bytes(png(0))
    (root / "README.md").touch()
    (root / "a" / "preview.png").touch()
    (root / ".git" / "x").mkdir(parents=True)
    os.mkfifo(root / "a" / "x" / "pipe.png")
    table = load_tree(root, 0.1, 0.2)
    assert table.id.tolist() == [f"a/x/{name}" for name in sorted(["000.png", "001.png", *names])]
    lost = ["deeper/000.png", *others, "pipe.png"]
    assert table.ignored == ("README.md", "a/preview.png", *(f"a/x/{name}" for name in sorted(lost)))


SPLIT_TREE = {"train/cat": 10, "train/dog": 5, "Val/cat": 3, "Val/dog": 2, "test/cat": 4, "test/dog": 4}


def test_given_splits_are_kept(make_tree):
    table = load_table(DataConfig(data=str(make_tree(SPLIT_TREE))))
    assert (table.labels, table.domains) == (("cat", "dog"), ("all",))
    assert {name.partition("/")[0]: split for name, split in splits_of(table).items()} == {
        "train": "train",
        "Val": "val",
        "test": "test",
    }
    assert len(table) == 28


@pytest.mark.parametrize("names", [("training", "validation", "testing"), ("TRAIN", "valid", "Test")])
def test_given_splits_hold_domains(make_tree, names):
    counts = {f"{split}/{domain}/{label}": 3 for split in names for domain in ("photo", "toy") for label in "xy"}
    root = make_tree(counts | {"annotations/deep": 0})
    (root / "annotations" / "boxes.json").touch()
    table = load_table(DataConfig(data=str(root), exclude_domains=("toy",)))
    assert (table.labels, table.domains, table.ignored) == (("x", "y"), ("photo",), ("annotations/boxes.json",))
    for name, split in splits_of(table).items():
        assert split == SPLITS[names.index(name.partition("/")[0])]
    with pytest.raises(UserError, match=r"unknown domain 'train' \(domains: photo, toy\)"):
        load_tree(root, 0.1, 0.2, ["train"])


def test_splits_that_are_not_given_are_drawn_from_train(make_tree):
    root = make_tree({name: count for name, count in SPLIT_TREE.items() if not name.startswith("test")})
    table = load_table(DataConfig(data=str(root)))
    drawn = {split: [name for name, met in splits_of(table).items() if met == split] for split in SPLITS}
    assert [len(drawn[split]) for split in SPLITS] == [12, 5, 3]
    assert all(name.startswith("train/") for name in drawn["train"] + drawn["test"])
    assert all(name.startswith("Val/") for name in drawn["val"])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"train/x": 2, "test/x": 2, "sketch/x": 2}, r"folders of splits \(test, train\) beside others \(sketch\)"),
        ({"val/x": 2, "test/x": 2}, r"folders of splits \(test, val\) and none to train on"),
        ({"train/x": 2, "train/x/y": 2}, r"images at two depths \(train/x/001\.png, train/x/y/001\.png\)"),
        ({"photos": 3}, r"no images found in .*tree but photos/000\.png; wanted"),
        ({"set/photo/x": 3}, r"no images found in .*tree but set/photo/x/000\.png; wanted"),
        (
            {"photo/x": 3, "photo/y/deep": 3},
            r"class photo/y in .*tree has no images but photo/y/deep/000\.png; at least",
        ),
        ({"photo/x": 3, "toy": 3}, r"no images found in domain folder .*tree/toy; wanted"),
    ],
)
def test_a_tree_of_another_shape_is_refused_in_one_line(make_tree, places, message):
    with pytest.raises(UserError, match=message) as caught:
        load_tree(make_tree(places), 0.1, 0.2)
    assert "\n" not in str(caught.value)


COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


def test_folders_that_are_spelled_in_two_ways_are_one(make_tree):
    counts = {f"{COMPOSED}/{DECOMPOSED}": 3, f"{DECOMPOSED}/{COMPOSED}": 3, f"{COMPOSED}/x": 3}
    root = make_tree(counts | {"b/x": 3, f"b/{COMPOSED}": 3})
    table = load_table(DataConfig(data=str(root)))
    assert (table.labels, table.domains) == ((COMPOSED, "x"), (COMPOSED, "b"))
    assert len(set(table.id)) == len(table) == 15
    assert all(table.read(row) == Path(table.name(row)).read_bytes() for row in range(15))
    assert load_table(DataConfig(data=str(root), exclude_domains=(DECOMPOSED,))).domains == ("b",)
    assert load_table(DataConfig(data=str(root), holdout_domains=(DECOMPOSED,))).holdout == (COMPOSED,)


def test_the_split_does_not_depend_on_how_names_are_spelled(make_tree):
    one, two = (
        load_tree(make_tree({f"a/{name}": 20}, name=place), 0.3, 0.3)
        for place, name in (("one", COMPOSED), ("two", DECOMPOSED))
    )
    assert one.split.tolist() == two.split.tolist()


def test_names_that_are_not_utf8_or_not_one_line_are_escaped_and_unique(make_tree, png):
    root = make_tree({"a/x": 2})
    names = [b"\xff.png", b"\\xff.png", b"line\nend.png", b"\x1b[31m.png", "\u3000\u4e2d.png".encode()]
    folder = root / "a" / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / os.fsdecode(name)).write_bytes(png(number))
    (folder / os.fsdecode(b"broken\xff.png")).write_bytes(b"broken")
    table = load_table(DataConfig(data=str(root), on_bad_image="skip"))
    assert table.labels == (r"caf\xe9", "x")
    shown = {r"\xff.png", r"\\xff.png", r"line\x0aend.png", r"\x1b[31m.png", "\u3000\u4e2d.png"}
    assert set(table.id) == {f"a/x/00{i}.png" for i in range(2)} | {rf"a/caf\xe9/{name}" for name in shown}
    store = pickle.loads(pickle.dumps(table.store))  # as a decoding process gets it
    assert {store.read(row) for row in table.store_rows[table.label == 0]} == {png(i) for i in range(5)}
    assert [name.rpartition("/")[2] for name in table.skipped] == [r"broken\xff.png"]
    assert "".join([*table.id, *table.labels, *table.skipped]).encode().count(b"\n") == 0


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


def test_links_are_followed_and_circles_named(make_tree):
    root = make_tree({"a/x": 3, "a/y": 3})
    other = make_tree({"y": 4, "z": 4}, "elsewhere")
    (root / "b").symlink_to(other)
    (root / "a" / "x" / "linked.png").symlink_to(other / "z" / "000.png")
    assert len(load_tree(root, 0.1, 0.2)) == 15
    (root / "b" / "z" / "again").symlink_to(root / "b")
    with pytest.raises(UserError, match=r"folder .*b/z/again is a link to a folder that it is in"):
        load_tree(root, 0.1, 0.2)


def test_a_broken_link_to_a_folder_is_named(make_tree):
    root = make_tree({"a/x": 3})
    (root / "a" / "y").symlink_to(root / "nowhere")
    with pytest.raises(UserError, match=r"cannot read file or folder .*a/y: No such file"):
        load_tree(root, 0.1, 0.2)


def test_files_in_a_folder_that_may_only_be_listed_are_named(make_tree, monkeypatch):
    root = make_tree(PLACES)
    look = Path.stat

    def refuse(path, **options):
        if path.parent.name == "dog":
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=r"cannot read image .*photo/dog/000\.png: Permission denied"):
        load_tree(root, 0.1, 0.2)


def test_no_more_of_a_file_is_read_than_an_image_may_have(make_tree, monkeypatch):
    table = load_tree(make_tree({"a/x": 2}), 0.1, 0.2)
    whole = table.read(0)
    monkeypatch.setenv("METALORA_LIMITS", "image_bytes=10")
    assert table.read(0) == whole[:11]
    with pytest.raises(UserError, match="its file has more than image_bytes = 10 bytes"):
        decode(table.read(0), "x")


def test_what_is_no_file_is_passed_over_and_never_waited_for(make_tree):
    root = make_tree({"a/x": 4})
    os.mkfifo(root / "a/x/pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "a/x/socket.png"))
    for device in ("zero", "full", "tty"):
        (root / f"a/x/{device}.png").symlink_to(f"/dev/{device}")
    table = load_tree(root, 0.1, 0.2)
    assert len(table) == 4
    assert {name.rpartition("/")[2] for name in table.ignored} == {
        f"{n}.png" for n in ("pipe", "socket", "zero", "full", "tty")
    }
    (root / table.store.files[0]).unlink()
    os.mkfifo(root / table.store.files[0])
    with pytest.raises(UserError, match=r"cannot read image .*a/x/\d+\.png: it is a pipe or a device"):
        table.read(0)


def test_links_that_multiply_folders_are_refused(make_tree):
    root = make_tree({"a/x": 2})
    for level in range(40):
        (root / f"level{level}").mkdir()
        for name in "ab":
            (root / f"level{level}" / name).symlink_to(root / f"level{level + 1}")
    (root / "level40").mkdir()
    with pytest.raises(UserError, match=r"folder .* is reached by more than \d+ links"):
        load_tree(root, 0.1, 0.2)


def test_class_folders_without_a_domain_get_a_hint(tmp_path):
    (tmp_path / "flat" / "cat").mkdir(parents=True)
    (tmp_path / "flat" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="looks like class/image: put the class folders into one domain's folder"):
        load_table(DataConfig(data=str(tmp_path / "flat")))
