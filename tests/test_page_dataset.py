"""The tab Dataset: a small dataset as the command makes it, live, bounded, gone without a trace."""

import hashlib
import io
import json
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from paging import STEPS, Photos, Served, made_of, made_portraits, wish
from PIL import Image

from idgen.blocklist import Blocklist
from idgen.cli import main as idgen
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, MeasureError
from idgen.identity import Identity
from idgen.page import dataset as page_dataset
from idgen.page.callbacks import Callbacks
from idgen.page.dataset import WHY, Growth, MadeSet, SetWish, in_short, make_set
from idgen.page.galleries import Galleries
from idgen.page.keeping import Keeping
from idgen.page.making import Workshop
from idgen.page.showing import growth_html, made_set_html, set_numbers
from idgen.provenance import read_provenance
from idgen.synth.counts import REASONS
from idgen.synth.folder import EPOCH
from idgen.synth.galleries import REAL_PEOPLE
from idgen.synth.vectors import VECTORS
from idgen.synth.work import PEOPLE

ASKED = SetWish(people=2, each=2, seed=0, steps=STEPS, guidance=3.5)


@pytest.fixture(scope="module")
def gallery(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of one real person."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "ann").mkdir()
    shutil.copy(photos.person, folder / "ann" / "0.png")
    return folder


@pytest.fixture(scope="module")
def news(shop: Workshop, keeping: Keeping, gallery: Path) -> list[Growth | MadeSet]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(EPOCH, "1700000000")
        return list(make_set(ASKED, shop, Galleries([gallery]), keeping.new_folder()))


@pytest.fixture(scope="module")
def made(news: list[Growth | MadeSet]) -> MadeSet:
    assert isinstance(news[-1], MadeSet)
    return news[-1]


def test_it_is_told_as_it_grows(news: list[Growth | MadeSet], made: MadeSet) -> None:
    growing = [item for item in news if isinstance(item, Growth)]
    assert len(growing) == len(news) - 1
    for name in ("drawn", "kept"):
        counts = [getattr(item, name) for item in growing]
        assert counts == sorted(counts)
    assert any(item.seconds_left for item in growing)
    last = made.growth
    assert last.planned == 4
    assert last.kept == len(made.pictures) == len(last.thumbnails) > 0
    assert last.kept + sum(last.rejected.values()) == last.drawn
    assert last.thumbnails[0][8:12] == b"WEBP"
    html = growth_html(last)
    assert html.count("<img") == last.kept
    assert f"{last.kept} of 4 planned pictures are kept; {last.drawn} were drawn" in html


def test_the_zip_holds_pictures_manifest_datasheet_and_report(made: MadeSet) -> None:
    with zipfile.ZipFile(made.archive) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {"manifest.parquet", "DATASHEET.md", "SHA256SUMS", "report/report.html"} < set(files)
    rows = pyarrow.parquet.read_table(io.BytesIO(files["manifest.parquet"])).to_pylist()
    assert len(rows) == len(made.pictures)
    for row in rows:
        assert hashlib.sha256(files[row["path"]]).hexdigest() == row["sha256"]
        with Image.open(io.BytesIO(files[row["path"]])) as image:
            assert image.size == (64, 64)
    for path, words in made.pictures:
        said = read_provenance(path)
        assert path.read_bytes() == files[f"{path.parent.name}/{path.name}"]
        assert said.steps == STEPS
        assert words == f"{path.parent.name} · {next(iter(said.similarity.values())):.2f}"
    assert b"http-equiv" in files["report/report.html"]
    assert made.about["finished"] is True
    assert made.about["leakage"]["galleries"] == 1
    assert set_numbers(made)["yield"]["kept"] == len(rows)
    assert f"{len(rows)} pictures of" in made_set_html(made)


def test_nothing_of_real_people_and_of_the_work_is_left(made: MadeSet) -> None:
    folder = made.archive.parent
    assert sorted(path.name for path in folder.iterdir()) == [made.archive.name, "people"]
    assert not list(folder.rglob(f"*{REAL_PEOPLE}*")) + list(folder.rglob("*.npz"))


def test_the_pictures_are_those_of_the_command(
    made: MadeSet, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EPOCH, "1700000000")
    words = ["--people", "2", "--pictures", "2", "--seed", "0", "--steps", str(STEPS), "--guidance", "3.5",
             "--batch-size", "4", "--shard-people", "2", "--gallery", str(gallery), "--device", "cpu",
             "--out", str(tmp_path / "set")]  # fmt: skip
    assert idgen(["synthesize", *words]) == 0
    export = ["--to", "folder", "--out", str(tmp_path / "out")]
    assert idgen(["synthesize", "export", str(tmp_path / "set"), *export]) == 0
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert {path.name: path.read_bytes() for path, _ in made.pictures} == theirs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"people": 25}, "the number of people must be between 1 and 24, got 25"),
        ({"each": 13}, "the number of pictures of each must be between 1 and 12, got 13"),
        ({"people": 24, "each": 5}, "24 people with 5 pictures are 120 pictures; at most 96 are made here"),
        ({"seed": -1}, "the seed must be between 0"),
        ({"steps": 101}, "the number of steps must be between 1 and 100"),
        ({"guidance": None}, "the guidance must be between 1 and 20"),
    ],
)
def test_what_is_too_much_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ASKED, **changes)


