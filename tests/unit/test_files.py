import os
import stat
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metalora.errors import UserError
from metalora.files import SUMS, atomic_file, atomic_folder, cache_dir, cached, damage, seal, sha256


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_appears_when_the_block_succeeds(tmp_path, before):
    path = tmp_path / "deep" / "er" / "x.txt"
    if before:
        path.parent.mkdir(parents=True)
        path.write_text(before)
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent  # the same file system, so that the move is atomic
        temporary.write_text("new")
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == "new"
    assert mode(path) == 0o644
    assert everything(path.parent) == ["x.txt"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failing_block_leaves_the_file_as_it_was(tmp_path, before):
    path = tmp_path / "x.txt"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert everything(tmp_path) == (["x.txt"] if before else [])
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_appears_when_the_block_succeeds(tmp_path, before):
    path = tmp_path / "deep" / "x"
    if before:
        (path / "old").mkdir(parents=True)
        (path / "old" / "file").write_text("old")
    with atomic_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("new")
        assert path.exists() == before
    assert everything(tmp_path) == ["deep", "deep/x", "deep/x/sub", "deep/x/sub/file"]
    assert (path / "sub" / "file").read_text() == "new"
    assert mode(path) == 0o755


@pytest.mark.parametrize("before", [False, True])
def test_a_failing_block_leaves_the_folder_as_it_was(tmp_path, before):
    path = tmp_path / "x"
    if before:
        path.mkdir()
        (path / "file").write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "file").write_text("half")
        raise OSError("disk full")
    assert everything(tmp_path) == (["x", "x/file"] if before else [])
    assert not before or (path / "file").read_text() == "old"


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.mkdir()
    (path / "file").write_text("old")
    replace = Path.replace

    def replace_all_but_the_new(self, target):
        if Path(target) == path and (self / "new").exists():
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_all_but_the_new)
    with pytest.raises(OSError, match=r"^no$"), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert everything(tmp_path) == ["x", "x/file"]


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "c"))
    assert cache_dir("weights") == tmp_path / "c" / "weights"
    assert (tmp_path / "c" / "weights").is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METALORA_CACHE", "~/d")
    assert cache_dir("weights") == tmp_path / "d" / "weights"
    monkeypatch.delenv("METALORA_CACHE")
    assert cache_dir("data") == tmp_path / ".cache" / "metalora" / "data"


def test_a_cache_that_cannot_be_made_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"file/weights cannot be made \(Not a directory; set METALORA_CACHE to another folder\)"
    ):
        cache_dir("weights")


@pytest.mark.parametrize("home", ["unwritable", "unknown"])
def test_the_cache_of_a_user_without_a_home_is_among_the_temporary_files(tmp_path, monkeypatch, home):
    monkeypatch.delenv("METALORA_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if home == "unknown":

        def nowhere():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nowhere)
    else:
        (tmp_path / "closed").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / "closed" / "home"))
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "closed")
    assert cache_dir("data") == tmp_path / f"metalora-{os.getuid()}" / "data"


