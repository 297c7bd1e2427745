"""``metalora train --workers 0``: the whole pipeline in one process."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

import metalora
from metalora.config import from_dict
from metalora.data import SampleDataset, load_table
from tests.integration.helpers import SMALL, importable, knn, relative, series, train_small
from tests.integration.helpers import metalora as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def run(folder: Path, tree: Path) -> Path:
    return train_small(folder, tree, "whole", "--workers", "0", "--format", "tr")


def test_leaves_what_the_readme_says(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "metrics.jsonl", "run.json", "knn.json", "adapter/adapter.json"}
    wanted |= {"adapter/adapter.safetensors", "seeds/seeds.parquet", "seeds/tsne.png"}
    assert wanted <= files
    assert {"original", "adapted", "test_accuracy"} <= knn(run).keys()
    assert set(knn(run)["adapted"]["by_domain"]) == {"paper", "slate"}


def test_is_tracked(run: Path, folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    tracked = client.get_run(json.loads((run / "run.json").read_text())["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["adapter.rank"] == "2"
    assert tracked.data.tags["metalora.kind"] == "train"
    assert tracked.data.tags["metalora.format"] == "tr"
    assert tracked.data.metrics["test/knn1"] == pytest.approx(knn(run)["adapted"]["overall"]["uniform"]["1"])
    assert {"train/loss", "train/images_per_second", "val/loss", "val/accuracy", "val/knn3/paper"} <= set(
        tracked.data.metrics
    )
    steps = [metric.step for metric in client.get_metric_history(tracked.info.run_id, "train/loss")]
    assert steps == sorted(series(run, "train/loss"))
    listed = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert {"config.yaml", "knn.json", "adapter", "seeds"} <= listed


def test_adapter_loads_and_gives_the_reported_accuracy(run: Path, tree: Path) -> None:
    """The features of the loaded adapter, put through scikit-learn's k-NN, have the accuracy of ``knn.json``."""
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    saved = torch.load(next(run.glob("checkpoint_*")) / "state.pt", weights_only=True)
    assert saved["step"] > 0
    backbone = _backbone_of(run)
    model = metalora.load(backbone, run / "adapter")
    table = load_table(from_dict({"data": {"data": str(tree)}}).data)
    features, labels = {}, {}
    for split in ("train", "test"):
        rows = table.rows(split)
        dataset = SampleDataset(table, rows, partial(backbone.inputs.encode, most=table.max_pixels))
        images = backbone.inputs.prepare(torch.stack([dataset[i][0] for i in range(len(rows))]))
        with torch.no_grad():
            features[split] = model(images).numpy()
        labels[split] = table.label[rows]
    oracle = KNeighborsClassifier(3, metric="cosine", algorithm="brute").fit(features["train"], labels["train"])
    assert oracle.score(features["test"], labels["test"]) == pytest.approx(
        knn(run)["adapted"]["overall"]["uniform"]["3"]
    )


