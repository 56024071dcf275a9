"""Who has the cores while `idgen synthesize` draws and looks: on a CPU in turns, beside a GPU at once."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from synthesizing import command, contents, models_opened_once, whole_dataset

from idgen.cli import main
from idgen.synth.engines import choose_threads
from idgen.synth.making import LOOK, Draft
from idgen.synth.work import BACKLOG, Workshop, _threads

FOUR_THREADS = ("--threads", "4")
ONE_SHARD = ("--shard-people", "6", "--batch-size", "2")  # three batches


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


def test_on_a_cpu_nothing_is_drawn_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, met, lock, together = [], [], threading.Lock(), threading.Event()

    def watched(name: str) -> None:
        real = getattr(Workshop, name)

        def watching(shop: Workshop, batch: Sequence[Draft]) -> None:
            with lock:
                busy.append(name)
                met.append(set(busy))
                if busy.count("look") == 2:
                    together.set()
            if name == "look" and len(batch) == LOOK:
                assert together.wait(60)  # looks do not wait for each other
            real(shop, batch)
            with lock:
                busy.remove(name)

        monkeypatch.setattr(Workshop, name, watching)

    watched("draw")
    watched("look")
    words = ("--people", "12", "--shard-people", "12", "--batch-size", str(2 * LOOK), *FOUR_THREADS)
    assert main(command(tmp_path / "dataset", *words)) == 0
    assert len(met) == 2 + 3  # batches of 8 and 4 pictures, looked at by four
    assert {"draw", "look"} not in met


def test_beside_a_gpu_drawing_goes_on_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, look, drawn, all_drawn = Workshop.draw, Workshop.look, [], threading.Event()
    opened = Workshop.__init__

    def as_with_a_gpu(shop: Workshop, *args: object, **rest: object) -> None:
        opened(shop, *args, **rest)  # type: ignore[arg-type]
        assert shop.backlog == 0
        shop.backlog = BACKLOG

    def drawing(shop: Workshop, batch: Sequence[Draft]) -> None:
        draw(shop, batch)
        drawn.append(len(batch))
        if len(drawn) == 3:
            all_drawn.set()

    def waiting(shop: Workshop, batch: Sequence[Draft]) -> None:
        assert all_drawn.wait(60)  # the first look ends after the last picture is drawn
        look(shop, batch)

    monkeypatch.setattr(Workshop, "__init__", as_with_a_gpu)
    monkeypatch.setattr(Workshop, "draw", drawing)
    monkeypatch.setattr(Workshop, "look", waiting)
    assert main(command(tmp_path / "dataset", *ONE_SHARD, *FOUR_THREADS)) == 0
    assert drawn == [2, 2, 2]


def test_threads_that_look_change_nothing(tmp_path: Path) -> None:
    assert main(command(tmp_path / "dataset", *FOUR_THREADS)) == 0
    assert contents(tmp_path / "dataset") == contents(whole_dataset())


def test_threads_that_look_keep_to_one_core_and_leave_the_others_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with _threads(2) as pool:
            both = threading.Barrier(2)

            def asked() -> int:
                both.wait()
                return torch.get_num_threads()

            assert [done.result() for done in [pool.submit(asked), pool.submit(asked)]] == [1, 1]
            assert torch.get_num_threads() == 3
            later: list[int] = []
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_each_device_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[int]] = []
    for cores in (1, 2, 16, 64):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        found.append(
            [choose_threads(names) for names in (["cpu"], ["cpu", "cpu"], ["cuda:0"], ["cuda:0"] * 4)]
        )
    assert found == [[1, 1, 1, 1], [2, 1, 1, 1], [16, 8, 15, 3], [16, 16, 16, 15]]
    assert choose_threads(["cpu"], "ray") == 1  # which is what a task asks the cluster for
    assert choose_threads(["cuda"], "ray") == 16
