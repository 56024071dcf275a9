"""What the page shows besides gradio's own parts, as HTML: every word is escaped, no file is linked."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image, ImageDraw

from idgen.encoders.base import FaceEncoder
from idgen.page.looking import SAME_PERSON, Sight, known_threshold
from idgen.page.making import Made, Progress
from idgen.report.portraits import describe_likeness

PHOTO_PX = 320
FRAME, OTHERS, POINTS = "#ffffff", "#9aa4ae", "#0a58a6"
ROLES = ("which conditioned them", "a second eye that only looks")


def _data(image: Image.Image) -> str:
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"


# --- photos -----------------------------------------------------------------------------------------------


def photos_html(sights: Sequence[Sight]) -> str:
    """The photos with the face that was found drawn in, and under each what is doubtful."""
    if not sights:
        return ""
    return f'<div class="photos">{"".join(map(_photo_html, sights))}</div>'


def _photo_html(sight: Sight) -> str:
    picture = ""
    if sight.image is not None:
        seen = "the face that was found is framed" if sight.chosen is not None else "no face is chosen"
        picture = f'<img src="{_data(framed(sight))}" alt="{escape(sight.name)}: {seen}">'
    words = [str(sight.problem)] if sight.problem is not None else list(sight.doubts)
    kind = "problem" if sight.problem is not None or not sight.kept else "doubt"
    said = "".join(f'<li class="{kind}">{escape(sentence(text))}</li>' for text in words)
    said = said or '<li class="fine">Good to use.</li>'
    title = escape(sentence(sight.name).rstrip("."))
    return f"<figure>{picture}<figcaption><b>{title}</b><ul>{said}</ul></figcaption></figure>"


def framed(sight: Sight) -> Image.Image:
    """The photo, small, with a frame around the chosen face and its five points; other faces in grey.

    Raises:
        ValueError: if the photo could not be opened.
    """
    if sight.image is None:
        raise ValueError(f"{sight.name} was not opened")
    small = sight.image.copy()
    small.thumbnail((PHOTO_PX, PHOTO_PX))
    scale = small.width / sight.image.width
    pen = ImageDraw.Draw(small)
    for face in sight.faces:
        moved = face.moved(scale=scale)
        is_meant = face is sight.chosen
        left, top, right, bottom = (float(v) for v in moved.box)
        pen.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline="#000000", width=1)
        pen.rectangle([left, top, right, bottom], outline=FRAME if is_meant else OTHERS, width=2)
        for x, y in moved.landmarks.tolist() if is_meant else ():
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=POINTS, outline=FRAME)
    return small


def sentence(text: str) -> str:
    """The same words with a capital letter and a full stop."""
    text = text.strip()
    ending = "" if text.endswith((".", "?", "!")) else "."
    return f"{text[:1].upper()}{text[1:]}{ending}"


# --- making -----------------------------------------------------------------------------------------------


def progress_html(progress: Progress) -> str:
    """A bar, the time that is left, and what is to be seen by now."""
    words = f"Step {progress.step} of {progress.steps}" if progress.step else "Starting"
    if progress.seconds_left is not None and progress.step < progress.steps:
        words += f", about {max(1, round(progress.seconds_left))} s left"
    elif progress.step == progress.steps:
        words = "Looking at the pictures"
    bar = bar_html(progress.step, progress.steps, "Making pictures")
    drawn = "".join(
        f'<img src="data:image/webp;base64,{base64.b64encode(data).decode()}" alt="picture {i}, unfinished">'
        for i, data in enumerate(progress.previews, 1)
    )
    previews = f'<div class="previews">{drawn}</div>' if drawn else ""
    return f'<div class="making"><p>{words}</p>{bar}{previews}</div>'


def bar_html(done: int, total: int, label: str) -> str:
    """A bar, as far as it is done."""
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" '
        f'aria-valuemax="{total}" aria-valuenow="{done}">'
        f'<div style="width: {done / max(1, total):.1%}"></div></div>'
    )


def caption(made: Made, encoders: Sequence[FaceEncoder]) -> str:
    """Who it is, where that must be said, and how alike, in the words of the contact sheet."""
    similarity = made.likeness.similarity
    known = [encoder for encoder in encoders if encoder.id in similarity]
    ids = {encoder.id for encoder in known}
    seen = {
        "face_found": made.likeness.face_found,
        "is_blocked": made.is_blocked,
        "similarity": similarity,
    }
    words = [made.row.who] if made.row.who else []
    words += describe_likeness(known, seen)["lines"]
    if made.likeness.face_found and not made.is_blocked:
        words += [f"to {name} {value:.2f}" for name, value in similarity.items() if name not in ids]
    return " · ".join(words)


def verdict_html(
    made: Sequence[Made], encoders: Sequence[FaceEncoder], *, whom: str = "this person", first: str = ""
) -> str:
    """How many pictures each encoder takes for the person, and what the numbers mean.

    Args:
        made: the pictures.
        encoders: the one that conditions, then the one that only measures.
        whom: what the person is called.
        first: a sentence to begin with.
    """
    said, begins = [], []
    for encoder, role in zip(encoders, ROLES, strict=False):
        limit = known_threshold(encoder)
        if limit is not None and all(encoder.id in m.row.eyes for m in made):
            likeness = [m.likeness for m in made]
            passed = sum(seen.face_found and seen.similarity[encoder.id] >= limit for seen in likeness)
            said.append(f"<b>{escape(encoder.name)}</b>, {role}, takes {passed} of {len(made)} for {whom}")
            begins.append(f"at {limit:.2f} for {encoder.name}")
    faceless = sum(not m.likeness.face_found for m in made)
    if faceless:
        said.append(f"no face was found in {faceless} of {len(made)}")
    note = "Similarity is 1 for the same picture of a face and about 0 for strangers."
    if begins:
        rate = f"1 in {round(1 / float(SAME_PERSON)):,}"
        note += (
            f" “The same person” begins {' and '.join(begins)}: about {rate} pairs of strangers passes that."
        )
    head = f"<p>{sentence('; '.join(said))}</p>" if said else ""
    head = f"<p>{escape(first)}</p>{head}" if first else head
    return f'<div class="verdict" role="status">{head}<p class="note">{escape(note)}</p></div>'


def numbers(made: Sequence[Made]) -> list[dict[str, Any]]:
    """What was measured, as plain data."""
    return [
        {
            "file": m.path.name,
            "seed": m.row.seed,
            "prompt": m.row.prompt,
            "face_found": m.likeness.face_found,
            "is_blocked": m.is_blocked,
            "similarity": rounded(m.likeness.similarity),
        }
        for m in made
    ]


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """To four digits."""
    return {name: round(value, 4) for name, value in values.items()}


def message_html(words: str) -> str:
    """A line in place of pictures."""
    return f'<p class="note" role="status">{escape(sentence(words))}</p>'
