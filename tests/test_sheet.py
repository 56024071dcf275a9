import numpy as np
import pytest
from PIL import Image
from skimage import data

from idgen.report.sheet import Tile, contact_sheet


def solid(colour: str, width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def share_of(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(sheet) == colour).all(axis=-1).mean())


def test_every_picture_and_the_reference_are_shown_once() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    tiles = [Tile(image=Image.new("RGB", (64, 64), c)) for c in colours[:4]]
    sheet = contact_sheet(tiles, reference=Tile(image=Image.new("RGB", (112, 112), colours[4])), tile_px=100)
    area = sheet.width * sheet.height
    for colour in colours:
        assert share_of(sheet, colour) * area == pytest.approx(98 * 98, abs=1)  # 100 x 100 within its frame


def test_the_reference_is_left_of_every_picture() -> None:
    sheet = contact_sheet([Tile(image=solid("red"))] * 7, reference=Tile(image=solid("lime")))
    pixels = np.asarray(sheet)
    lime = np.nonzero((pixels == (0, 255, 0)).all(axis=-1))[1]
    red = np.nonzero((pixels == (255, 0, 0)).all(axis=-1))[1]
    assert lime.max() < red.min()


def test_shapes_are_kept_and_small_pictures_enlarged() -> None:
    sheet = contact_sheet([Tile(image=solid("red", 32, 64))], tile_px=200)
    rows, columns = np.nonzero((np.asarray(sheet) == (255, 0, 0)).all(axis=-1))
    assert np.ptp(rows) + 1 == 198
    assert np.ptp(columns) + 1 == 98


def test_text_changes_the_sheet_and_a_missing_face_is_red() -> None:
    def with_line(line: str, is_bad: bool = False) -> Image.Image:
        return contact_sheet([Tile(image=solid("white"), title="0000.png", lines=(line,), is_bad=is_bad)])

    assert with_line("similarity 0.61").tobytes() != with_line("similarity 0.62").tobytes()
    reds = [int(((p := np.asarray(s).astype(int))[..., 0] - p[..., 1] > 80).sum()) for s in
            (with_line("no face", is_bad=True), with_line("no face"))]  # fmt: skip
    assert reds[0] > 20
    assert reds[1] == 0


def test_long_text_is_cut_at_the_margin() -> None:
    sheet = contact_sheet(
        [Tile(image=solid("red"), title="word " * 90)], title="word " * 90, notes=["x " * 300]
    )
    right = np.asarray(sheet)[:, -24:]
    assert (right == 255).all()


def test_many_pictures_make_rows() -> None:
    one, many = (contact_sheet([Tile(image=solid("red"))] * n) for n in (1, 30))
    assert many.width < 7 * one.width
    assert many.height > 4 * (one.height - 48)


def test_a_photo_survives_being_shown() -> None:
    astronaut = Image.fromarray(data.astronaut()).crop((170, 50, 298, 178))
    sheet = contact_sheet([Tile(image=astronaut)], tile_px=128)
    shown = np.asarray(sheet)[25:151, 25:151].astype(int)
    assert np.abs(shown - np.asarray(astronaut)[1:127, 1:127]).max() == 0


def test_no_pictures_no_sheet() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