def test_folders_that_are_written_at_once_are_each_whole(tmp_path):
    def write(number):
        for turn in range(20):
            with atomic_folder(tmp_path / "x") as folder:
                for name in "abc":
                    (folder / name).write_text(f"{number} {turn}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        failures = []
        patch.setattr(threading, "excepthook", failures.append)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert everything(tmp_path) == ["x", "x/a", "x/b", "x/c"]
    assert len({(tmp_path / "x" / name).read_text() for name in "abc"}) == 1


def test_a_shared_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent/home")
    monkeypatch.delenv("METALORA_CACHE", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"metalora-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is another user's; set METALORA_CACHE to a folder of your own"):
        cache_dir("data")
    assert list((tmp_path / "theirs").iterdir()) == []


def make(folder):
    (folder / "a").write_text("one")
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_text("two")


HARMS = {
    "changed": lambda folder: (folder / "deep" / "b").write_text("twO"),
    "longer": lambda folder: (folder / "a").write_text("one "),
    "missing": lambda folder: (folder / "a").unlink(),
    "empty sums": lambda folder: (folder / SUMS).write_text(""),
    "half the sums": lambda folder: (folder / SUMS).write_text((folder / SUMS).read_text().partition("\n")[0] + "\n"),
    "one file more": lambda folder: (folder / "c").write_text("three"),
    "no sums": lambda folder: (folder / SUMS).unlink(),
    "no UTF-8": lambda folder: (folder / SUMS).write_bytes(b"\xff"),
    "no pairs": lambda folder: (folder / SUMS).write_text("x"),
    "a folder": lambda folder: (folder / SUMS).unlink() or (folder / SUMS).mkdir(),
    "no name": lambda folder: (folder / SUMS).write_bytes(b"0" * 64 + b"  a\0b\n"),
    "outside": lambda folder: (folder / SUMS).write_text(f"{sha256(Path(__file__))}  ../../{Path(__file__)}\n"),
    "a link": lambda folder: (folder / "a").unlink() or (folder / "a").symlink_to("/etc/passwd"),
    "a link to itself": lambda folder: (folder / "a").unlink() or (folder / "a").symlink_to("a"),
    "sums without end": lambda folder: (folder / SUMS).unlink() or (folder / SUMS).symlink_to("/dev/zero"),
    "a pipe": lambda folder: (folder / "a").unlink() or os.mkfifo(folder / "a"),
    "sums a pipe": lambda folder: (folder / SUMS).unlink() or os.mkfifo(folder / SUMS),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_folder_of_the_cache_is_made_anew_and_said(tmp_path, caplog, harm):
    folder = cached(tmp_path / "kept", make)
    made = folder.stat().st_ino
    assert cached(tmp_path / "kept", make).stat().st_ino == made
    assert damage(folder) is None
    harm(folder)
    caplog.clear()
    assert cached(tmp_path / "kept", make).stat().st_ino != made
    assert damage(folder) is None
    assert (folder / "a").read_text() == "one"
    assert "kept in the cache is damaged" in caplog.text
    assert everything(tmp_path) == [".kept.lock", "kept", "kept/SHA256SUMS", "kept/a", "kept/deep", "kept/deep/b"]


def test_sums_are_those_of_sha256sum(tmp_path):
    make(tmp_path)
    seal(tmp_path)
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "a: OK\ndeep/b: OK\n"


def test_some_files_are_sealed_alone(tmp_path):
    folder = cached(tmp_path / "kept", make, ["a"])
    (folder / "deep" / "b").write_text("twO")
    assert damage(folder, ["a"]) is None
    assert cached(tmp_path / "kept", make, ["a"]).joinpath("deep", "b").read_text() == "twO"


def test_one_of_many_makes_a_folder_of_the_cache_and_one_mends_it(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text("right")

    with ThreadPoolExecutor(8) as pool:
        for times in (1, 2):
            folders = list(pool.map(lambda _: cached(tmp_path / "a", make), range(16)))
            assert {(folder / "x").read_text() for folder in folders} == {"right"}
            assert len(made) == times
            (tmp_path / "a" / "x").write_text("wrong")


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def private(file: Path) -> None:
    """Write a file as some libraries do: one of their own, which only its owner may read, takes its place."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    os.close(handle)
    Path(name).replace(file)


@pytest.mark.parametrize("write", [Path.touch, private])
def test_the_umask_decides_who_reads_a_file(tmp_path, umask, write):
    for name in ("x", "x"):  # the second time it is replaced
        with atomic_file(tmp_path / name) as temporary:
            write(temporary)
    assert mode(tmp_path / "x") == 0o666 & ~umask


@pytest.mark.parametrize("write", [Path.touch, private])
def test_the_umask_decides_who_reads_a_folder(tmp_path, umask, write):
    with atomic_folder(tmp_path / "x") as temporary:
        (temporary / "sub").mkdir()
        write(temporary / "sub" / "file")
    assert mode(tmp_path / "x") == mode(tmp_path / "x" / "sub") == 0o777 & ~umask
    assert mode(tmp_path / "x" / "sub" / "file") == 0o666 & ~umask


def test_the_target_of_a_link_in_a_folder_keeps_its_mode(tmp_path):
    (tmp_path / "own").touch(0o600)
    with atomic_folder(tmp_path / "x") as temporary:
        (temporary / "link").symlink_to(tmp_path / "own")
    assert mode(tmp_path / "own") == 0o600
