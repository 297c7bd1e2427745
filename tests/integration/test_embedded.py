"""What is embedded: the backbones, the README's Python, and ``metalora reproduce table1``, small.

All in one module, which one process runs: its cache has the backbones once they are trained.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import metalora
from metalora.config import DataConfig
from metalora.data import SampleDataset, load_table
from metalora.data.sources.embedded import embedded_file
from tests.integration.helpers import metalora as command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = [
    "--formats", "lora", "tr", "--exclude-domains", "negative", "red-turned-blue", "green-on-green",
    "--holdout-domains", "red-on-red",
    "--epochs", "1", "--tuning-trials", "2", "--lr-low", "0.003", "--lr-high", "0.01", "--fresh-repeats", "2",
    "--tracking-uri", "none", "--parameter-budget", "60000", "--knn", "5", "--shuffled-seeds",
]  # fmt: skip


@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.9), ("mixer_tiny", 0.8)])
def test_the_embedded_backbone_reads_digits_and_is_kept(cache: Path, name: str, least: float) -> None:
    """Scans it was not trained on, in the one task that is nearly plain once it is inverted, are told apart."""
    said: list[str] = []
    from metalora.build import build_backbone

    backbone = build_backbone(name, say=said.append)
    again = build_backbone(name, say=said.append)
    assert len(said) == 1, "trained once, then taken from the cache"
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    table = load_table(DataConfig())
    rows = table.rows("test")
    rows = rows[table.domain[rows] == table.domains.index("negative")]
    dataset = SampleDataset(table, rows, partial(backbone.inputs.encode, most=table.max_pixels))
    with torch.no_grad():
        images = backbone.inputs.prepare(torch.stack([dataset[i][0] for i in range(len(rows))]))
        features = backbone(-images).numpy()
    accuracy = cross_val_score(KNeighborsClassifier(5), features, table.label[rows], cv=5).mean()
    assert accuracy > least


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^## Python\n\n```python\n(.*?)```", readme, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], metalora.MetaLoRAModel)
    assert Path("adapter/adapter.safetensors").is_file()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of one backbone, on a seventh of the embedded images, of every task and split."""
    folder = tmp_path_factory.mktemp("project")
    table = pq.read_table(embedded_file())
    groups = table.select(["domain", "split"]).to_pandas().groupby(["domain", "split"])
    pq.write_table(table.take(np.flatnonzero(groups.cumcount() % 7 == 0)), folder / "few.parquet")
    settings = ["table1", "--data", "few.parquet", "--backbones", "resnet20", *SMALL]
    done = command(folder, "reproduce", *settings, "--run-name", "table")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_a_table_has_the_backbones_asked_for(project: Path) -> None:
    parts = json.loads((project / "runs" / "table" / "table1.json").read_text())
    assert [part["backbone"] for part in parts] == ["resnet20"]


def test_the_table_goes_on_with_another_backbone(project: Path) -> None:
    before = json.loads((project / "runs" / "table" / "table1.json").read_text())
    done = command(project, "reproduce", "table1", "--resume", "table", "--backbones", "resnet20", "mixer_tiny")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = project / "runs" / "table"
    assert (folder / "table1.png").stat().st_size > 10_000
    text = (folder / "table1.md").read_text(encoding="utf-8")
    parts = json.loads((folder / "table1.json").read_text())
    assert [part["backbone"] for part in parts] == ["resnet20", "mixer_tiny"]
    assert parts[0]["scores"] == before[0]["scores"]  # what was run is not run again
    for part in parts:
        assert f"### {part['backbone']}" in text
        assert list(part["scores"]) == [
            f"{group}: {measure}"
            for group in ("trained tasks", "held-out tasks, seen gallery", "held-out tasks, own gallery")
            for measure in ("k-NN 5", "linear")
        ]
        for scores in part["scores"].values():
            assert {method: len(values) for method, values in scores.items()} == {"original": 2, "lora": 2, "tr": 2}
            assert scores["original"][0] == scores["original"][1]
        assert all(50_000 < part["parameters"][format] <= 60_000 + 1_290 for format in ("lora", "tr"))  # + the head
        for format, tuning in part["tuning"].items():
            curve = {float(rate): value for rate, value in tuning["curve"].items()}
            assert set(curve) == {0.003, 0.01}
            assert curve[tuning["lr"]] == max(curve.values()), format
            mine = sorted((project / "runs").glob(f"table-{part['backbone']}-test/trials/*-{format}-*/knn.json"))
            read = [json.loads(file.read_text())["adapted"]["overall"]["uniform"]["5"] for file in mine]
            assert part["scores"]["trained tasks: k-NN 5"][format] == read
        shuffled = part["controls"]["trained tasks: k-NN 5"]
        assert list(shuffled) == ["tr, seeds shuffled"]  # static formats have no seeds
        assert f"| tr, seeds shuffled |  | {100 * shuffled['tr, seeds shuffled'][0]:.1f}" in text
    again = command(project, "reproduce", "table1", "--resume", "table")
    assert again.returncode == 0, again.stderr[-3000:]
    assert (folder / "table1.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "lroa"], "unknown adapter format 'lroa', did you mean 'lora'"),
        (["--lr", "0.1"], "lr is what the table varies"),
        (["--fresh-repeats", "1"], "fresh_repeats = '1': input should be greater than or equal to 2"),
        (["--lr-low", "1", "--lr-high", "0.1"], "lr_low 1 must be below lr_high 0.1"),
        (["--holdout-domains", "gren-on-green"], "unknown domain 'gren-on-green', did you mean 'green-on-green'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[list[str]], str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(["reproduce", "table1", *arguments])


def test_bad_input_ends_the_process(tmp_path: Path) -> None:
    done = command(tmp_path, "reproduce", "table1", "--lr", "0.1")
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("metalora: error: lr is what the table varies")
    assert len(done.stderr.splitlines()) == 1
