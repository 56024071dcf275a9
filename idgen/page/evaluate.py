"""The tab Evaluate without its layout: a folder or a zip of pictures in, the report out."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from idgen.data.material import Material
from idgen.data.pictures import SUFFIXES, Picture, PictureSet
from idgen.encoders.classifiers import sharpness_eye
from idgen.encoders.gallery import Gallery, embed_pictures
from idgen.errors import ConfigError, ImageError
from idgen.faces.pose import pose_from_landmarks
from idgen.metrics.persons import mean_by_person, mean_with_interval
from idgen.opening import Kit
from idgen.page.archives import pack, unpack_pictures
from idgen.page.jobs import Job, followed
from idgen.page.looking import load_image_head
from idgen.provenance import read_provenance
from idgen.report.consistency import Question, consistency_report
from idgen.report.document import Measure, Report, Table
from idgen.report.write import write_report

MAX_SET = 500  # pictures, and photos
JOINT = "__"  # between the person and the file, in the name of a file that was in a folder
ONE_PERSON = "one person"
LAYOUT = (
    "Put the pictures of each person into a folder of their own, named alike in both sets; pictures without "
    "such folders are taken for one person. A folder is sent file by file (25 MB each, 200 MB in all), a zip "
    f"is one file of 25 MB at most. Up to {MAX_SET} pictures of each set are measured."
)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """How far it is: pictures that were looked at, of all."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came of it.

    Attributes:
        report: the numbers.
        page: report.html, one file that opens offline.
        archive: a zip of it, of report.json and of the plots.
    """

    report: Report
    page: Path
    archive: Path


def evaluate(
    pictures: Sequence[str], references: Sequence[str], kit: Kit, folder: Path
) -> Iterator[Looked | Evaluated]:
    """Measure whether pictures keep their people; whoever stops asking stops it at the next picture.

    Args:
        pictures: uploaded files: one zip, or pictures whose names are PERSON__FILE where they have a person.
        references: photos of the same people likewise; none are needed.
        kit: its detector finds the faces, its encoders compare them.
        folder: for what is unpacked and for the report.

    Returns:
        An iterator over how far it is, and at last the report.

    Raises:
        ImageError: if there is no picture, too many, or one cannot be read.
        ConfigError: if nobody can say who is who, or nobody is in both sets.
    """

    def work(job: Job[Looked | Evaluated]) -> Looked | Evaluated:
        material = read_material(pictures, references, folder)
        names = {p.path: p.name for p in (*material.pictures.pictures, *material.references)}
        try:
            galleries = _look(material, kit, job)
        except ImageError as error:
            raise ImageError(_with_names(str(error), names)) from None
        job.check()
        question = Question(subject="the upload", detector=kit.detector.name)
        report = consistency_report(material, galleries, kit.encoders, question)
        faces = faces_of(material, galleries["pictures"])
        first, *others = report.sections
        measured = {**report.measures, **{f"faces/{name}": value for name, value in faces.items()}}
        report = replace(report, measures=measured, sections=(first, _faces_table(faces), *others))
        page = write_report(report, folder / "report")
        return Evaluated(
            report=report, page=page, archive=pack(folder / "report", folder / "idgen-report.zip")
        )

    yield from followed(work, name="evaluation")


def read_material(pictures: Sequence[str], references: Sequence[str], folder: Path) -> Material:
    """Who is compared with whom.

    Raises:
        ImageError: as `evaluate`.
        ConfigError: likewise.
    """
    made = _read(pictures, folder / "pictures", "the pictures")
    photos = _read(references, folder / "references", "the photos") if references else []
    people = {p.identity for p in made}, {p.identity for p in photos}
    if photos and len(people[0]) == len(people[1]) == 1:  # whatever the two folders are called
        photos = [replace(photo, identity=made[0].identity) for photo in photos]
    ordered = tuple(sorted(made, key=lambda p: (p.identity, p.name)))
    names = tuple(sorted(people[0]))
    number = {name: i for i, name in enumerate(names)}
    known = tuple(p for p in sorted(photos, key=lambda p: (p.identity, p.name)) if p.identity in number)
    if photos and not known:
        raise ConfigError(
            f"none of the people of the photos ({', '.join(sorted(people[1])[:3])}) is among those of the "
            f"pictures ({', '.join(names[:3])}); folders must have the same names in both"
        )
    return Material(
        pictures=PictureSet(pictures=ordered, source="the upload", encoder_ids=_named_in(ordered)),
        names=names,
        person=np.array([number[p.identity] for p in ordered]),
        references=known,
        reference_person=np.array([number[p.identity] for p in known], int),
    )


def _read(files: Sequence[str], folder: Path, what: str) -> list[Picture]:
    """The pictures of an upload, with their people."""
    found: list[tuple[tuple[str, ...], Path]] = []
    for path in map(Path, files):
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            if len(files) > 1:
                raise ImageError(f"{what}: give one zip, or pictures; {len(files)} files came together")
            members = unpack_pictures(path, folder, at_most=MAX_SET, name=path.name)
            found += [(member.parts, member.path) for member in members]
        elif path.suffix.lower() in SUFFIXES:
            person, joint, file = path.name.partition(JOINT)
            found.append(((person, file) if joint and person and file else (path.name,), path))
    if not found:
        raise ImageError(f"{what}: there is none yet; add a folder or a zip of them")
    if len(found) > MAX_SET:
        raise ImageError(f"{what}: that is {len(found):,}; at most {MAX_SET} are measured here")
    has_person = [len(parts) > 1 for parts, _ in found]
    if any(has_person) and not all(has_person):
        loose = next(parts[0] for parts, _ in found if len(parts) == 1)
        raise ConfigError(
            f"{what}: {loose} lies beside the folders, and nobody says whom it shows; put it into one of them"
        )
    return [_checked(parts, path) for parts, path in found]


def _checked(parts: tuple[str, ...], path: Path) -> Picture:
    identity = parts[-2] if len(parts) > 1 else ONE_PERSON
    name = "/".join(parts[-2:])
    load_image_head(path, name)
    return Picture(identity=identity, name=name, path=path)


def _named_in(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """Encoders that the first picture of each person says it was conditioned by."""
    first = {picture.identity: picture.path for picture in reversed(pictures)}
    found = set()
    for path in first.values():
        assert path is not None
        try:
            found.add(read_provenance(path).encoder)
        except ImageError:  # says nothing of its making: somebody else's picture
            continue
    return tuple(sorted(name for name in found if name))


def _look(material: Material, kit: Kit, job: Job[Looked | Evaluated]) -> dict[str, Gallery]:
    sets = {"pictures": material.pictures.pictures, "references": material.references}
    done, total = 0, sum(map(len, sets.values()))

    def advance(number: int) -> None:
        nonlocal done
        job.check()
        job.tell(Looked(done=done, total=total))
        done += number

    return {
        name: embed_pictures(shown, kit.detector, kit.encoders, eyes=[sharpness_eye()], advance=advance)
        for name, shown in sets.items()
        if shown
    }


def _with_names(words: str, names: Mapping[Path | None, str]) -> str:
    """The same words with what people called their files in place of where these lie."""
    for path, name in names.items():
        words = words.replace(str(path), name)
    return words


def faces_of(material: Material, seen: Gallery) -> dict[str, Measure]:
    """How large, sharp and turned the faces are: means over people, as `idgen evaluate quality` has them."""
    pose = pose_from_landmarks(seen.landmarks)
    values = {
        "face, px": seen.face_px.astype(float),
        "sharpness": seen.seen[sharpness_eye().id][:, 0].astype(float),
        "turn aside, degrees": np.abs(pose[:, 0]),
        "turn up or down, degrees": np.abs(pose[:, 1]),
    }
    return {
        name: Measure(value=mean, interval=interval)
        for name, each in values.items()
        for mean, interval in [mean_with_interval(mean_by_person(each, material.person, len(material.names)))]
    }


def _faces_table(faces: Mapping[str, Measure]) -> Table:
    return Table(
        title="The faces",
        columns=("measure", "pictures"),
        rows=tuple(faces.items()),
        note="Means over people. Sharpness: variance of the Laplacian at 112 pixels; turns by landmarks.",
    )
