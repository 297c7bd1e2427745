"""Predictions on their way into one file, Parquet or CSV: kept part by part, so that an interrupted command goes on."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from metalora.errors import UserError, one_line
from metalora.files import atomic_file
from metalora.models.predictor import Prediction
from metalora.places import absolute
from metalora.reading import read_json

ENDINGS = (".parquet", ".csv")
PLAN, LOCK = "plan.json", ".lock"


class Predictions:
    """The parts of a file of predictions, in a folder beside it until all are there.

    Args:
        path: The file to write, with one of `ENDINGS`.
        plan: What is predicted by what and how; parts of another plan are not continued.
        labels: Labels of a row.
        features: Whether rows have features.

    Raises:
        UserError: the file exists, or has another ending.
    """

    def __init__(self, path: str, plan: Mapping[str, Any], labels: int, features: bool) -> None:
        self.file = absolute(path)
        self.folder = self.file.with_name(self.file.name + ".parts")
        if self.file.suffix not in ENDINGS:
            raise UserError(f"--to {path!r} must end in {' or '.join(ENDINGS)}")
        if features and self.file.suffix == ".csv":
            raise UserError("--features needs --to FILE.parquet: CSV has no columns of vectors")
        if self.file.exists():
            raise UserError(f"--to {path!r} exists: remove it, or choose another file")
        self.path, self.plan = path, dict(plan)
        self.schema = _schema(labels, features)
        self.lock = FileLock(self.folder / LOCK)

    def __enter__(self) -> "Predictions":
        """Begin, or continue what is there; one command at a time does.

        Raises:
            UserError: another command writes the file or has just written it, it cannot be written, or its parts are of
                another plan.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"--to {self.path!r} is being written by another command") from None
        except OSError as error:
            raise UserError(f"--to {self.path!r} cannot be written: {error.strerror}") from None
        try:
            self._begin()
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, error: BaseException | None = None, trace: object = None) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note("to continue: the same command")
        with suppress(OSError):
            (self.folder / LOCK).unlink()  # while it is held: another command looks whether its lock is still the file
        self.lock.release()
        with suppress(OSError):
            self.folder.rmdir()  # if it is empty

    def _begin(self) -> None:
        note = self.folder / PLAN
        if self.file.exists():  # another command has come to its end meanwhile
            raise UserError(f"--to {self.path!r} exists: remove it, or choose another file")
        if not note.exists():
            with atomic_file(note) as file:
                file.write_text(json.dumps(self.plan) + "\n", encoding="utf-8")
            return
        before: dict[str, Any] = read_json(note, f"{note}")
        changed = [name for name in self.plan if before.get(name) != self.plan[name]]
        if changed:
            differ = ", ".join(changed)
            raise UserError(
                f"{self.folder} has parts of another prediction ({differ} differ): remove it, or choose another --to"
            )

    def has(self, number: int) -> bool:
        """Tell whether a part is there."""
        return self._part(number).is_file()

    def write(self, number: int, names: Sequence[str], found: Iterable[Prediction | UserError]) -> None:
        """Write a part."""
        rows = [_row(name, one, self.schema) for name, one in zip(names, found, strict=True)]
        with atomic_file(self._part(number)) as file:
            pq.write_table(pa.Table.from_pylist(rows, self.schema), file)

    def finish(self, parts: int) -> tuple[int, int]:
        """Put the parts into the file, and remove them; return the number of images and of those without prediction."""
        images = failed = 0
        csv = self.file.suffix == ".csv"
        with atomic_file(self.file) as file:
            writer = pyarrow.csv.CSVWriter(file, self.schema) if csv else pq.ParquetWriter(file, self.schema)
            with writer:
                for number in range(parts):
                    part = pq.read_table(self._part(number), schema=self.schema)
                    writer.write_table(part)
                    images += len(part)
                    failed += len(part) - part["error"].null_count
        shutil.rmtree(self.folder)
        return images, failed

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _schema(labels: int, features: bool) -> Any:
    fields = [("image", pa.string())]
    for number in range(1, labels + 1):
        more = "" if number == 1 else f"_{number}"
        fields += [(f"label{more}", pa.string()), (f"probability{more}", pa.float32())]
    return pa.schema([*fields, ("error", pa.string()), *([("features", pa.list_(pa.float32()))] * features)])


def _row(name: str, found: Prediction | UserError, schema: Any) -> dict[str, Any]:
    if isinstance(found, UserError):
        return {"image": name, "error": one_line(found)}
    values = [value for pair in found.top for value in pair]
    row = dict(zip(schema.names, [name, *values], strict=False))
    return row if found.features is None else {**row, "features": found.features.tolist()}
