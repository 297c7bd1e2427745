"""Draw figures without a display, with names from data shown literally."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metalora.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 40
# Fonts for scripts that matplotlib's own has no glyphs for, where they are installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Droid Sans Fallback", "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari",
    "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Unifont",
)  # fmt: skip


@contextmanager
def drawn(path: Path, width: float, height: float, dpi: int = 120) -> Iterator["Figure"]:
    """Yield an empty figure that is written as a PNG when the block ends; ``$`` in it is a dollar sign, no formula.

    Args:
        path: The PNG file; it is replaced as a whole, or not at all.
        width: Width in inches.
        height: Height in inches.
        dpi: Pixels per inch.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    with (
        matplotlib.rc_context({"text.parse_math": False, "font.family": fonts}),
        warnings.catch_warnings(),
        atomic_file(path) as temporary,
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box shows in its place
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(temporary, format="png", dpi=dpi)


def shown(name: str) -> str:
    """Return a name for a figure: on one line, shortened, without characters that cannot be printed."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(name.split()))
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def verbatim(name: str) -> str:
    """Return a name as Markdown that shows it literally."""
    return re.sub(r"([\\`*_<>\[\]|~$#])", r"\\\1", " ".join(name.split()))
