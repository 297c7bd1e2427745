"""Imports run one way, as DESIGN section 3 has them."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 300, 60  # lines

# unit (a folder, or a file of its own): what it may import of this house, beside the ground, which imports upwards only
ALLOWED = {
    "group": [],
    "adapters": [],
    "data": [],
    "report": ["evaluate"],
    "models": ["adapters", "data"],
    "evaluate": ["data", "group"],
    "train": ["adapters", "models", "data", "evaluate", "group"],
    "methods": ["adapters", "data", "train"],
    "build": ["models", "data", "evaluate", "train", "group"],
    "tracking": [],
    "tracking.served_model": ["models", "data"],
    "__init__": ["build", "models"],
}
GROUND = {  # unit: the ground it may stand on
    "errors": [],
    "version": [],
    "limits": ["errors"],
    "reading": ["errors", "limits"],
    "tensor_files": ["errors", "limits", "reading"],
    "files": ["errors", "limits", "places", "reading"],
    "places": ["errors", "redact"],
    "redact": [],
    "registry": ["errors", "reading"],
    "config": ["errors", "registry", "places", "reading", "redact"],
    "missing": ["errors", "places", "reading", "registry"],
    "report": ["config", "errors", "files"],
    "tracking": ["config", "errors", "files", "places", "redact", "registry"],
}
ANY_GROUND = [unit for unit in GROUND if unit not in ("report", "tracking")]
PIPELINES = {
    "surroundings": [],
    "verbosity": [],
    "command_line": ["verbosity"],
    "options": ["command_line"],
    "cli": ["surroundings", "verbosity"],
    "run": ["verbosity"],
    "backend": ["surroundings", "verbosity", "run"],
    "campaign": ["surroundings", "verbosity", "options", "run", "backend"],
    "bench": ["command_line", "options", "cli", "run", "backend", "campaign"],
    "commands": ["command_line", "options", "run", "backend", "campaign", "bench"],
    "__init__": [],
}
COMPILER = ["torch._dynamo", "torch._functorch.config", "torch._inductor"]
OUTSIDE = {
    "mlflow": {"tracking", "tracking.served_model"},
    "ray": set(),
    "pipelines": set(),
    "tune_spaces": set(),
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path, top: bool = False) -> Iterator[str]:
    """Yield the full names that a file imports; with ``top`` only at its top, not inside functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(file: Path, package: str, table: Mapping[str, object]) -> str:
    """Return the file's row of a table: its own, or that of the folder below the package."""
    own = ".".join(file.relative_to(ROOT / package).with_suffix("").parts)
    return own if own in table else own.partition(".")[0]


@pytest.mark.parametrize("file", sources("metalora"), ids=lambda file: str(file.relative_to(ROOT)))
def test_metalora_imports_one_way_only(file):
    unit = unit_of(file, "metalora", ALLOWED)
    allowed = {unit.partition(".")[0], *ALLOWED.get(unit, []), *GROUND.get(unit, ANY_GROUND)}
    for name in imported(file):
        package, _, rest = name.partition(".")
        if package == "metalora":
            assert rest.partition(".")[0] in allowed, f"{unit} must not import {name}"
        elif package in OUTSIDE:
            assert unit in OUTSIDE[package], f"{unit} must not import {name}"


@pytest.mark.parametrize("file", sources("pipelines"), ids=lambda file: str(file.relative_to(ROOT)))
def test_pipelines_import_one_way_only(file):
    unit = unit_of(file, "pipelines", PIPELINES)
    for name in imported(file):
        package, _, rest = name.partition(".")
        if package == "pipelines":
            assert rest.partition(".")[0] in {unit, *PIPELINES[unit]}, f"{unit} must not import {name}"


def test_every_unit_is_in_the_tables():
    assert {unit_of(file, "metalora", ALLOWED) for file in sources("metalora")} <= ALLOWED.keys() | GROUND.keys()
    assert {unit_of(file, "pipelines", PIPELINES) for file in sources("pipelines")} == PIPELINES.keys()


@pytest.mark.parametrize("table", [ALLOWED, PIPELINES], ids=["metalora", "pipelines"])
def test_a_table_has_no_cycle(table):
    order: list[str] = []
    while len(order) < len(table):
        ready = [unit for unit, wanted in table.items() if unit not in order and set(wanted) <= set(order)]
        assert ready, f"a cycle among {table.keys() - set(order)}"
        order += ready


def test_no_module_imports_itself_through_others():
    """Imports at the top of files form no circle; those inside functions may look back."""
    modules = {module_of(file): file for folder in ("metalora", "pipelines") for file in sources(folder)}
    wanted = {}
    for module, file in modules.items():
        named = {name if name in modules else name.rpartition(".")[0] for name in imported(file, top=True)}
        wanted[module] = (named & modules.keys()) - {module}
    order: set[str] = set()
    while len(order) < len(wanted):
        ready = {module for module, names in wanted.items() if module not in order and names <= order}
        assert ready, f"a circle among {sorted(wanted.keys() - order)}"
        order |= ready


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", [*sources("metalora"), *sources("pipelines")], ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_read_in_one_sitting(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in functions if (n.end_lineno or 0) - n.lineno >= LONGEST_FUNCTION] == []


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
        ("metalora.train.trainer", ["mlflow", "ray", "sklearn", "timm", "matplotlib"]),
        ("metalora.tracking.build", ["mlflow", "ray", "torch"]),
        ("metalora.train.reporter", ["torch"]),  # what the board's process imports
        ("pipelines.backend.mailbox", ["torch"]),
        ("pipelines.cli", ["torch", "mlflow", "ray", "rich"]),
        # what Ray's processes import before `keep_compiled` is called there
        ("pipelines.backend.worker", COMPILER),
        ("pipelines.campaign.trial", COMPILER),
        ("pipelines.commands.train", ["mlflow", "ray", "sklearn", "timm", "matplotlib"]),
    ],
)
def test_optional_and_heavy_libraries_are_imported_where_used(module, absent):
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
