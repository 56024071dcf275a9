"""The people of a dataset: as many as its plan speaks of, far from each other and from everybody real.

What can be refused is refused by `open_source`, before a folder is begun or a gallery is looked at. A dataset
that came no further than its people gives way to another command: `open_dataset` and `clear_dataset`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idgen.blocklist import Blocklist
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import StorageError
from idgen.opening import Kit
from idgen.synth.dataset import ABOUT
from idgen.synth.folder import DatasetFolder
from idgen.synth.galleries import forget_galleries
from idgen.synth.identities import STRICT, check_memory, refused_people, separated_people
from idgen.synth.plan import Plan
from idgen.synth.shards import FOLDER
from idgen.synth.sources import Source, load_source
from idgen.synth.work import PEOPLE, PLAN

# settings of a command that decide who is found; what lies in a folder of other ones is of no use
DECISIVE = ("source", "max_cosine", "seed", "galleries", "galleries_aligned", "encoder", "judge", "detector")


def open_source(
    spec: str,
    plan: Plan,
    encoder: FaceEncoder,
    *,
    max_cosine: float | None = None,
    has_galleries: bool = False,
    allow_unchecked: bool = False,
) -> Source:
    """Open a source, after a look at everything else that `find_people` would refuse.

    Args:
        spec: as in `load_source`.
        plan: which rows of the people it speaks of.
        encoder: that conditions.
        max_cosine: as in `find_people`.
        has_galleries: whether there are real people to keep away from.
        allow_unchecked: as in `find_people`.

    Raises:
        IdgenError: as `load_source` does; for a threshold that is not known, people who refused and cannot
            be compared, and more people than there is memory for.
    """
    people = load_source(spec, encoder=encoder.id, dim=encoder.dim)
    check_memory(_num_people(plan), encoder.dim)
    if max_cosine is None or has_galleries:
        threshold_at(encoder, STRICT)
    if refused := _refused(encoder, allow_unchecked):
        refused_people(refused, encoder)
    return people


def find_people(
    plan: Plan,
    kit: Kit,
    dataset: Path,
    *,
    source: str | Source = "pca",
    max_cosine: float | None = None,
    seed: int = 0,
    galleries: Sequence[np.ndarray] = (),
    allow_unchecked: bool = False,
) -> np.ndarray:
    """Find whoever is missing in the folder of a dataset.

    Args:
        plan: which rows of the people it speaks of.
        kit: whose encoder conditions.
        dataset: the folder.
        source: where they are drawn from, as in `load_source`, or what `open_source` gave.
        max_cosine: between two of them; if not given, what the encoder's card says for a false match rate of
            1e-4, as for the galleries.
        seed: of the candidates.
        galleries: (M, D) each, real people that they keep away from.
        allow_unchecked: pass over people who refused and have no vector by this encoder.

    Returns:
        (P, D) float32 of unit length.

    Raises:
        IdgenError: as `separated_people` and `load_source` do.
    """
    from tqdm import tqdm

    encoder, num = kit.encoder, _num_people(plan)
    people = load_source(source, encoder=encoder.id, dim=encoder.dim) if isinstance(source, str) else source
    with tqdm(total=num, desc="finding people", unit="person", disable=None, leave=False) as bar:
        return separated_people(
            people,
            num,
            max_cosine=threshold_at(encoder, STRICT) if max_cosine is None else max_cosine,
            seed=seed,
            gallery=galleries,
            blocklist=_refused(encoder, allow_unchecked),
            encoder=encoder,
            out=dataset / PEOPLE,
            advance=bar.update,
        )


def _num_people(plan: Plan) -> int:
    return int(plan.numbers("person").max()) + 1


def _refused(encoder: FaceEncoder, allow_unchecked: bool) -> Blocklist:
    """The user's list, without those who cannot be compared where that is allowed."""
    refused = Blocklist.load()
    if allow_unchecked:
        known = {
            name: who
            for name, who in refused.people.items()
            if encoder.id in {feature.encoder for feature in who.features}
        }
        refused = Blocklist(known, refused.path)
    return refused


# --- a dataset that came no further than its people -------------------------------------------------------


def open_dataset(path: Path, command: Mapping[str, Any], num_shards: int) -> DatasetFolder:
    """The folder of a dataset; one of another command that has not found all its people is taken over.

    Args:
        path: as for `DatasetFolder`.
        command: likewise.
        num_shards: likewise.

    Raises:
        RunFolderError: as `DatasetFolder` does.
    """
    before = _command_without_people(path)
    if before is None:
        return DatasetFolder(path, command, num_shards)
    dataset = DatasetFolder(path, before, num_shards)
    dataset.command = json.loads(json.dumps(command))
    if dataset.command != before:
        dataset.about = {}  # `DatasetFolder.start` writes it anew
    return dataset


def clear_dataset(dataset: DatasetFolder) -> None:
    """Remove what is of no use of a dataset that was taken over; inside `DatasetFolder.locked`.

    People who were found stay where the commands differ in what does not decide who is found.

    Raises:
        RunFolderError: if the other command has found all its people meanwhile.
        StorageError: if that is not possible.
    """
    before = _command_without_people(dataset.path)
    if before is None:
        DatasetFolder(dataset.path, dataset.command, dataset.num_shards)  # refuses what came meanwhile
    elif any(before.get(name) != dataset.command.get(name) for name in DECISIVE):
        forget_galleries(dataset.path)
        try:
            if (dataset.path / PEOPLE).exists():
                shutil.rmtree(dataset.path / PEOPLE)
        except OSError as error:
            raise StorageError(f"cannot remove {dataset.path / PEOPLE}: {error.strerror or error}") from None


def _command_without_people(path: Path) -> dict[str, Any] | None:
    """The command of a dataset in which not even all the people are found; None for any other folder."""
    if (path / PLAN).exists() or (path / FOLDER).exists():  # the plan is written once there are the people
        return None
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        return dict(about["command"]) if not about["finished"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `DatasetFolder` says what is wrong
