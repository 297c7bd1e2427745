from collections import Counter

import numpy as np
import pytest

from metalora.config import DataConfig
from metalora.data import load_table
from metalora.errors import UserError


@pytest.fixture
def load(make_rows, write):
    """Load the standard rows, less those that ``drop`` tells."""

    def load_without(drop, domains="abc", labels="xyz", **settings):
        rows = [row for row in make_rows(domains, labels) if not drop(row)]
        return load_table(DataConfig(data=write(rows), **settings))

    return load_without


def is_at(row, **values):
    return all(row[name] == value for name, value in values.items())


def test_a_missing_label_is_named(load):
    with pytest.raises(UserError, match=r"^domain 'b' lacks 'y'; all domains must share one label set"):
        load(lambda row: is_at(row, domain="b", label="y"))


def test_an_extra_label_is_named(load):
    with pytest.raises(UserError, match=r"^domain 'c' has 'z' that most others lack; all domains must share"):
        load(lambda row: row["label"] == "z" and row["domain"] != "c")


def test_many_differing_labels_are_abbreviated(load):
    with pytest.raises(UserError, match=r"lacks 'p', 'q', 'r', 's', 't' and 2 more; all"):
        load(lambda row: row["domain"] == "b" and row["label"] > "o", labels="opqrstuv")


def test_different_labels_can_be_allowed(load):
    table = load(lambda row: is_at(row, domain="b", label="y"), allow_different_labels=True)
    assert len(table) == 7 * 8


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_domain_without_a_split_is_named(load, split):
    with pytest.raises(UserError, match=f"domain 'b' has no {split} images; each domain needs some"):
        load(lambda row: is_at(row, domain="b", split=split))


def test_val_is_there_for_all_domains_or_for_none(load):
    with pytest.raises(UserError, match="domain 'b' has no val images; all domains or none have some"):
        load(lambda row: is_at(row, domain="b", split="val"))
    assert load(lambda row: row["split"] == "val").rows("val").tolist() == []


def test_a_label_without_train_images_is_named(load):
    with pytest.raises(UserError, match="label 'z' has 9 images but none in the train split"):
        load(lambda row: is_at(row, label="z", split="train"))


def test_a_label_with_one_image_is_named(load):
    with pytest.raises(UserError, match="label 'z' has one image; at least 2 are needed"):
        load(lambda row: row["label"] == "z" and row["id"] != "i14")


def test_one_label_is_too_few(load):
    with pytest.raises(UserError, match=r"the data has 1 label \('x'\); at least 2 are needed"):
        load(lambda row: False, labels="x")


def test_excluding_domains_leaves_their_labels_out_too(load):
    everything = load(lambda row: is_at(row, label="z") and row["domain"] != "b", allow_different_labels=True)
    table = load(lambda row: is_at(row, label="z") and row["domain"] != "b", exclude_domains=("b",))
    assert (table.labels, table.domains) == (("x", "y"), ("a", "c"))
    assert (everything.labels, everything.domains) == (("x", "y", "z"), ("a", "b", "c"))
    assert table.fingerprint != everything.fingerprint
    kept = np.flatnonzero(everything.domain != 1)
    assert len(table) == len(kept) == 28
    for row, old in enumerate(kept):
        assert table.id[row] == everything.id[old]
        assert table.domains[table.domain[row]] == everything.domains[everything.domain[old]]
        assert table.labels[table.label[row]] == everything.labels[everything.label[old]]
        assert table.read(row) == everything.read(old)
    assert table.name(20).endswith(f"(id {table.id[20]})")


def test_an_unknown_domain_to_exclude_is_named(load):
    with pytest.raises(UserError, match=r"unknown domain 'd' \(domains: a, b, c\)"):
        load(lambda row: False, exclude_domains=("a", "d"))


def test_all_domains_cannot_be_excluded(load):
    with pytest.raises(UserError, match="exclude_domains leaves out all of a, b, c"):
        load(lambda row: False, exclude_domains=("a", "b", "c"))


def test_rows_leave_held_out_domains_out(load):
    everything = load(lambda row: False)
    table = load(lambda row: False, holdout_domains=("b",))
    assert (table.domains, table.holdout, len(table)) == (("a", "b", "c"), ("b",), len(everything))
    for split in ("train", "val", "test"):
        held_out = table.domain[table.holdout_rows(split)]
        counts = Counter(table.domains[number] for number in everything.domain[everything.rows(split)])
        assert everything.count(split) == counts
        assert table.count(split) == {name: counts[name] for name in "ac"}
        assert set(held_out) == {1}
        assert set(table.domain[table.rows(split)]) == {0, 2}
        both = np.sort(np.concatenate([table.rows(split), table.holdout_rows(split)]))
        assert both.tolist() == everything.rows(split).tolist()
        assert len(everything.holdout_rows(split)) == 0


def test_an_unknown_domain_to_hold_out_is_named(load):
    with pytest.raises(UserError, match=r"holdout_domains: unknown domain 'd' \(domains: a, b, c\)"):
        load(lambda row: False, holdout_domains=("d",))


def test_all_domains_cannot_be_held_out(load):
    with pytest.raises(UserError, match="holdout_domains leaves out all of a, b, c"):
        load(lambda row: False, holdout_domains=("a", "b", "c"))


def test_a_label_that_only_held_out_domains_have_is_named(load):
    with pytest.raises(UserError, match="holdout_domains: no domain that is trained on has 'z'"):
        load(
            lambda row: row["label"] == "z" and row["domain"] != "b",
            holdout_domains=("b",),
            allow_different_labels=True,
        )
