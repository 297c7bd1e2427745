from pathlib import Path

import pytest

from metalora.config import Config, from_dict, place_settings, to_dict, to_yaml
from metalora.errors import UserError
from metalora.places import absolute, absolute_tracking, moved, sqlite_file


@pytest.mark.parametrize(
    ("section", "name", "given", "wanted"),
    [
        ("data", "data", "photos", "{here}/photos"),
        ("data", "data", "./embedded", "{here}/embedded"),
        ("data", "data", "embedded", "embedded"),
        ("data", "data", "s3://bucket/x", "s3://bucket/x"),
        ("data", "data", "~/photos", "{home}/photos"),
        ("data", "data", "/abs/photos", "/abs/photos"),
        ("backbone", "weights", "w.pt", "{here}/w.pt"),
        ("backbone", "weights", "IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("backbone", "weights", "default", "default"),
        ("mapping", "extractor_weights", "sub/w.safetensors", "{here}/sub/w.safetensors"),
        ("cluster", "output", "out", "{here}/out"),
        ("cluster", "storage_path", "store", "{here}/store"),
        ("cluster", "storage_path", "gs://bucket/store", "gs://bucket/store"),
        ("tracking", "tracking_uri", "sqlite:///m.db", "sqlite:///{here}/m.db"),
        (
            "tracking",
            "tracking_uri",
            "sqlite+pysqlite:///a/m.db?timeout=5",
            "sqlite+pysqlite:///{here}/a/m.db?timeout=5",
        ),
        ("tracking", "tracking_uri", "sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("tracking", "tracking_uri", "sqlite:///:memory:", "sqlite:///:memory:"),
        ("tracking", "tracking_uri", "http://host:5000", "http://host:5000"),
        ("tracking", "tracking_uri", "none", "none"),
    ],
)
def test_a_path_is_resolved_where_the_user_stands(tmp_path, monkeypatch, section, name, given, wanted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = from_dict({section: {name: given}})
    monkeypatch.chdir("/")  # where a worker may stand
    wanted = wanted.format(here=tmp_path, home=tmp_path / "home")
    assert getattr(getattr(config, section), name) == wanted
    assert to_dict(from_dict(to_dict(config))) == to_dict(config)


def test_the_default_output_is_where_the_user_stands_when_the_config_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Config().cluster.output == str(tmp_path / "runs")


def test_every_setting_that_takes_a_path_is_known():
    assert set(place_settings()) == {
        ("backbone", "weights"), ("adapter", "init_adapter"), ("mapping", "extractor_weights"), ("data", "data"),
        ("cluster", "output"), ("cluster", "storage_path"), ("tracking", "tracking_uri"),
    }  # fmt: skip


def test_a_home_that_is_not_known_leaves_the_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("~no-such-user/x") == tmp_path / "~no-such-user" / "x"


def test_the_file_of_an_sqlite_uri():
    assert sqlite_file("sqlite:////a/m.db") == Path("/a/m.db")
    assert [sqlite_file(uri) for uri in ("sqlite://", "sqlite:///:memory:", "http://h/sqlite:///x", "none")] == [
        None
    ] * 4
    assert absolute_tracking("default") == "default"


def test_what_lay_beside_a_moved_folder_is_found_beside_it(tmp_path):
    old, new = tmp_path / "old" / "runs" / "a", tmp_path / "new" / "runs" / "b"
    (tmp_path / "new" / "photos").mkdir(parents=True)
    new.mkdir(parents=True)
    (tmp_path / "new" / "m.db").touch()
    assert moved(str(tmp_path / "old" / "photos"), old, new) == str(tmp_path / "new" / "photos")
    assert moved(f"sqlite:///{tmp_path}/old/m.db", old, new) == f"sqlite:///{tmp_path}/new/m.db"
    # what is not there stays where it was: the run alone was moved
    assert moved("/elsewhere/photos", old, new) == "/elsewhere/photos"
    assert moved(f"sqlite:///{tmp_path}/old/other.db", old, new) == f"sqlite:///{tmp_path}/old/other.db"
    assert [moved(place, old, new) for place in ("embedded", "s3://b/x", "none")] == ["embedded", "s3://b/x", "none"]


def test_a_uri_without_its_password_is_asked_for_again():
    recorded = to_yaml(from_dict({"data": {"data": "s3://KEY:longsecret@bucket/x"}}))
    assert "longsecret" not in recorded
    with pytest.raises(
        UserError, match=r"data\.data = 's3://KEY:\*\*\*@bucket/x': it was recorded without its password"
    ):
        from_dict({"data": {"data": "s3://KEY:***@bucket/x"}})
