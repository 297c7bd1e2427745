import pytest

from metalora.config import DataConfig
from metalora.data import load_table, verify
from metalora.errors import UserError


@pytest.fixture
def bad_tree(make_tree):
    root = make_tree({"a/x": 6, "a/y": 6, "b/x": 6, "b/y": 6})
    for name in ("a/y/002.png", "b/x/000.png"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images decoded so far."""
    names = []
    decode = verify.decode

    def count(data, name, max_pixels):
        names.append(name)
        return decode(data, name, max_pixels)

    monkeypatch.setattr(verify, "decode", count)
    return names


def test_the_first_bad_image_is_named_and_the_others_counted(bad_tree):
    message = (
        r"^cannot decode image .*/a/y/002\.png: .* \(1 more like it\); .* set on_bad_image to skip \(--on-bad-image\)$"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            load_table(DataConfig(data=str(bad_tree)))


def test_bad_images_can_be_skipped(bad_tree, decoded):
    table = load_table(DataConfig(data=str(bad_tree), on_bad_image="skip"))
    assert len(table) == 22
    assert table.skipped == (str(bad_tree / "a/y/002.png"), str(bad_tree / "b/x/000.png"))
    assert not set(table.skipped) & {table.name(row) for row in range(22)}
    assert all(table.name(row).endswith(table.id[row]) for row in range(22))
    assert len(decoded) == 24
    again = load_table(DataConfig(data=str(bad_tree), on_bad_image="skip"))
    assert (again.fingerprint, again.skipped) == (table.fingerprint, table.skipped)
    assert len(decoded) == 24


@pytest.mark.parametrize("damaged", [b"", b"{}", b"null", b'{"x": 1}', b"[" * 9999])
def test_a_damaged_memory_is_made_anew(bad_tree, decoded, empty_cache, damaged):
    table = load_table(DataConfig(data=str(bad_tree), on_bad_image="skip"))
    [memory] = (empty_cache / "data").glob("verified-*/bad.json")
    memory.write_bytes(damaged)
    again = load_table(DataConfig(data=str(bad_tree), on_bad_image="skip"))
    assert (again.fingerprint, again.skipped) == (table.fingerprint, table.skipped)
    assert len(decoded) == 48


def test_the_checks_see_what_is_left(make_tree):
    root = make_tree({"a/x": 4, "a/y": 4})
    for path in (root / "a" / "y").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="label 'y' has no image left"):
        load_table(DataConfig(data=str(root), on_bad_image="skip"))


def test_verification_can_be_left_out(bad_tree, decoded):
    assert len(load_table(DataConfig(data=str(bad_tree), verify_images=False))) == 24
    assert decoded == []


def test_skipping_needs_verification(bad_tree):
    with pytest.raises(UserError, match="on_bad_image = skip needs verify_images = true"):
        load_table(DataConfig(data=str(bad_tree), verify_images=False, on_bad_image="skip"))


def test_a_mended_image_is_looked_at_again(bad_tree, png):
    for name in ("a/y/002.png", "b/x/000.png"):
        (bad_tree / name).write_bytes(png(77))
    assert len(load_table(DataConfig(data=str(bad_tree)))) == 24


def test_a_passing_failure_to_read_is_not_remembered(make_tree, monkeypatch):
    root = make_tree({"a/x": 4, "a/y": 4})
    with monkeypatch.context() as patch:
        patch.setattr("os.fdopen", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(UserError, match=r"cannot read image .*a/x/000\.png: I/O error"):
            load_table(DataConfig(data=str(root)))
    assert len(load_table(DataConfig(data=str(root)))) == 8


def test_a_bad_parquet_image_is_named_by_file_row_and_id(make_rows, write):
    rows = make_rows()
    rows[17]["image"] = b"broken"
    with pytest.raises(UserError, match=r"cannot decode image .*data\.parquet row 17 \(id i17\): no image format"):
        load_table(DataConfig(data=write(rows)))