def test_the_printed_code_loads_the_adapter(folder: Path, tree: Path) -> None:
    done = _train(folder, tree, "printed", "--epochs", "1", "--image-size", "32", "--extractor", "resnet20",
                  "--extractor-weights", "none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("load it"))
    code = "\n".join(line.removeprefix("load it").strip() for line in lines[first:])
    shutil.copy(next(tree.rglob("*.png")), folder / "image.jpg")
    script = f"import os; os.chdir({str(folder)!r})\n{code}\nprint(sorted(model.spec.labels), len(predictions))"
    arguments = [sys.executable, "-c", script]
    loaded = subprocess.run(arguments, env=importable(), capture_output=True, text=True, check=False)
    assert loaded.stdout.strip() == "['circle', 'cross', 'square'] 1", loaded.stderr


def test_model_is_served_as_it_was_trained(run: Path, folder: Path, tree: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    served = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    files = sorted(tree.rglob("*.png"))[::7]
    request = pd.DataFrame({"image": [file.read_bytes() for file in files]})
    answer = served.predict(request, {"features": True})
    backbone = _backbone_of(run)
    model = metalora.load(backbone, run / "adapter")
    with torch.no_grad():
        images = torch.stack([backbone.inputs(_open(file)) for file in files])
        wanted = model.logits(images).argmax(1)
    assert list(answer["label"]) == [model.spec.labels[i] for i in wanted]
    assert len(answer["features"][0]) == backbone.num_features


@pytest.mark.parametrize("format", ["lora", "multi_lora", "cp"])
def test_other_formats_train(folder: Path, tree: Path, format: str) -> None:
    run = train_small(folder, tree, f"as-{format}", "--workers", "0", "--format", format, "--epochs", "1",
                      "--tracking-uri", "none")  # fmt: skip
    assert (run / "seeds").exists() == (format == "cp")
    assert (run / "adapter" / "adapter.safetensors").is_file()


def test_resumed_is_bit_equal_to_uninterrupted(run: Path, folder: Path, tree: Path) -> None:
    """A run that ends in mid-epoch, at a checkpoint, and goes on is the run that was never interrupted."""
    plain = train_small(folder, tree, "plain", "--workers", "0", "--tracking-uri", "none", "--checkpoint-every", "2")
    halted = folder / "runs" / "halted"
    _stop_after(folder, tree, "halted", checkpoint="checkpoint_00000006")
    done = command(folder, "train", "--resume", "halted")
    assert done.returncode == 0, done.stderr
    assert (halted / "adapter/adapter.safetensors").read_bytes() == (plain / "adapter/adapter.safetensors").read_bytes()
    assert knn(halted) == knn(plain)
    assert series(halted, "val/loss") == series(plain, "val/loss")


def test_nan_stops_with_step_task_and_checkpoint(folder: Path, tree: Path) -> None:
    done = _train(folder, tree, "nan", "--lr", "1e30", "--clip-norm", "none", "--checkpoint-every", "1")
    error, how = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert "is not finite at step" in error
    assert error.endswith("last good checkpoint: step 1")
    assert how == "once that is mended, to continue: metalora train --resume nan"


def test_resume_with_other_settings_is_refused(run: Path, folder: Path) -> None:
    done = command(folder, "train", "--resume", "whole", "--rank", "3")
    _refused(done, "adapter.rank was 2, is 3")


def _train(folder: Path, tree: Path, name: str, *arguments: str):
    from tests.integration.helpers import SMALL

    data = ["--data", relative(tree, folder)]
    return command(folder, "train", *data, *SMALL, "--workers", "0", "--tracking-uri", "none", "--run-name", name,
                   *arguments)  # fmt: skip


def _refused(done, *parts: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert all(part in lines[0] for part in parts), lines[0]


def _stop_after(folder: Path, tree: Path, name: str, checkpoint: str) -> None:
    """Let a training die, as by power failure, right after a checkpoint: ``os._exit`` in its place."""
    import subprocess
    import sys

    from tests.integration.helpers import SMALL

    script = (
        "import os\n"
        "from metalora.train.checkpoint import CheckpointFolder\n"
        "from pipelines.cli import main\n"
        "write = CheckpointFolder.write\n"
        "def dying(self, step, fill):\n"
        "    path = write(self, step, fill)\n"
        f"    if path.name == {checkpoint!r}: os._exit(9)\n"
        "    return path\n"
        "CheckpointFolder.write = dying\n"
        f"main(['train', '--data', {relative(tree, folder)!r}, *{SMALL!r}, '--workers', '0', '--tracking-uri', 'none',"
        f" '--checkpoint-every', '2', '--run-name', {name!r}])\n"
    )
    arguments = [sys.executable, "-c", script]
    done = subprocess.run(arguments, cwd=folder, env=importable(), capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr


def _backbone_of(run: Path) -> metalora.Backbone:
    """Rebuild the random backbone of a run: the trainer seeds it, so its hash is the one in the adapter."""
    from metalora.build import build_networks
    from metalora.reading import read_yaml

    return build_networks(from_dict(read_yaml(run / "config.yaml")), print)[0]


def _open(file: Path):
    from PIL import Image

    return Image.open(file)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on CPUs")
def test_what_is_compiled_is_found_again(folder: Path, tree: Path, tmp_path: Path) -> None:
    def compiled() -> dict[str, set[Path]]:
        """Return the compiled libraries, and the whole graphs, which have an autograd function of ours in them."""
        (version,) = (tmp_path / "compiled").iterdir()
        return {
            "libraries": {path for path in version.rglob("*.so") if path.is_file()},
            "graphs": {path for path in (version / "aotautograd").rglob("*") if path.is_file()},
        }

    found, losses = [], []
    for name in ("first", "second"):
        done = command(
            folder, "train", "--data", relative(tree, folder), *SMALL, "--workers", "0", "--epochs", "1", "--compile",
            "--kernel", "fused", "--run-name", f"compiled-{name}", METALORA_CACHE=str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(compiled())
        losses.append(series(folder / "runs" / f"compiled-{name}", "train/loss"))
    assert all(found[0].values())
    assert found[1] == found[0]
    assert losses[1] == losses[0]
