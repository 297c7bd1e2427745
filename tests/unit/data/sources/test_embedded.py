import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.data import decode, plain_scans
from metalora.data.sources.embedded import embedded_file


def images_of(table, split, task):
    rows = [row for row in table.rows(split) if table.domains[table.domain[row]] == task]
    pixels = np.stack([np.asarray(decode(table.read(row), table.name(row))) for row in rows])
    return pixels / 255, table.label[rows], [scans_in(table.id[row]) for row in rows]


def scans_in(name):
    assert re.fullmatch(r"mnist-\d{4}(\+\d{4})?/[a-z-]+", name)
    return [int(number) for number in re.findall(r"\d{4}", name)]


def test_sizes(embedded):
    assert embedded.domains == (
        "green-on-green",
        "green-turned-grey",
        "negative",
        "red-on-red",
        "red-turned-blue",
    )
    assert embedded.labels == tuple("0123456789")
    counts = np.zeros((5, 10, 3), dtype=int)
    np.add.at(counts, (embedded.domain, embedded.label, embedded.split), 1)
    assert (counts == [60, 40, 100]).all()
    assert len(set(embedded.id)) == 10_000


def test_a_scan_is_in_one_split_only(embedded):
    scans = {
        split: {scan for row in embedded.rows(split) for scan in scans_in(embedded.id[row])}
        for split in ("train", "val", "test")
    }
    assert {split: len(found) for split, found in scans.items()} == {"train": 600, "val": 400, "test": 1000}
    assert len(set.union(*scans.values())) == 2000


def test_plain_scans_are_apart_from_the_tasks(embedded):
    images, digit = plain_scans()
    assert (images.shape, images.dtype) == ((3000, 28, 28, 3), np.uint8)
    assert (digit.shape, digit.dtype) == ((3000,), np.int64)
    assert np.bincount(digit).tolist() == [300] * 10
    assert (images.min(), images.max()) == (0, 255)
    negative = np.concatenate([images_of(embedded, s, "negative")[0] for s in ("train", "val", "test")])
    shown = {scan.tobytes() for scan in (negative[..., 0] < 0.5)}
    plain = {scan.tobytes() for scan in (images[..., 0] > 127)}
    assert len(plain & shown) <= 10  # some ones are alike when reduced to black and white


@pytest.mark.parametrize(
    ("task", "channel", "paper", "turned"),
    [
        ("red-on-red", 0, (0.25, 0, 0), False),
        ("green-on-green", 1, (0, 0.25, 0), False),
        ("red-turned-blue", 0, (0, 0, 0.4), True),
        ("green-turned-grey", 1, (0.2, 0.2, 0.2), True),
    ],
)
def test_a_task_shows_the_counting_digit_in_its_ink_over_its_paper(embedded, task, channel, paper, turned):
    upright, digits, scans = images_of(embedded, "val", "negative")
    ink = {scan: 1 - image[..., 0] for (scan,), image in zip(scans, upright, strict=True)}
    digit = dict(zip([scan for (scan,) in scans], digits, strict=True))
    images, labels, pairs = images_of(embedded, "val", task)
    assert sorted(scan for scan, _ in pairs) == sorted(other for _, other in pairs) == sorted(digit)
    for image, label, (scan, other) in list(zip(images, labels, pairs, strict=True))[::37]:
        assert label == digit[scan]
        expected = np.tile(np.array(paper), (28, 28, 1))
        expected[..., channel] += np.rot90(ink[scan], 2) if turned else ink[scan]
        expected[..., 1 - channel] += np.rot90(ink[other], 2) if turned else ink[other]
        # noise of 0.03 on either side
        assert np.abs(image - expected.clip(0, 1)).mean() < 0.05


def test_the_paper_and_its_noise(embedded):
    images, _, _ = images_of(embedded, "val", "green-turned-grey")
    corners = images[:, :2, :2]
    assert corners.mean(axis=(0, 1, 2)) == pytest.approx([0.2] * 3, abs=0.01)
    assert corners[..., 2].std() == pytest.approx(0.03, abs=0.003)


def test_it_is_made_once(embedded):
    stamp = embedded_file().stat().st_ino
    assert embedded_file().stat().st_ino == stamp


def test_it_is_made_anew_where_it_is_damaged(empty_cache, monkeypatch):
    tasks = pa.table({"image": [bytes(range(256))]})
    monkeypatch.setattr("metalora.data.sources.embedded._tasks_table", lambda: tasks)
    whole = embedded_file().read_bytes()
    file = embedded_file()
    file.write_bytes(whole.replace(bytes(range(99, 199)), bytes(range(98, 198)), 1))
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(file, page_checksum_verification=True)
    assert embedded_file().read_bytes() == whole
