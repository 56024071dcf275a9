"""A contact sheet: the reference beside the pictures, and how alike they are under each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, FRAME = "#ffffff", "#1b1f24", "#6a737d", "#d0d7de"
BAD = "#b42318"  # on white 6.6 : 1, above the 4.5 : 1 that WCAG 2 asks of text
MARGIN, GAP = 24, 16  # px
LINE = 1.35  # height of a line of text over the font's size


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture with the lines of text below it.

    Attributes:
        image: any size; shown in a square, its shape kept.
        title: one line, in ink.
        lines: further lines, paler.
        is_bad: whether the first of the further lines is a warning.
    """

    image: Image.Image
    title: str = ""
    lines: tuple[str, ...] = ()
    is_bad: bool = False


def contact_sheet(
    tiles: Sequence[Tile],
    *,
    reference: Tile | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    tile_px: int = 224,
    columns: int | None = None,
) -> Image.Image:
    """Pictures in rows and columns, the reference in a column of its own at the left.

    Args:
        tiles: the pictures, in order.
        reference: who they should show, if there is a picture of that.
        title: what was asked for, at the top; long text is cut.
        notes: small print at the bottom, a line each.
        tile_px: side of the square that a picture is fitted into; small pictures are enlarged.
        columns: pictures in a row; if not given, up to four in one row, more in a square block.

    Returns:
        An RGB picture.

    Raises:
        ValueError: without any picture.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or (len(tiles) if len(tiles) <= 4 else math.ceil(math.sqrt(len(tiles))))
    columns = min(columns, len(tiles))
    everyone = [*tiles, reference] if reference else list(tiles)
    page = _Page(tile_px, num_lines=max(len(t.lines) for t in everyone))
    return page.draw(tiles, reference, title, notes, columns)


class _Page:
    """Sizes that follow from the side of a tile, and the drawing."""

    def __init__(self, tile_px: int, num_lines: int) -> None:
        self.tile_px = tile_px
        self.size = max(12, tile_px // 15)
        self.font = ImageFont.load_default(self.size)
        head_px = round(self.size * 1.35)
        self.head = ImageFont.load_default(head_px)
        self.head_px = round(head_px * LINE) + GAP // 2
        self.line_px = round(self.size * LINE)
        self.cell_px = tile_px + 6 + self.line_px * (1 + num_lines) + GAP

    def draw(
        self,
        tiles: Sequence[Tile],
        reference: Tile | None,
        title: str,
        notes: Sequence[str],
        columns: int,
    ) -> Image.Image:
        left = MARGIN + (self.tile_px + 2 * GAP if reference else 0)
        top = MARGIN + (self.head_px if title else 0)
        rows = math.ceil(len(tiles) / columns)
        width = left + columns * (self.tile_px + GAP) - GAP + MARGIN
        bottom = top + rows * self.cell_px
        sheet = Image.new("RGB", (width, bottom + len(notes) * self.line_px + MARGIN - GAP // 2), PAPER)
        pen = ImageDraw.Draw(sheet)
        if title:
            pen.text((MARGIN, MARGIN), self._cut(title, self.head, width - 2 * MARGIN), INK, font=self.head)
        if reference:
            self._tile(sheet, reference, MARGIN, top)
            rule = MARGIN + self.tile_px + GAP
            pen.line([(rule, top), (rule, bottom - GAP)], FRAME, width=1)
        for i, tile in enumerate(tiles):
            self._tile(
                sheet, tile, left + i % columns * (self.tile_px + GAP), top + i // columns * self.cell_px
            )
        for i, note in enumerate(notes):
            at = (MARGIN, bottom + i * self.line_px)
            pen.text(at, self._cut(note, self.font, width - 2 * MARGIN), FAINT, font=self.font)
        return sheet

    def _tile(self, sheet: Image.Image, tile: Tile, x: int, y: int) -> None:
        picture = _fit(tile.image, self.tile_px)
        top = y + self.tile_px - picture.height  # stands on its text, and begins where that begins
        sheet.paste(picture, (x, top))
        pen = ImageDraw.Draw(sheet)
        pen.rectangle([x, top, x + picture.width - 1, top + picture.height - 1], outline=FRAME)
        y += self.tile_px + 6
        pen.text((x, y), self._cut(tile.title, self.font, self.tile_px), INK, font=self.font)
        for i, line in enumerate(tile.lines):
            colour = BAD if tile.is_bad and i == 0 else FAINT
            at = (x, y + (i + 1) * self.line_px)
            pen.text(at, self._cut(line, self.font, self.tile_px), colour, font=self.font)

    @staticmethod
    def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
        """``text`` on one line, its end left out where it would be too wide."""
        text = " ".join(text.split())
        if font.getlength(text) <= width_px:
            return text
        while text and font.getlength(text + "…") > width_px:
            text = text[:-1]
        return text.rstrip() + "…"


def _fit(image: Image.Image, side_px: int) -> Image.Image:
    """The picture with its longer side at ``side_px``."""
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
