"""Models and adapters that are chosen on the page: found on the disk, one in memory, the old one kept."""

import shutil
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from paging import Photos, made_of, made_portraits, wish
from PIL import Image

from idgen import mini
from idgen.errors import ConfigError, IdgenError
from idgen.page.callbacks import Callbacks
from idgen.page.jobs import Job, followed
from idgen.page.keeping import Keeping
from idgen.page.making import Workshop, open_workshop
from idgen.page.models import OWN, Models, find_models
from idgen.page.turns import Place
from idgen.provenance import read_provenance


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its adapter, and things that are neither."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(mini.BASE, folder / "people" / "small")
    shutil.copytree(mini.ADAPTER.parent if mini.ADAPTER.is_file() else mini.ADAPTER, folder / "adapters")
    shutil.copytree(mini.BASE, folder / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")
    shutil.copy(
        folder / "people" / "small" / "vae" / "diffusion_pytorch_model.safetensors",
        folder / "vae.safetensors",
    )
    (folder / "notes.safetensors").write_text("no tensors")
    (folder / "readme.txt").write_text("nothing")
    return folder


@pytest.fixture
def models(disk: Path) -> Models:
    return Models(find_models([disk]), partial(open_workshop, device="cpu"))


def adapter_in(models: Models) -> str:
    return next(name for name in models.shelf.adapters if name != OWN)


def test_what_lies_on_the_disk_is_found(disk: Path, models: Models) -> None:
    assert list(models.shelf.models) == ["mini", "broken", "people/small"]
    assert list(models.shelf.adapters) == [OWN, "adapters/faceid_mini.safetensors"]
    assert models.shelf.is_a_choice
    assert not find_models([]).is_a_choice
    named = find_models([], model=str(disk / "people" / "small"), adapter=disk / "adapters")
    assert list(named.models) == ["small", "mini"]
    assert list(named.adapters) == ["adapters", OWN]
    assert list(find_models([disk / "broken"]).models) == ["mini", "broken"]
    with pytest.raises(ConfigError, match=r"--models .*: there is no such folder"):
        find_models([disk / "nowhere"])


def test_a_wrong_choice_is_a_sentence(models: Models) -> None:
    with pytest.raises(ConfigError, match=r"no model 'mimi' here; did you mean 'mini'\?"):
        models.choose("mimi")
    with pytest.raises(ConfigError, match="no adapter 'x' here"):
        models.choose("mini", "x")
    with pytest.raises(ConfigError, match="people/small brings no adapter of its own; choose one"):
        models.choose("people/small")


def test_one_model_is_in_memory_and_its_pictures_are_the_same_after_a_change(
    models: Models, photos: Photos, keeping: Keeping
) -> None:
    def made(shop: Workshop) -> tuple[np.ndarray, str]:
        (one,) = made_of(
            made_portraits(wish(), [str(photos.person)], "the only one", shop, keeping, consent=True)
        )
        return np.asarray(Image.open(one.path)), read_provenance(one.path).model

    first, other = models.choose(), models.choose("people/small", adapter_in(models))
    before, name = made(first)
    assert (name, first.is_open, other.is_open) == ("mini", True, False)
    drawn, name = made(other)
    assert (name, first.is_open, other.is_open) == ("small", False, True)
    np.testing.assert_array_equal(drawn, before)  # the same weights under another name
    again, _ = made(models.choose("mini"))
    assert models.choose("mini") is first
    np.testing.assert_array_equal(again, before)


def test_the_old_model_stays_where_the_new_one_cannot_be_opened(models: Models) -> None:
    old = models.choose()
    with old.turn() as pipe:
        assert pipe.unet is not None
    with pytest.raises((IdgenError, OSError)), models.choose("broken", adapter_in(models)).turn():
        pytest.fail("it was opened")
    assert old.is_open
    assert not models.choose("broken", adapter_in(models)).is_open


def test_opening_says_so_and_what_the_model_likes(models: Models, keeping: Keeping, disk: Path) -> None:
    import gradio as gr

    callbacks = Callbacks(models.choose(), keeping, models=models)
    *news, last = callbacks.open("people/small", adapter_in(models))
    assert any("Opening small" in status for status, *_ in news)
    assert "people/small is open" in last[0]
    assert last[1:] == (models.choose("people/small", adapter_in(models)).defaults.num_inference_steps, 3.5)
    with pytest.raises(gr.Error) as error:
        list(callbacks.open("people/small", OWN))
    assert "brings no adapter of its own" in str(error.value)
    with pytest.raises(gr.Error) as error:
        list(callbacks.open("broken", adapter_in(models)))
    assert str(disk) not in str(error.value)


# --- turns and jobs ---------------------------------------------------------------------------------------


def test_turns_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    place, order = Place(), []
    may_go = threading.Event()

    def greedy() -> None:
        for number in range(3):
            with place.turn():
                may_go.wait(5)
                order.append(f"greedy {number}")
                time.sleep(0.02)

    def patient() -> None:
        with place.turn():
            order.append("patient")

    threads = [threading.Thread(target=work) for work in (greedy, patient)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    may_go.set()
    for thread in threads:
        thread.join(5)
    assert order == ["greedy 0", "patient", "greedy 1", "greedy 2"]


def test_whoever_is_no_longer_wanted_leaves_the_line() -> None:
    place = Place()

    def check() -> None:
        raise InterruptedError

    with place.turn(), pytest.raises(InterruptedError), place.turn(check):
        pytest.fail("it was somebody else's turn")
    with place.turn():
        pass


def test_a_job_ends_with_its_result_its_error_or_nothing() -> None:
    def counting(job: Job[int]) -> int:
        for number in range(3):
            job.check()
            job.tell(number)
        return 7

    assert list(followed(counting, name="count"))[-1] == 7

    def failing(job: Job[int]) -> int:
        job.tell(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(followed(failing, name="fail"))

    def endless(job: Job[int]) -> int:
        while True:
            job.check()
            job.tell(1)
            time.sleep(0.01)

    news = followed(endless, name="endless")
    assert next(news) == 1
    news.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert "endless" not in {thread.name for thread in threading.enumerate()}
