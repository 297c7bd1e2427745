"""The embedded backbone, and the README's Python."""

import re
from pathlib import Path

import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import metalora
from metalora.config import DataConfig
from metalora.data import ImageDataset, load_table

pytestmark = pytest.mark.slow


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
    dataset = ImageDataset(table, rows, backbone.preprocess)
    with torch.no_grad():
        features = backbone(-torch.stack([dataset[i][0] for i in range(len(rows))])).numpy()
    accuracy = cross_val_score(KNeighborsClassifier(5), features, table.label[rows], cv=5).mean()
    assert accuracy > least


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], metalora.MetaLoRAModel)
    assert Path("adapter/adapter.safetensors").is_file()
