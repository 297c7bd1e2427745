"""The examples in docstrings run, and the names that users import or subclass keep theirs."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "metalora").rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))
DOCUMENTED = [
    ("metalora", "adapt"),
    ("metalora", "save"),
    ("metalora", "load"),
    ("metalora", "MetaLoRAModel"),
    ("metalora", "Backbone"),
    ("metalora", "build_backbone"),
    ("metalora.config", "Config"),
    ("metalora.config", "from_dict"),
    ("metalora.adapters.factors", "Factors"),
    ("metalora.adapters.formats", "Format"),
    ("metalora.adapters.initializers", "Initializer"),
    ("metalora.models.inputs", "Inputs"),
    ("metalora.models.inputs", "ImageInputs"),
    ("metalora.train.callbacks", "Callback"),
    ("metalora.train.objectives", "Objective"),
    ("metalora.train.optimizers", "OptimizerMethod"),
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", [module_name(path) for path in EXAMPLES])
def test_examples_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0, "no example was found: the '>>>' stands outside of a docstring"
    assert found.failed == 0, "the output above shows what was expected and what came"


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_a_public_name_has_an_example(module: str, name: str) -> None:
    assert ">>> " in (getattr(importlib.import_module(module), name).__doc__ or "")


def test_the_registry_has_an_example() -> None:
    assert ">>> " in (importlib.import_module("metalora.registry").__doc__ or "")
