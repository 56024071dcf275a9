"""What the tabs Dataset and Evaluate show, as HTML: every word is escaped, no file is linked."""

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from idgen.page.dataset import Growth, MadeSet, in_short
from idgen.page.evaluate import Evaluated, Looked
from idgen.page.markup import bar_html, sentence
from idgen.report.document import Measure, Table
from idgen.report.format import interval, number


def growth_html(growth: Growth) -> str:
    """A bar, the yield until now, the time that is left, and what was kept."""
    words = escape(growth.doing)
    if growth.seconds_left is not None:
        words += f", about {time_words(growth.seconds_left)} left, and longer by what is drawn again"
    counted = f"<p>{escape(yield_words(growth))}</p>" if growth.drawn else ""
    bar = bar_html(growth.kept, growth.planned, "Pictures that are kept")
    return f'<div class="making"><p>{words}</p>{bar}{counted}{thumbnails_html(growth)}</div>'


def yield_words(growth: Growth) -> str:
    """How many were drawn and kept, and why others were not."""
    words = f"{growth.kept} of {growth.planned} planned pictures are kept; {growth.drawn} were drawn"
    return sentence(f"{words}. Not kept: {in_short(growth.rejected)}" if growth.rejected else words)


def time_words(seconds: float) -> str:
    """Seconds, or minutes where it is more than two."""
    return f"{seconds / 60:.0f} minutes" if seconds > 120 else f"{max(1, round(seconds))} s"


def thumbnails_html(growth: Growth) -> str:
    """What was kept, in the order of the verdicts."""
    images = "".join(
        f'<img src="data:image/webp;base64,{base64.b64encode(data).decode()}" alt="kept picture {i}">'
        for i, data in enumerate(growth.thumbnails, 1)
    )
    return f'<div class="kept">{images}</div>' if images else ""


def made_set_html(made: MadeSet) -> str:
    """What the dataset is like, in a few sentences."""
    people = len({path.parent.name for path, _ in made.pictures})
    said = [f"{len(made.pictures)} pictures of {people} new people", yield_words(made.growth)]
    for name, seen in made.about["similarity"].items():
        within, between = (seen[key]["mean"] for key in ("within_people", "between_people"))
        if within is not None and between is not None:
            said.append(
                f"By {name.partition('@')[0]} pictures of one person are alike by {within:.2f} in the mean, "
                f"those of two people by {between:.2f}"
            )
    said = "".join(f"<p>{escape(sentence(words))}</p>" for words in said)
    note = (
        "The zip holds a folder for each person, manifest.parquet, a datasheet, checksums and the report; "
        "nobody in it exists. The tab Evaluate reads it as it is. Under each picture stands how alike it is"
        " to the planned person, by the encoder that conditioned it."
    )
    return f'<div class="verdict" role="status">{said}<p class="note">{escape(note)}</p></div>'


def set_numbers(made: MadeSet) -> dict[str, Any]:
    """What was found, as plain data."""
    wanted = ("seed", "yield", "similarity", "separation", "diversity", "leakage", "quotas")
    return {name: made.about[name] for name in wanted if name in made.about}


def looked_html(looked: Looked) -> str:
    """A bar over the pictures that were looked at."""
    bar = bar_html(looked.done, looked.total, "Pictures that were looked at")
    return f'<div class="making"><p>Looking at picture {looked.done + 1} of {looked.total}</p>{bar}</div>'


def report_html(made: Evaluated) -> str:
    """Warnings and tables of a report; its plots are in the file."""
    warned = "".join(f'<p class="warned">{escape(text)}</p>' for text in made.report.warnings)
    tables = "".join(_table_html(part) for part in made.report.sections if isinstance(part, Table))
    subject = f"<p>{escape(sentence(made.report.subject))}</p>"
    return f'<div class="verdict report" role="status">{subject}{warned}{tables}</div>'


def _table_html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{note}"
    )


def _cell_html(value: str | int | float | Measure) -> str:
    if isinstance(value, Measure):
        title = f' title="{escape(value.note)}"' if value.note else ""
        ends = f" <small>{escape(interval(value))}</small>" if value.interval else ""
        return f'<td class="number"{title}>{escape(number(value.value))}{ends}</td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{escape(number(value))}</td>'


def report_numbers(made: Evaluated) -> dict[str, Any]:
    """The measures, as plain data; null where one is not defined."""
    return {name: _plain(measure) for name, measure in made.report.measures.items()}


def _plain(measure: Measure) -> Mapping[str, Any]:
    ends = [round(end, 4) for end in measure.interval] if measure.interval else None
    defined = measure.value == measure.value and abs(measure.value) != float("inf")
    return {"value": round(measure.value, 4) if defined else None, "interval": ends}
