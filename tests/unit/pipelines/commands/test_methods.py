"""The command that lists methods: what it prints follows from the methods themselves."""

import pytest

from metalora.registry import KINDS
from pipelines.cli import main


def test_every_method_of_every_kind_is_listed_with_source_and_options(capsys):
    main(["methods"])
    shown = capsys.readouterr().out
    for setting, registry in KINDS.items():
        assert f"{registry.kind} (--{setting}, or {setting}: in YAML)" in shown
        for name in registry:
            assert f"\n  {name}\n" in shown
    assert "dW = sum_n A_n diag(g_n) B_n" in shown
    assert "--format.branches (int, default 4): parallel branches N" in shown
    assert "--objective.tasks (all or one, default all): " in shown
    assert "arXiv 1711.05101" in shown


@pytest.mark.parametrize(("name", "there", "not_there"), [("tr", "tr", "cp"), ("objective", "episodic", "adamw")])
def test_one_method_or_one_kind(name, there, not_there, capsys):
    main(["methods", name])
    shown = capsys.readouterr().out
    assert f"\n  {there}\n" in shown
    assert f"\n  {not_there}\n" not in shown


def test_an_unknown_method_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["methods", "epsodic"])
    assert (
        "unknown method 'epsodic', did you mean 'episodic'? (kinds and methods: augment, callbacks, "
        in capsys.readouterr().err
    )


def test_a_method_may_be_named_with_its_kind(capsys):
    main(["methods", "format", "tr"])
    both = capsys.readouterr().out
    main(["methods", "tr"])
    assert capsys.readouterr().out == both
    with pytest.raises(SystemExit):
        main(["methods", "objective", "tr"])
    assert "objective tr: there is no such method" in capsys.readouterr().err
