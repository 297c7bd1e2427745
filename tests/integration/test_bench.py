"""``metalora bench``: every benchmark, small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.bench import BENCHMARKS
from tests.integration.helpers import metalora

RATIOS = {
    "cache": ["epoch ratio", "images ratio", "start ratio"],
    "data": ["best images/s", "bare images/s"],
    "knn": [],
    "memory": [],
    "overhead": ["ratio", "fastest ratio"],
    "scaling": ["weak efficiency", "strong efficiency"],
    "step": [],
    "trials": ["trials per hour", "pause s", "to floor"],
}
ON_GPUS = ["memory"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=pytest.mark.skipif(what in ON_GPUS and not torch.cuda.is_available(), reason="no GPU"))
        for what in sorted(RATIOS)
    ],
)
def test_small(what: str, tmp_path: Path) -> None:
    done = metalora(tmp_path, "bench", what, "--small")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "runs" / "bench" / f"{what}-small.json").read_text())
    assert found["command"] == f"metalora bench {what} --small"
    assert found["machine"]["torch"]
    assert found["measured"]
    assert found["floor"]
    assert found["rows"]
    assert all(found["facts"][name] > 0 for name in RATIOS[what]), found["facts"]
    if what == "knn":
        assert found["facts"]["agreement"] is True
        assert all(row["ratio to 4 calls"] > 0 for row in found["rows"])
    if what == "memory":
        rows = {row["method"]: row["largest batch"] for row in found["rows"]}
        assert rows["lora+fused+late"] > rows["lora+fused"] > rows["lora+plain"]
        assert rows["lora+plain+checkpointed"] > rows["lora+plain"]
    if what == "step":
        rows = {row["method"]: row for row in found["rows"]}
        assert rows["floor"]["x floor"] == rows["peft"]["x peft"] == 1
        assert all(row["x peft"] > 0 for row in rows.values())
        # The same update by whatever kernel; PEFT's LoRA is ours.
        assert rows["lora+plain"]["trained"] == rows["lora+fused"]["trained"] == rows["peft"]["trained"]
        assert (rows["tr+plain"]["fused"], rows["tr+fused"]["fused"]) == (0, 19)
    assert (tmp_path / "runs" / "bench" / f"{what}-small.md").read_text() in done.stdout


def test_every_benchmark_is_run_here() -> None:
    assert set(BENCHMARKS) == set(RATIOS)
