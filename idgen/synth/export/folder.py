"""A folder of pictures for each person: what `read_pictures`, torchvision's ImageFolder and people read."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.synth.export.base import ALL_KINDS, Person, folder_name

if TYPE_CHECKING:
    import pyarrow


class FolderExporter:
    """``IDENTITY/KEY.png``; sorted by name, folders have the class numbers of labels.json."""

    kinds = ALL_KINDS

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write a file for each picture; see `Exporter`."""
        del columns  # the manifest beside has them
        places = []
        for person in people:
            own = folder / folder_name(person.identity)
            own.mkdir()
            for item in person.items:
                (own / item.name).write_bytes(item.data)
                places.append({"path": f"{own.name}/{item.name}"})
        return places

    def readme(self, datasheet: str, num_pictures: int) -> None:
        """No program reads a README.md here."""
        del datasheet, num_pictures
