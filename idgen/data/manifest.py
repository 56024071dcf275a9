"""The table beside a folder of pictures: who is on each, from which photo and prompt it was made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idgen.data.pictures import MANIFEST
from idgen.storage import replacing


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]], encoder_ids: Sequence[str]) -> None:
    """Write the table that `read_pictures` reads, whole or not at all.

    Args:
        folder: of the pictures.
        rows: one a picture: ``identity``, ``path`` relative to the folder, and what else is known, such as
            ``reference``, ``prompt``, ``seed`` and ``sha256``; what only other rows know is null.
        encoder_ids: encoders that conditioned or trained the pictures: numbers by these are related.

    Raises:
        StorageError: if that is not possible.
    """
    import pyarrow
    import pyarrow.parquet  # heavy

    kept = {"idgen": json.dumps({"encoder_ids": list(encoder_ids)})}
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names}, metadata=kept)
    with replacing(folder / MANIFEST) as file:
        pyarrow.parquet.write_table(table, file)
