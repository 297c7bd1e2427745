import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.report.campaign_tables import markdown
from metalora.report.drawing import LONGEST_NAME, drawn, shown, verbatim
from metalora.report.plots import plot_tsne, scatter

NAMES = [
    "Ba$$in",
    "$5_$10",
    "_hidden",
    "素描",
    "x" * 250,
    "[b]red[/b]",
    "a\nb\t\x07",
    r"\$x",
    "\udce9t\udce9",
    "%s {0}",
]


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    seeds = np.random.default_rng(0).normal(size=(30, 4))
    names = [NAMES[i % len(NAMES)] for i in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_tsne(seeds, names, names[::-1], tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as image:
        assert image.size[0] > 1000


def test_the_legend_says_every_name_as_it_is(tmp_path: Path) -> None:
    names = np.array(["Ba$$in", "$5_$10", "_hidden", r"\$x"])
    with drawn(tmp_path / "l.png", 4, 4) as figure:
        axes = figure.subplots()
        scatter(axes, np.zeros((4, 2)), names, "task")
        texts = axes.get_legend().get_texts()
        assert sorted(text.get_text() for text in texts) == sorted(names)
        assert not any(text.get_parse_math() for text in texts)


def test_nothing_is_left_of_a_picture_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), drawn(tmp_path / "x.png", 4, 4):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_shown_name_is_one_short_printable_line() -> None:
    assert [shown(name) for name in ("a\nb  c", "x\x07", "素描")] == ["a b c", "x\ufffd", "素描"]
    assert len(shown("x" * 250)) == LONGEST_NAME


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a|b", r"a\|b"), ("*x* _y_", r"\*x\* \_y\_"), ("<b>", r"\<b\>"), ("a\nb", "a b"), ("[l](u)", r"\[l\](u)"),
        ("`c`", r"\`c\`"),
    ],
)  # fmt: skip
def test_a_name_is_no_markdown(name: str, wanted: str) -> None:
    assert verbatim(name) == wanted
    assert markdown(["head"], [[verbatim(name)]]).splitlines()[-1] == f"| {wanted} |"
