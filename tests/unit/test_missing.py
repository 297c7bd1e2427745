import os
from pathlib import Path

import pytest

from metalora.missing import is_missing, no_such_path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/cat").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("phtos", "no such file or folder: 'phtos' (here: {here}), did you mean 'photos'?"),
        ("{here}/phtos", "no such file or folder: 'phtos' (here: {here}), did you mean 'photos'?"),
        ("photos/cta", "no such file or folder: 'photos/cta' (here: {here}), did you mean 'cat'?"),
        ("q/r/s", "no such file or folder: 'q/r/s' (here: {here}), and no folder 'q/r'"),
        ("zzz", "no such file or folder: 'zzz' (here: {here})"),
        ("/nowhere-at-all/x", "no such file or folder: '/nowhere-at-all/x', and no folder '/nowhere-at-all'"),
        ("a\nb", "no such file or folder: 'a\\nb' (here: {here})"),
    ],
)
def test_what_is_missing_is_told_with_what_is_near(here, path, message):
    assert no_such_path(path.replace("{here}", str(here)), "data") == f"data: {message.replace('{here}', str(here))}"


def test_a_word_may_be_nearer_than_a_file():
    assert no_such_path("embeded", "data", ["embedded"]).endswith("did you mean 'embedded'?")


@pytest.mark.skipif(os.getuid() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_looked_at_has_no_names(here):
    (here / "photos").chmod(0o000)
    assert no_such_path("photos/x", "data").endswith("(here: {here})".replace("{here}", str(here)))


def test_only_what_does_not_exist_is_missing(here):
    Path("broken").symlink_to("nowhere")
    Path("file").touch()
    assert is_missing("nowhere")
    assert is_missing("broken")
    assert is_missing("file/inside")
    assert not is_missing("photos")
    assert not is_missing("x" * 5000)  # who opens it says what is wrong
