"""The files in cluster/ agree with the command line, with constraints.txt and with each other."""

import json
import re
import shlex
import subprocess
from importlib.metadata import requires, version
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement

from metalora.config import Config
from pipelines.commands import train, tune
from pipelines.commands.train import CONFIG

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
BLOCKS = re.findall(r"```sh\n(.*?)```", (CLUSTER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
TRAININGS = [block for block in BLOCKS if "train " in block]


@pytest.fixture(scope="module")
def rayjob():
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((CLUSTER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """Give a command line to the command itself, and return the config it would train with."""

    def make(words):
        start = words.index("train") + 1
        configs = []
        monkeypatch.setattr(train, "train", lambda config, resume, dry_run: configs.append(config))
        train.main(words[start:])
        return configs[0]

    return make


def head_of(rayjob):
    return rayjob["rayClusterSpec"]["headGroupSpec"]


def container_of(group):
    (container,) = group["template"]["spec"]["containers"]
    return container


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def shell_words(command, environment):
    """Return the words of a command as a shell passes them on."""
    script = f"for word in {command}; do printf '%s\\0' \"$word\"; done"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split("\0")[:-1]


def as_run_on_the_head(entrypoint, environment):
    """Take an entrypoint through the submitter's shell, `ray job submit` and the head's shell."""
    submitted = shlex.join(shell_words(entrypoint, {}))
    words = shell_words(submitted, environment)
    assert words[:2] == ["sh", "-c"], "only a shell on the head sees the head's environment"
    return shell_words(words[2], environment)


def test_the_rayjobs_entrypoint_is_a_training(rayjob, config_of):
    head = container_of(head_of(rayjob))
    environment = {entry["name"]: entry["value"] for entry in head["env"]}
    words = as_run_on_the_head(rayjob["entrypoint"], environment)
    assert words[:2] == ["metalora", "train"]
    config = config_of(words)
    assert config.tracking.tracking_uri == environment["MLFLOW_TRACKING_URI"]
    assert config.cluster.ray_address == "auto"

    (workers,) = rayjob["rayClusterSpec"]["workerGroupSpecs"]
    limits = container_of(workers)["resources"]["limits"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]  # all there before the driver counts
    assert config.cluster.workers * config.cluster.gpus_per_worker == workers["replicas"] * int(
        limits["nvidia.com/gpu"]
    )
    assert config.cluster.workers * config.cluster.cpus_per_worker <= workers["replicas"] * int(limits["cpu"])
    assert head_of(rayjob)["rayStartParams"]["num-cpus"] == "0"

    for group in (head_of(rayjob), workers):
        mounts = {mount["name"]: mount["mountPath"] for mount in container_of(group)["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        for path in (config.data.data, config.cluster.output, environment["METALORA_CACHE"]):
            assert Path(mounts["shared"]) in Path(path).parents


def test_the_rayjobs_ray_is_the_tested_one(rayjob):
    assert rayjob["rayClusterSpec"]["rayVersion"] == pins()["ray"]
    images = {
        container_of(group)["image"] for group in (head_of(rayjob), *rayjob["rayClusterSpec"]["workerGroupSpecs"])
    }
    assert len(images) == 1


def test_the_tested_versions_are_in_the_ranges_of_the_package():
    tested = {name.lower().replace("_", "-"): number for name, number in pins().items()}
    for line in requires("metalora"):
        requirement = Requirement(line)
        if requirement.marker is None:
            assert requirement.specifier.contains(tested[requirement.name.lower()]), line


def test_a_rayjob_keeps_its_kind_and_goes_when_it_is_done(rayjob):
    manifest = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob["shutdownAfterJobFinishes"] is True
    assert "\n" not in rayjob["entrypoint"]  # a line of its own would be a command of its own


@pytest.mark.parametrize("block", TRAININGS, ids=["image", "checkout", "resumed"])
def test_the_readmes_jobs_are_trainings(block, config_of, tmp_path, monkeypatch):
    from ray.dashboard.modules.job.cli import submit

    words = shlex.split(block.replace("\\\n", " "))
    assert words[:3] == ["ray", "job", "submit"]
    context = submit.make_context("submit", words[3:])  # an unknown option ends this
    runtime = json.loads(context.params["runtime_env_json"] or "{}")
    assert context.params["working_dir"] == "." or runtime["working_dir"] == "."
    assert (ROOT / runtime.get("pip", "constraints.txt")).is_file()

    line = list(context.params["entrypoint"])
    if "--resume" in line:  # of a run that is there
        output = tmp_path / "runs"
        (output / line[-1]).mkdir(parents=True)
        (output / line[-1] / CONFIG).write_text("adapter: {rank: 7}\n", encoding="utf-8")
        line[line.index("--output") + 1] = str(output)
        assert config_of(line).adapter.rank == 7
        return
    config = config_of(line)
    assert config.cluster.ray_address == "auto"
    assert config.tracking.tracking_uri != Config().tracking.tracking_uri
    assert Path(config.cluster.output).is_absolute()


def test_the_readmes_campaign_is_one(monkeypatch):
    (block,) = [block for block in BLOCKS if "metalora tune" in block]
    words = shlex.split(block.replace("\\\n", " "))
    plans = []
    monkeypatch.setattr(tune, "run_campaign", lambda plan, resume, dry_run: plans.append(plan))
    tune.main(words[words.index("tune") + 1 :])
    assert plans[0].config.cluster.ray_address == "auto"
    assert plans[0].space.name == "paper"


def test_the_readme_shows_a_job_a_resumed_job_and_the_files():
    assert len(TRAININGS) == 3
    text = "\n".join(BLOCKS)
    for path in re.findall(r"cluster/[\w.]+", text):
        assert (ROOT / path).is_file()
    assert {"cluster/Dockerfile", "cluster/rayjob.yaml", "cluster/compose.yaml"} <= set(
        re.findall(r"cluster/[\w.]+", text)
    )


def test_the_mlflow_server_takes_its_options(compose):
    from mlflow.cli import cli

    command, name, *arguments = compose["services"]["mlflow"]["command"]
    assert command == "mlflow"
    context = cli.commands[name].make_context(name, arguments)
    assert context.params["serve_artifacts"] is True
    assert context.params["artifacts_destination"] in {
        volume.partition(":")[2] for volume in compose["services"]["mlflow"]["volumes"]
    }
    assert context.params["backend_store_uri"].partition("@")[2] in {f"{name}/mlflow" for name in compose["services"]}


def test_the_mlflow_servers_image_has_the_version_of_the_clients(compose):
    recipe = compose["services"]["mlflow"]["build"]["dockerfile_inline"]
    assert "COPY constraints.txt /\n" in recipe
    assert "-c /constraints.txt" in recipe
    assert pins()["mlflow"] == version("mlflow")


def test_every_volume_and_service_is_declared(compose):
    used = {volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert used == set(compose["volumes"])
    for service in compose["services"].values():
        assert service["healthcheck"]["test"]
        assert set(service.get("depends_on", {})) <= set(compose["services"])


def test_the_image_gets_what_the_build_needs():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    copied = re.findall(r"^COPY (.*) \./$", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | set(copied[0].split()) <= set(kept)


def test_the_working_folder_is_sent_without_runs_and_tools(tmp_path):
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    for name in (".gitignore", ".rayignore", "constraints.txt"):
        (tmp_path / "work" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "work" / name).write_bytes((ROOT / name).read_bytes())
    for name in (".git/x", ".venv/x", "runs/x", "mlruns/x", "mlflow.db", "tests/x", "metalora/x.py", "pipelines/x.py"):
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).touch()
    excludes = ray_constants.RAY_RUNTIME_ENV_DEFAULT_EXCLUDES.split(",")
    create_package(str(tmp_path / "work"), tmp_path / "x.zip", include_gitignore=True, excludes=excludes)
    with ZipFile(tmp_path / "x.zip") as package:
        files = {name for name in package.namelist() if not name.endswith("/")}
    assert files == {".gitignore", ".rayignore", "constraints.txt", "metalora/x.py", "pipelines/x.py"}
