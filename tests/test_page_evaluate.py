"""The tab Evaluate: zips of strangers, who is who in an upload, and the numbers of the command."""

import io
import stat
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from generating import astronaut
from paging import Photos, Served
from PIL import Image

from idgen.cli import main as idgen
from idgen.errors import ConfigError, ImageError, StorageError
from idgen.page import archives
from idgen.page import evaluate as page_evaluate
from idgen.page.archives import MAX_MEMBERS, pack, unpack_pictures
from idgen.page.callbacks import Callbacks
from idgen.page.evaluate import MAX_SET, Evaluated, Looked, evaluate, read_material
from idgen.page.keeping import Keeping
from idgen.page.making import Workshop
from idgen.page.showing import looked_html, report_html, report_numbers
from idgen.report.write import read_report


def picture(*, mirrored: bool = False, size: int = 160) -> bytes:
    """The astronaut, or a mirror image of her."""
    image = astronaut().crop((100, 0, 360, 260)).resize((size, size))
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def zipped(folder: Path, members: Mapping[str, bytes], **settings: Any) -> Path:
    """A zip of these members."""
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, photos: Photos) -> Path:
    """Two people with two pictures each, one of them without a face."""
    folder = tmp_path_factory.mktemp("people")
    files = {"ann/0.png": picture(), "ann/1.png": picture(mirrored=True), "bob/0.png": picture(size=200),
             "bob/1.png": photos.nobody.read_bytes()}  # fmt: skip
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- zips -------------------------------------------------------------------------------------------------


