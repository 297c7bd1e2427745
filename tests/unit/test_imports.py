"""Imports run one way, as DESIGN section 3 has them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# unit: what it may import of this house, beside config, registry, errors, files and version, which import upwards only
ALLOWED = {
    "group": [],
    "adapters": [],
    "data": [],
    "report": [],
    "models": ["adapters"],
    "evaluate": ["data", "group"],
    "train": ["adapters", "models", "data", "evaluate", "group"],
    "generate": ["adapters", "models", "data", "evaluate", "group"],
    "build": ["models", "data", "evaluate", "train", "group"],
    "mlflow_model": ["models", "data"],
    "tracking": ["mlflow_model"],
    "__init__": ["build", "models"],
}
GROUND = {  # unit: the ground it may stand on
    "errors": [],
    "version": [],
    "limits": ["errors"],
    "reading": ["errors", "limits"],
    "tensor_files": ["errors", "limits", "reading"],
    "files": ["errors", "places"],
    "places": ["errors", "redact"],
    "redact": [],
    "registry": ["errors"],
    "config": ["errors", "registry", "places", "reading", "redact"],
    "report": ["config", "errors", "files"],
    "tracking": ["config", "errors", "files", "places", "redact"],
}
ANY_GROUND = [unit for unit in GROUND if unit not in ("report", "tracking")]
OUTSIDE = {
    "mlflow": {"tracking", "mlflow_model"},
    "ray": set(),
    "pipelines": set(),
    "tune_spaces": set(),
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(file: Path) -> str:
    return file.relative_to(ROOT / "metalora").with_suffix("").parts[0]


@pytest.mark.parametrize("file", sources("metalora"), ids=lambda file: str(file.relative_to(ROOT)))
def test_metalora_imports_one_way_only(file):
    unit = unit_of(file)
    allowed = {unit, *ALLOWED.get(unit, []), *GROUND.get(unit, ANY_GROUND)}
    for name in imported(file):
        package, _, rest = name.partition(".")
        if package == "metalora":
            assert rest.partition(".")[0] in allowed, f"{unit} must not import {name}"
        elif package in OUTSIDE:
            assert unit in OUTSIDE[package], f"{unit} must not import {name}"


def test_every_unit_is_in_the_table():
    units = {unit_of(file) for file in sources("metalora")}
    assert units <= ALLOWED.keys() | GROUND.keys()


def test_the_table_has_no_cycle():
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [unit for unit, wanted in ALLOWED.items() if unit not in order and set(wanted) <= set(order)]
        assert ready, f"a cycle among {ALLOWED.keys() - set(order)}"
        order += ready


@pytest.mark.parametrize("file", sources("pipelines"), ids=lambda file: str(file.relative_to(ROOT)))
def test_pipelines_leave_mlflow_to_tracking(file):
    assert not [name for name in imported(file) if name.partition(".")[0] == "mlflow"]


def test_tune_spaces_know_only_config_and_ray_tune():
    for file in sources("tune_spaces"):
        for name in imported(file):
            if name.partition(".")[0] in ("metalora", "pipelines", "ray", "mlflow"):
                assert f"{name}.".startswith(("metalora.config.", "ray.tune.")), f"{file.name} must not import {name}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "metalora",
            ["mlflow", "ray", "sklearn", "timm", "torchvision", "matplotlib", "pandas", "pyarrow", "tensorly"],
        ),
        ("metalora.train.loop", ["mlflow", "ray", "sklearn", "timm", "matplotlib"]),
        ("metalora.tracking", ["mlflow", "ray"]),
        ("metalora.train.reporter", ["torch"]),  # what the board's process imports
        ("pipelines.board", ["torch"]),
        ("pipelines.cli", ["torch", "mlflow", "ray", "rich"]),
        ("pipelines.train", ["mlflow", "ray", "sklearn", "timm", "matplotlib"]),
    ],
)
def test_optional_and_heavy_libraries_are_imported_where_used(module, absent):
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
