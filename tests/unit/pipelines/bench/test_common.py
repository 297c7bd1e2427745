"""The frame of the benchmarks: options, clock, tables, files."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metalora.errors import UserError
from pipelines.bench import BENCHMARKS, main
from pipelines.bench.common import Result, Size, Timing, machine, publish, read_options, table, timed

SIZES = {"gallery": Size("rows", 10, 1000), "max-workers": Size("workers", 2, 8)}


def test_sizes_are_small_full_or_given() -> None:
    full, small = (read_options("knn", "", SIZES, arguments) for arguments in ([], ["--small", "--gallery", "7"]))
    assert (full.gallery, full.max_workers) == (1000, 8)
    assert (small.gallery, small.max_workers) == (7, 2)
    assert small.command == "metalora bench knn --small --gallery 7"
    assert small.report == "runs/bench/knn-small.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nkn"], "unknown benchmark 'nkn', did you mean 'knn'"),
        (["knn", "--galery", "3"], "unknown option '--galery', did you mean '--gallery'? (metalora bench knn --help"),
        (["knn", "--gallery", "0"], "a whole number from 1 on is wanted, got '0'"),
        (["knn", "--gallery", "9"], "--gallery 9 is too small for K = 10"),
        (["scaling", "--small", "--steps", "19"], "--steps 19: at least 20"),
        (["scaling", "--small", "--max-workers", "1"], "scaling needs two workers"),
        (["scaling", "--small", "--batch-size", "7", "--max-workers", "2"], "cannot be shared by 2 workers"),
        (["scaling", "--small", "--rank", "0"], "adapter.rank = '0'"),
        (["overhead", "--small", "--images", "80"], "an epoch has 6 optimizer steps, 12 are wanted"),
        pytest.param(
            ["step", "--small", "--modes", "eager+graph"],
            "--modes eager+graph: CUDA graphs need a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device takes graphs"),
        ),
        (["step", "--methods", "lora"], "unknown method 'lora' (choices: frozen, floor"),
        (["memory", "--methods", "lora"], "unknown method 'lora' (choices: floor, full"),
        pytest.param(
            ["memory", "--small"],
            "memory is measured on a GPU, and there is none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device has memory"),
        ),
        (["trials", "--space", "qiuck"], "unknown space 'qiuck', did you mean 'quick'"),
        (["trials", "--small", "--trials", "1"], "a pause needs two trials"),
        (["data", "--data", "nowhere"], "no such file or folder: 'nowhere'"),
        (["data", "--small", "--images", "80", "--batch-size", "49"], "batch_size 49 is more than the 48 images"),
    ],
)
def test_bad_input_is_one_error(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.bench.scaling.places", lambda: 2)
    with pytest.raises(UserError) as error:
        main(arguments)
    assert message in str(error.value)


def test_the_usage_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in BENCHMARKS)


def test_callables_are_timed_in_turn() -> None:
    order: list[str] = []
    times = timed({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.02))}, 3, 1)
    assert order == ["a", "b"] * 4
    assert len(times["a"].seconds) == 3
    assert times["b"].median > 0.02 > times["a"].median


def test_median_and_spread() -> None:
    assert Timing((1.0, 4.0, 2.0)).median == 2
    assert Timing((1.0, 4.0, 2.0)).spread == 1.5


def test_tables_are_markdown() -> None:
    rows = [{"name": "a", "count": 12000, "s": 0.123456}, {"name": "b", "count": 2, "s": 12345.6}]
    assert table(rows) == [
        "| name | count | s |",
        "| --- | ---: | ---: |",
        "| a | 12,000 | 0.1235 |",
        "| b | 2 | 12,346 |",
    ]
    assert table([]) == []


def test_results_are_written_with_machine_and_command(tmp_path: Path) -> None:
    options = read_options("knn", "", SIZES, ["--small", "--report", str(tmp_path / "deep" / "x.json")])
    publish(Result("knn", "What.", "Least.", [{"s": 1.5}], {"agreement": True, "none": None}), options)
    written: dict[str, Any] = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert written["command"] == options.command
    assert written["machine"] == machine()
    assert (written["rows"], written["facts"]["agreement"], written["small"]) == ([{"s": 1.5}], True, True)
    text = (tmp_path / "deep" / "x.md").read_text()
    assert "| 1.5 |" in text
    assert "- agreement: yes\n- none: -\n" in text
    assert f"`{options.command}`" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/x.json", r"--report .* cannot be written: .*file takes no files"),
        ("x.md", r"--report .* is for the JSON: the Markdown file lies beside it"),
        ("folder", r"--report .* is a folder: a file is wanted"),
    ],
)
def test_a_report_that_cannot_be_written_is_one_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        read_options("knn", "", SIZES, ["--report", str(tmp_path / name)])
