"""``metalora methods``: every method that settings can name, with its equation, source and options."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from metalora.errors import UserError, option
from metalora.methods import Described, described, find
from metalora.registry import KINDS
from pipelines.command_line import make_parser, parse
from pipelines.run.console import terminal


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora methods`` with command-line arguments.

    Raises:
        UserError: no method and no setting has the given name.
    """
    parser = make_parser("metalora methods", "List the methods that settings can name.", "[NAME ...]")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="a method, a setting that names methods (format), or both (format tr)"
    )
    options = parse(parser, arguments)
    methods = list(described())
    for name in options.names:
        found = find(name)
        methods = [method for method in methods if method in found]
    if not methods:
        raise UserError(f"{' '.join(options.names)}: there is no such method")
    terminal().print(as_text(methods), soft_wrap=True)


def as_text(methods: Iterable[Described]) -> str:
    """Return a text on methods, by kind, with what each does and its options."""
    parts = []
    for (setting, kind), members in groupby(methods, key=lambda one: (one.setting, one.kind)):
        parts.append(f"{kind} (--{setting}, or {setting}: in YAML)")
        parts += [_one(method) for method in members]
    return "\n\n".join(parts)


def _one(method: Described) -> str:
    lines = [f"  {method.name}", *(f"    {line}".rstrip() for line in method.text.splitlines())]
    lines += [""] if method.options else []
    for name, form, default, help in method.options:
        lines.append(f"    {option(KINDS[method.setting].path(method.name, name))} ({form}, default {default}): {help}")
    return "\n".join(lines)
