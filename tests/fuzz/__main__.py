"""``python -m tests.fuzz``: see README.md beside this file."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.judge import Verdict
from tests.fuzz.runner import Fault, Result, run
from tests.fuzz.surfaces import SURFACES, place

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; return 1 if a mutant showed a fault."""
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description="Have changed files read, and judge what comes of it."
    )
    parser.add_argument("--mutants", type=int, default=1000, metavar="N", help="over all surfaces (default: 1000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="stop after this time")
    parser.add_argument("--surface", action="append", choices=sorted(SURFACES), help="this one alone; may be repeated")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of the mutants (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="surfaces at a time (default: 2)")
    parser.add_argument(
        "--replay", metavar="SURFACE:SEED:NUMBER", help="read one mutant again, and say what comes of it"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="with --replay: leave the mutant's files there")
    parser.add_argument("--write", action="store_true", help="write the table into tests/fuzz/README.md")
    options = parser.parse_args(arguments)
    if options.replay:
        name, seed, number = options.replay.split(":")
        numbers = range(int(number), int(number) + 1)
        result = run(place(name), int(seed), numbers, hear=teller(name, int(seed)), keep=options.keep)
        print(*(verdict.value for verdict in result.counts))
        return bool(result.faults)
    results = fuzz(options.surface or list(SURFACES), options.mutants, options.seconds, options.seed, options.jobs)
    text = table(results)
    print(text)
    if options.write:
        write(text, f"`python -m tests.fuzz --mutants {options.mutants} --seed {options.seed}`")
    return any(result.faults for result in results.values())


def fuzz(names: Sequence[str], mutants: int, seconds: float, seed: int, jobs: int) -> dict[str, Result]:
    """Read mutants of surfaces, as many of each as its share says."""
    until, total = time.monotonic() + seconds, sum(SURFACES[name].share for name in names)

    def one(name: str) -> Result:
        count = max(1, round(mutants * SURFACES[name].share / total))
        return run(place(name), seed, range(count), until, teller(name, seed))

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def teller(name: str, seed: int) -> Callable[[Fault], None]:
    """Return what prints a fault."""

    def tell(fault: Fault) -> None:
        print(f"{fault.verdict.value:9} {name}:{seed}:{fault.number}  {fault.recipe}  ->  {fault.reason}", flush=True)

    return tell


def table(results: dict[str, Result]) -> str:
    """Return the table of what came of each surface's mutants."""
    head = ["surface", "mutants", *(verdict.value for verdict in Verdict), "seconds"]
    rows = [
        [name, result.counts.total(), *(result.counts[verdict] for verdict in Verdict), round(result.seconds)]
        for name, result in results.items()
    ]
    rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, len(head)))])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write(text: str, command: str) -> None:
    """Put a table into the README, between its marks."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}Written by {command}.\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