def test_a_name_is_no_path(shop: Workshop, keeping: Keeping) -> None:
    folder = keeping.new_folder()
    with pytest.raises(ConfigError, match="names of people must begin with 1 to 60 letters"):
        list(make_set(replace(ASKED, name="../x"), shop, Galleries(), folder))
    assert not list(folder.iterdir())


def test_what_takes_too_long_is_refused_before_it_is_drawn(
    shop: Workshop, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_dataset, "MAX_SECONDS", 0.01)
    folder = keeping.new_folder()
    with pytest.raises(ConfigError, match="4 pictures would take about 0 minutes on this machine; at most 0"):
        list(make_set(ASKED, shop, Galleries(), folder))
    assert not list(folder.iterdir())


def test_where_nothing_is_good_enough_that_is_said(
    shop: Workshop, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_dataset, "RETRIES", 0)
    strict = page_dataset.CurationRules(min_similarity=1.0)
    monkeypatch.setattr(page_dataset, "CurationRules", lambda: strict)
    with pytest.raises(
        MeasureError, match=r"of 1 pictures that were drawn none was good .*unlike the person 1"
    ):
        list(make_set(replace(ASKED, people=1, each=1, steps=1), shop, Galleries(), keeping.new_folder()))


def test_others_come_in_between_and_stopping_leaves_nothing(
    shop: Workshop, keeping: Keeping, photos: Photos
) -> None:
    folder = keeping.new_folder()
    work = make_set(replace(ASKED, people=4, each=4, steps=20), shop, Galleries(), folder)
    while next(work).doing != "Drawing":  # pyright: ignore[reportAttributeAccessIssue]
        continue
    (portrait,) = made_of(
        made_portraits(wish(steps=1), [str(photos.person)], "the only one", shop, keeping, consent=True)
    )
    assert portrait.path.is_file()
    assert "dataset" in {thread.name for thread in threading.enumerate()}  # it still goes on
    work.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert "dataset" not in {thread.name for thread in threading.enumerate()}
    assert not list(folder.iterdir())


def test_people_who_refused_are_not_among_the_new_ones(
    shop: Workshop, keeping: Keeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_person() -> np.ndarray:
        folder = keeping.new_folder()
        work = make_set(replace(ASKED, people=1, each=1), shop, Galleries(), folder)
        while next(work).doing != "Trying how long a picture takes":  # pyright: ignore[reportAttributeAccessIssue]
            continue
        found = np.load(folder / "dataset" / PEOPLE / VECTORS)[0]
        work.close()  # pyright: ignore[reportAttributeAccessIssue]
        return found

    refused = first_person()
    np.testing.assert_array_equal(first_person(), refused)
    encoder = shop.kit.encoder
    monkeypatch.setenv("IDGEN_BLOCKLIST", str(tmp_path / "list.safetensors"))
    listed = Blocklist.load(may_be_missing=True)
    listed.add(Identity.from_vector(refused, encoder.id), "Ann Example")
    listed.save()
    assert float(first_person() @ refused) < threshold_at(encoder, "1e-3")


def test_every_reason_has_words() -> None:
    assert set(WHY) == set(REASONS)
    assert in_short({"no_face": 1, "unlike": 3}) == "unlike the person 3, no face 1"


# --- behind its port --------------------------------------------------------------------------------------


def test_a_program_gets_the_whole_of_it(served: Served, tmp_path: Path) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(served.url, verbose=False, download_files=str(tmp_path))
    said: Any = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/dataset"]  # pyright: ignore
    assert [p["parameter_name"] for p in said["parameters"]][:4] == ["people", "pictures", "seed", "name"]
    assert "manifest.parquet" in said["description"]
    status, pictures, archive, numbers = client.predict(
        people=1, pictures=2, seed=4, steps=STEPS, api_name="/dataset"
    )
    assert "pictures of 1 new people" in status
    with zipfile.ZipFile(archive) as opened:
        labels = json.loads(opened.read("labels.json"))
        assert labels == {"new-000000": 0}
        for picture in pictures:
            name = f"new-000000/{Path(picture['image']).name}"
            assert opened.read(name) == Path(picture["image"]).read_bytes()
    assert numbers["seed"] == 4
    with pytest.raises(AppError, match="at most 96 are made here"):
        client.predict(people=24, pictures=12, api_name="/dataset")


def test_a_crash_is_a_sentence_and_the_next_click_works(
    shop: Workshop, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    callbacks = Callbacks(shop, keeping)
    with monkeypatch.context() as broken:
        broken.setattr(shop.pipe.scheduler, "alphas_cumprod", None)
        with pytest.raises(gr.Error, match="The program failed at that"):
            list(callbacks.dataset(people=1, pictures=1, steps=1))
    assert next(callbacks.dataset(people=1, pictures=1, steps=1))[0].startswith('<div class="making">')
