"""What a table says of pictures, each value of its own kind; and the manifest beside an export."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from idgen.data.pictures import MANIFEST, Picture, labels_of_row
from idgen.errors import ConfigError, ImageError

PLACES = {"tar", "record", "entry"}  # columns that say where in an export a picture lies
MOST = 1 << 63  # whole numbers beyond are no int64 of a table


def exact_labels(row: Mapping[str, Any]) -> dict[str, str | float]:
    """As `labels_of_row`, but whole numbers stay whole, and yes and no stay themselves."""
    return {
        name: row[name] if isinstance(row[name], int) and -MOST <= row[name] < MOST else value
        for name, value in labels_of_row(row).items()
    }


def described(picture: Picture, row: Mapping[str, Any] | None) -> Picture:
    """The picture with what a row of a table says of it."""
    if row is None:
        return picture
    return replace(
        picture,
        prompt=str(row.get("prompt") or ""),
        reference=str(row.get("reference") or ""),
        labels=exact_labels(row),
    )


def rows_of_table(path: Path, place: str) -> dict[Any, dict[str, Any]]:
    """The rows of a table by where their pictures lie; none where it has no such column, or names one twice.

    Args:
        path: the Parquet file.
        place: the column that says where.

    Raises:
        ImageError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet  # heavy

    try:
        if place not in pyarrow.parquet.read_schema(path).names:
            return {}
        held = {"image", "bytes"}  # pictures, which may be larger than memory
        names = [name for name in pyarrow.parquet.read_schema(path).names if name not in held]
        rows = pyarrow.parquet.read_table(path, columns=names).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ImageError(f"{path} is not a Parquet file that can be read: {error}") from None
    by_place = {row[place]: row for row in rows if row[place] is not None}
    return by_place if len(by_place) == len(rows) else {}


class Beside:
    """The manifest that an export of idgen has beside its one file.

    Args:
        folder: in which it may lie.
        place: its column that says where a picture lies: ``record`` or ``entry``.
        source: the file with the pictures, for messages.

    Raises:
        ImageError: if it cannot be read.
    """

    def __init__(self, folder: Path, place: str, *, source: Path) -> None:
        self.path, self.place, self.source = folder / MANIFEST, place, source
        self.rows = rows_of_table(self.path, place) if self.path.is_file() else {}

    def describe(self, picture: Picture, place: int | str, label: int) -> Picture:
        """The picture that lies there, with its row.

        Args:
            picture: as the file has it.
            place: where it lies.
            label: its class number, as the file has it.

        Raises:
            ConfigError: if the manifest gives it another class number: it is of another set.
        """
        row = self.rows.get(place)
        said = label if row is None else row.get("label", label)
        if said != label:
            raise ConfigError(
                f"{self.path} gives the {self.place} {place} the class number {said}, and {self.source.name} "
                f"gives it {label}: they are of different sets; move the manifest elsewhere to go without it"
            )
        return described(picture, row)