def test_pictures_come_out_under_names_of_our_own(tmp_path: Path) -> None:
    members = {"set/ann/0.PNG": b"1", "set/ann/__MACOSX/x.png": b"2", "set/.hidden/0.png": b"3",
               "set/ann/notes.txt": b"4", "set/bob/a b.jpg": b"5", "empty/": b""}  # fmt: skip
    found = unpack_pictures(zipped(tmp_path, members), tmp_path / "out", at_most=9, name="it")
    assert [(one.parts, one.path.name, one.path.read_bytes()) for one in found] == [
        (("set", "ann", "0.PNG"), "00000.png", b"1"), (("set", "bob", "a b.jpg"), "00001.jpg", b"5"),
    ]  # fmt: skip
    again = pack(tmp_path / "out", tmp_path / "again.zip")
    with zipfile.ZipFile(again) as archive:
        assert archive.namelist() == ["00000.png", "00001.jpg"]


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "a\\..\\evil.png", "C:/evil.png", "../notes.txt"],
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path, {"ann/0.png": b"1", name: b"2"})
    with pytest.raises(ImageError, match="it holds a file whose name leads out of it; nothing"):
        unpack_pictures(archive, tmp_path / "out", at_most=9, name="it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


def test_links_and_locks_and_rare_methods_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("ann/0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ImageError, match="holds a link to another file"):
        unpack_pictures(tmp_path / "set.zip", tmp_path / "out", at_most=9, name="it")
    rare = zipped(tmp_path, {"ann/0.png": b"1"}, compression=zipfile.ZIP_LZMA)
    with pytest.raises(ImageError, match="packed in a rare way"):
        unpack_pictures(rare, tmp_path / "out", at_most=9, name="it")
    locked = zipped(tmp_path, {"ann/0.png": b"1"})
    data = bytearray(locked.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory of the zip
    locked.write_bytes(data)
    with pytest.raises(ImageError, match="asks for a password"):
        unpack_pictures(locked, tmp_path / "out", at_most=9, name="it")


def test_a_bomb_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(tmp_path, {"ann/0.png": bytes(30 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ImageError, match="it is too large: a picture may have 25 MB, and all of them 200 MB"):
        unpack_pictures(bomb, tmp_path / "out", at_most=9, name="it")
    assert (tmp_path / "out" / "00000.png").stat().st_size <= 25 << 20
    monkeypatch.setattr(archives, "MAX_BYTES", 3 << 20)  # many that are small each
    many = zipped(
        tmp_path, {f"ann/{i}.png": bytes(1 << 20) for i in range(5)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ImageError, match="too large"):
        unpack_pictures(many, tmp_path / "many", at_most=9, name="it")
    assert sum(path.stat().st_size for path in (tmp_path / "many").iterdir()) <= 3 << 20


def test_a_size_that_is_a_lie_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(
        zipped(tmp_path, {"ann/0.png": bytes(26 << 20)}, compression=zipfile.ZIP_DEFLATED).read_bytes()
    )
    for head, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(head) + at
        data[start : start + 4] = (10).to_bytes(4, "little")
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(ImageError, match=r"no zip that can be read|too large"):
        unpack_pictures(tmp_path / "set.zip", tmp_path / "out", at_most=9, name="it")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 25 << 20


def test_too_many_files_and_what_is_no_zip(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="it holds 3 pictures; at most 2 are measured here"):
        unpack_pictures(
            zipped(tmp_path, {f"{i}.png": b"" for i in range(3)}), tmp_path / "out", at_most=2, name="it"
        )
    many = zipped(tmp_path, {f"{i}.txt": b"" for i in range(MAX_MEMBERS + 1)})
    with pytest.raises(ImageError, match="it lists 5,001 files; at most 5,000"):
        unpack_pictures(many, tmp_path / "out", at_most=2, name="it")
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ImageError, match="it is no zip that can be read"):
        unpack_pictures(tmp_path / "set.zip", tmp_path / "out", at_most=2, name="it")
    good = zipped(tmp_path, {"ann/0.png": b"x" * 1000}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(good.read_bytes())
    data[45] ^= 0xFF
    good.write_bytes(data)
    with pytest.raises(ImageError, match="it is no zip that can be read"):
        unpack_pictures(good, tmp_path / "out", at_most=2, name="it")


# --- who is who -------------------------------------------------------------------------------------------


def test_people_are_the_folders_of_a_zip_and_the_beginnings_of_names(people: Path, tmp_path: Path) -> None:
    archive = pack(people, tmp_path / "set.zip")
    single = []
    for path in sorted(people.rglob("*.png")):
        single.append(tmp_path / f"{path.parent.name}__{path.name}")
        single[-1].write_bytes(path.read_bytes())
    for number, files in enumerate(([archive], single)):
        folder = tmp_path / str(number)
        folder.mkdir()
        material = read_material([str(file) for file in files], [], folder)
        assert material.names == ("ann", "bob")
        assert [picture.name for picture in material.pictures.pictures] == [
            "ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png",
        ]  # fmt: skip
        assert material.person.tolist() == [0, 0, 1, 1]


def test_one_person_on_each_side_is_the_same_person(photos: Photos, people: Path, tmp_path: Path) -> None:
    archive = pack(people / "ann", tmp_path / "set.zip")
    material = read_material([str(photos.person)], [str(archive)], tmp_path)
    assert material.names == ("one person",)
    assert material.reference_person.tolist() == [0, 0]


def test_what_does_not_fit_is_a_sentence(photos: Photos, people: Path, tmp_path: Path) -> None:
    def read(pictures: list[Path], references: list[Path]) -> None:
        read_material([str(path) for path in pictures], [str(path) for path in references], tmp_path)

    loose, ann, bob = (tmp_path / name for name in ("loose.png", "ann__0.png", "bob__0.png"))
    for path in (loose, ann, bob):
        path.write_bytes(picture())
    with pytest.raises(ImageError, match="the pictures: there is none yet; add a folder or a zip"):
        read([], [])
    with pytest.raises(
        ConfigError, match=r"the pictures: loose.png lies beside the folders, and nobody says"
    ):
        read([ann, loose], [])
    with pytest.raises(ImageError, match="give one zip, or pictures; 2 files came together"):
        read([pack(people, tmp_path / "a.zip"), ann], [])
    carl = tmp_path / "carl__0.png"
    carl.write_bytes(picture())
    with pytest.raises(ConfigError, match=r"none of the people of the photos \(carl\) is among those of"):
        read([ann, bob], [carl])
    with pytest.raises(ImageError, match=f"that is 501; at most {MAX_SET} are measured here"):
        read([ann] * (MAX_SET + 1), [])
    Image.new("1", (9000, 8000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb.png has 9000 x 8000 pixels; at most 50 megapixels"):
        read([tmp_path / "bomb.png"], [])


# --- measuring --------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_command(
    people: Path, shop: Workshop, keeping: Keeping, tmp_path: Path
) -> None:
    archive = pack(people, tmp_path / "set.zip")
    *news, made = evaluate([str(archive)], [str(archive)], shop.kit, keeping.new_folder())
    assert isinstance(made, Evaluated)
    assert all(isinstance(item, Looked) and 0 <= item.done < item.total == 8 for item in news)
    command = [
        "evaluate",
        "consistency",
        str(people),
        "--references",
        str(people),
        "--out",
        str(tmp_path / "r"),
    ]
    assert idgen(command) == 0
    theirs, ours = read_report(tmp_path / "r"), read_report(made.page.parent)
    for name, measure in theirs.measures.items():
        assert ours.measures[name].value == pytest.approx(measure.value, nan_ok=True), name
    assert set(ours.measures) - set(theirs.measures) == {
        "faces/face, px", "faces/sharpness", "faces/turn aside, degrees", "faces/turn up or down, degrees",
    }  # fmt: skip
    with zipfile.ZipFile(made.archive) as opened:
        assert opened.read("report.html") == made.page.read_bytes()
    html = report_html(made)
    assert "Is it the same person?" in html
    assert "No face was found in 25.0% of the pictures" in html
    assert report_numbers(made)["face found"]["value"] == 0.75
    assert 'aria-valuenow="3"' in looked_html(Looked(done=3, total=8))


def test_a_picture_that_cannot_be_read_is_named_as_its_owner_names_it(
    shop: Workshop, keeping: Keeping, tmp_path: Path
) -> None:
    import gradio as gr

    archive = zipped(tmp_path, {"<b>ann/0.png": b"no picture"})
    with pytest.raises(gr.Error) as error:
        list(Callbacks(shop, keeping).evaluate([str(archive)]))
    assert "&lt;b&gt;ann/0.png is not a picture" in str(error.value)
    assert str(keeping.root) not in str(error.value)


def test_stopping_ends_it_at_the_next_picture(people: Path, shop: Workshop, keeping: Keeping) -> None:
    pictures = [str(people / "ann" / "0.png")] * 100
    work = evaluate(pictures, [], shop.kit, keeping.new_folder())
    assert isinstance(next(work), Looked)
    work.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert "evaluation" not in {thread.name for thread in threading.enumerate()}


def test_a_full_disk_is_no_damaged_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise StorageError("the disk is full")

    monkeypatch.setattr(archives, "_unpack", full)
    with pytest.raises(StorageError):
        unpack_pictures(zipped(tmp_path, {"a/0.png": b"1"}), tmp_path / "out", at_most=1, name="it")


# --- behind its port --------------------------------------------------------------------------------------


def test_a_program_gets_tables_report_and_numbers(served: Served, people: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(served.url, verbose=False, download_files=str(tmp_path))
    said: Any = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/evaluate"]  # pyright: ignore
    assert [p["parameter_name"] for p in said["parameters"]] == ["pictures", "references"]
    assert f"PERSON{page_evaluate.JOINT}FILE" in said["description"]
    archive = pack(people, tmp_path / "people.zip")
    status, files, numbers = client.predict([handle_file(archive)], None, api_name="/evaluate")
    assert "Is it the same person?" in status
    assert [Path(file).name for file in files] == ["report.html", "idgen-report.zip"]
    assert numbers["face found"]["value"] == 0.75
    evil = zipped(tmp_path, {"../../evil.png": b"1"})
    with pytest.raises(AppError, match="leads out of it"):
        client.predict([handle_file(evil)], None, api_name="/evaluate")
    assert not list(served.keeping.root.parent.glob("evil.png"))
