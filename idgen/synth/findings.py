"""The last step of a dataset: measure it, write that down beside how it was made, and show it on a page."""

from collections.abc import Sequence
from pathlib import Path

from idgen.encoders.base import FaceEncoder
from idgen.report.write import write_report
from idgen.storage import write_json
from idgen.synth.dataset import ABOUT
from idgen.synth.facts import facts_of
from idgen.synth.findings_report import report_of
from idgen.synth.measuring import MOST_PICTURES, Galleries, find

REPORT = "report"  # folder in that of the dataset


def write_findings(
    folder: Path,
    *,
    encoders: Sequence[FaceEncoder],
    galleries: Galleries | None = None,
    most_pictures: int = MOST_PICTURES,
    seed: int = 0,
) -> Path:
    """Measure a dataset, put that into dataset.json beside what stands there, and into ``report/``.

    Args:
        folder: of the dataset.
        encoders: those that looked at its pictures.
        galleries: name -> encoder id -> (M, D) of unit length, of real people.
        most_pictures: about as many are measured, of people drawn at random.
        seed: of the draw, and of the intervals.

    Returns:
        The page, ``report/report.html``.

    Raises:
        IdgenError: as `idgen.synth.measuring.find` does, and if something cannot be written.
    """
    found = find(folder, encoders=encoders, galleries=galleries, most_pictures=most_pictures, seed=seed)
    page = write_report(report_of(found, seed=seed), folder / REPORT)
    write_json(folder / ABOUT, {**found.dataset.about, **facts_of(found)})
    return page
