"""A report as one HTML file that opens offline: no script, nothing fetched, every word escaped."""

import base64
import re
from html import escape

from idgen.report.document import Figure, Measure, Pairs, PicturePair, Report, Table
from idgen.report.format import interval, is_number, number

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # fetches nothing, ever
BADGE = "(related)"  # ends the name of an encoder that must not judge alone
# Text stands out from its ground by 4.5:1 at least, light and dark: tests/test_report.py computes it.
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de;
  --band: #f6f8fa; --accent: #0a58a6; --warn: #fff4e0; --warn-ink: #6b3d00; --warn-line: #d98a00 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ec; --faint: #9aa4ae;
  --line: #353b43; --band: #1c2127; --accent: #79b8ff; --warn: #33270f; --warn-ink: #ffd591;
  --warn-line: #b97900 } figure img { background: #ffffff; border-radius: 4px } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0.5rem 0 0.25rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line) }
p { margin: 0.4rem 0 } a { color: var(--accent) }
.subject, .note, figcaption, summary { color: var(--faint); font-size: 0.92rem }
.warning { background: var(--warn); color: var(--warn-ink); border-left: 4px solid var(--warn-line);
  padding: 0.6rem 0.9rem; margin: 0.8rem 0; border-radius: 0 4px 4px 0 }
nav ul { columns: 16rem; padding-left: 1.1rem; margin: 0.6rem 0 }
.scroll { overflow-x: auto; margin: 0.5rem 0 }
table { border-collapse: collapse; min-width: 100%; font-size: 0.92rem; overflow-wrap: normal }
th, td { padding: 0.34rem 0.7rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { background: var(--band); font-weight: 600 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td .interval { color: var(--faint); font-size: 0.86em; display: block }
.badge { border: 1px solid var(--warn-line); color: var(--warn-ink); background: var(--warn);
  border-radius: 1rem; padding: 0 0.45rem; font-size: 0.8em; white-space: nowrap }
figure { margin: 0.6rem 0 } figure img { width: 100%; max-width: 48rem; height: auto; display: block }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
.pair { margin: 0 } .pair img { width: 49%; display: inline-block; border-radius: 3px }
pre { white-space: pre-wrap; font-size: 0.85rem; background: var(--band); padding: 0.7rem }
footer { margin-top: 3rem; color: var(--faint); font-size: 0.85rem; border-top: 1px solid var(--line) }
@media print { body { max-width: none } nav { display: none } h2 { break-after: avoid }
  figure, table, .pair { break-inside: avoid } }
"""


def render_html(report: Report, *, version: str) -> str:
    """The whole page."""
    titles = [section.title for section in report.sections]
    warnings = "\n".join(f'<p class="warning" role="note">{escape(text)}</p>' for text in report.warnings)
    contents = "\n".join(f'<li><a href="#s{i}">{_words(title)}</a></li>' for i, title in enumerate(titles))
    sections = "\n".join(_section(i, section) for i, section in enumerate(report.sections))
    settings = "\n".join(f"{name}: {value}" for name, value in report.settings.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
<p class="subject">{escape(report.subject)}</p>
{warnings}
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
</header>
<main>
{sections}
</main>
<footer>
<details><summary>Settings that decide these numbers</summary><pre>{escape(settings)}</pre></details>
<p>Numbers in brackets are 95 % intervals. Made by idgen {escape(version)},
<code>{escape(report.command)}</code>; every number stands in report.json as well.</p>
</footer>
</body>
</html>
"""


def _words(text: str) -> str:
    """Escaped text; the mark of a related encoder as a badge."""
    return escape(text).replace(BADGE, '<span class="badge">related</span>')


def _section(index: int, section: Table | Figure | Pairs) -> str:
    body = {Table: _table, Figure: _figure, Pairs: _pairs}[type(section)](section)  # pyright: ignore[reportArgumentType]
    note = f'<p class="note">{_words(section.note)}</p>' if section.note else ""
    return f'<section>\n<h2 id="s{index}">{_words(section.title)}</h2>\n{body}\n{note}\n</section>'


def _table(table: Table) -> str:
    right = [any(is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]
    kinds = [' class="number"' if at_right else "" for at_right in right]
    head = "".join(
        f'<th scope="col"{kind}>{_words(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(v)}</td>" for v, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in table.rows
    )
    body = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">{body}</div>'


def _cell(value: str | int | float | Measure) -> str:
    if isinstance(value, Measure):
        ends = f'<span class="interval">{escape(interval(value))}</span>' if value.interval else ""
        title = f' title="{escape(value.note)}"' if value.note else ""
        return f"<span{title}>{escape(number(value.value))}</span>{ends}"
    return _breakable(_words(value)) if isinstance(value, str) else escape(number(value))


def _breakable(words: str) -> str:
    """Words in which a name such as ``judge/threshold_at`` may go on in the next line, on a telephone."""
    return re.sub(r"(?<=\w)([/_-])(?=\w)", r"\1<wbr>", words)


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _figure(figure: Figure) -> str:
    return f'<figure><img src="{_data(figure.png)}" alt="{escape(figure.alt)}"></figure>'


def _pairs(pairs: Pairs) -> str:
    return f'<div class="pairs">\n{"".join(_pair(pair) for pair in pairs.pairs)}\n</div>'


def _pair(pair: PicturePair) -> str:
    left, right = (f'<img src="{_data(png)}" alt="{side}">' for png, side in
                   ((pair.left_png, "left picture"), (pair.right_png, "right picture")))  # fmt: skip
    return f'<figure class="pair">{left} {right}<figcaption>{escape(pair.caption)}</figcaption></figure>\n'
