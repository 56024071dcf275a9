"""What a run of portraits shows in the end: the sheet with similarities, and the lines for the terminal."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from idgen.encoders.base import FaceEncoder
from idgen.pixels import to_pil
from idgen.reference import Reference
from idgen.report.sheet import Tile, contact_sheet
from idgen.runs import PictureRun
from idgen.storage import replacing

SHEET_LIMIT, SHEET_PX = 400, 224  # pictures on the contact sheet, and the side of each
SAYINGS = ("similarity", "second eye")  # by the encoder that conditioned, by the one that only measured


def write_sheet(
    run: PictureRun,
    reference: Reference,
    encoders: Sequence[FaceEncoder],
    prompt: str,
    notes: Sequence[str] = (),
) -> None:
    """``sheet.png``: the reference beside the pictures, similarity by each encoder under each."""
    tiles = []
    for index in range(min(run.count, SHEET_LIMIT)):
        with Image.open(run.path(index)) as image:
            image.thumbnail((SHEET_PX, SHEET_PX))
            lines = describe_likeness(encoders, run.pictures[index])
            tiles.append(Tile(image=image.convert("RGB"), title=run.path(index).name, **lines))
    who = None if reference.crop is None else Tile(image=to_pil(reference.crop), title="reference")
    legend = [f"similarity: cosine with the reference by {encoders[0].id}, which conditioned the pictures"]
    legend += [f"second eye: cosine by {judge.id}, which only measured" for judge in encoders[1:]]
    if run.count > SHEET_LIMIT:
        legend.append(f"the first {SHEET_LIMIT} of {run.count} pictures")
    sheet = contact_sheet(tiles, reference=who, title=prompt, notes=[*notes, *legend], tile_px=SHEET_PX)
    with replacing(run.folder / "sheet.png") as file:
        sheet.save(file, "PNG")


def describe_likeness(encoders: Sequence[FaceEncoder], picture: dict[str, Any]) -> dict[str, Any]:
    """The lines under a picture."""
    if picture["is_blocked"]:
        return {"lines": ("blocked: safety checker",), "is_bad": True}
    if not picture["face_found"]:
        return {"lines": ("no face found",), "is_bad": True}
    values = [picture["similarity"][encoder.id] for encoder in encoders]
    return {"lines": tuple(f"{name} {value:.2f}" for name, value in zip(SAYINGS, values, strict=False))}


def describe_edits(edits: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each edit: how alike the edited and the unedited person are."""
    return [
        f"{effect['edit']}: similarity to the unedited person "
        + ", ".join(f"{value:.2f} by {name}" for name, value in effect["similarity"].items())
        for effect in edits
    ]


def summary(run: PictureRun, encoders: Sequence[FaceEncoder]) -> str:
    """Where the pictures are and how alike, for people."""
    pictures = [run.pictures[i] for i in range(run.count)]
    found = sum(picture["face_found"] for picture in pictures)
    means = {e.id: sum(p["similarity"][e.id] for p in pictures) / run.count for e in encoders}
    alike = ", ".join(f"{mean:.2f} by {name}" for name, mean in means.items())
    return (
        f"{run.count} picture{'s' if run.count > 1 else ''} in {run.folder}, side by side in its sheet.png\n"
        f"face found in {found} of {run.count}; mean similarity to the reference {alike}"
    )
