"""`idgen synthesize` in several processes, on this machine and as tasks of Ray; some of them die."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from synthesizing import about, command, contents, models_opened_once, whole_dataset

import idgen.errors
import idgen.synth.engines
import idgen.synth.work
from idgen.cli import main
from idgen.synth.curate import CurationRules
from idgen.synth.making import Progress
from idgen.synth.recipe import Layout, Recipe
from idgen.synth.shards import DamagedShardError


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes begin with the models that are open here; else each one takes seconds to import torch."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """What one process makes."""
    return contents(whole_dataset())


def test_two_processes_make_the_same_dataset(whole: dict[str, bytes], tmp_path: Path, forking: None) -> None:
    out = tmp_path / "dataset"
    assert main(command(out, "--device", "cpu,cpu")) == 0
    assert contents(out) == whole
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_said_and_the_next_run_repairs_it(
    whole: dict[str, bytes],
    tmp_path: Path,
    forking: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, parent = tmp_path / "dataset", os.getpid()
    flag = tmp_path / "somebody died"
    look = idgen.synth.work.Workshop.look

    def deadly(shop: idgen.synth.work.Workshop, batch: list[object]) -> None:
        if os.getpid() != parent and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        look(shop, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(idgen.synth.work.Workshop, "look", deadly)
    assert main(command(out, "--device", "cpu,cpu")) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "the process on cpu died (killed by SIGKILL) over shards 0000" in said
    assert re.search(r"; the same command goes on \((1 of 3 shards is|2 of 3 shards are) there\)$", said)
    assert not about(out)["finished"]
    assert main(command(out)) == 0
    assert contents(out) == whole


def test_an_error_in_a_process_is_said_as_if_it_were_here(
    tmp_path: Path, forking: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import idgen.synth.finishing
    from idgen.errors import ConfigError

    def broken(*_: object, **__: object) -> bytes:
        raise ConfigError("the record of picture.png has 99999 bytes")

    monkeypatch.setattr(idgen.synth.finishing, "encoded_picture", broken)
    assert main(command(tmp_path / "dataset", "--device", "cpu,cpu")) == 2
    assert "the record of picture.png has 99999 bytes" in capfd.readouterr().err.splitlines()[-1]
    assert not multiprocessing.active_children()


def test_what_travels_between_processes_arrives(tmp_path: Path) -> None:
    """A process that is spawned gets all of it through a pipe; those above are forked."""
    damaged = DamagedShardError("shard 00001 is damaged", tmp_path / "00001.json")
    kinds = [kind for kind in vars(idgen.errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    for error in (damaged, *(kind("what was wrong") for kind in kinds)):
        word, arrived = ForkingPickler.loads(ForkingPickler.dumps(("failed", error)))
        assert (word, type(arrived), str(arrived)) == ("failed", type(error), str(error))
        assert vars(arrived) == vars(error)
    told = Progress(shard=3, drawn=4, is_done=True)
    layout = Layout(width=64, height=64, batch_size=4, shard_people=2)
    recipe = Recipe(
        dataset=tmp_path, model="mini", adapter=None, encoder=None, judge=None, detector="mini",
        precision="auto", steps=1, guidance=1.0, id_guidance=None, id_scale=1.0, id_start=0.0, id_end=1.0,
        layout=layout, retries=0, kind="png", quality=95, rules=CurationRules(), allow_unchecked=False,
        threads=1, model_name="mini", model_hash="ab", created="2026-01-01T00:00:00+00:00",
        facts={"command": "cd"},
    )  # fmt: skip
    for sent in (told, recipe):
        assert ForkingPickler.loads(ForkingPickler.dumps(sent)) == sent


def test_ray_is_asked_for_a_cluster_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    words = command(tmp_path / "dataset", "--engine", "ray", people=2)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        assert main([*words, "--ray-address", address]) == 2
        assert f"no Ray cluster answers at {address}: Connection refused" in capsys.readouterr().err
    assert main([*words, "--ray-address", "somewhere"]) == 2
    assert "--ray-address is auto, HOST:PORT or ray://HOST:PORT, got 'somewhere'" in capsys.readouterr().err


def start_cluster(ray: Any, tries: int = 3) -> None:
    """Two workers on this machine; Ray waits 30 s for its own processes, which busy cores may miss."""
    for left in reversed(range(tries)):
        try:
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
            return
        except Exception as error:  # Ray's own class of it says no more
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


@pytest.mark.skipif(
    not os.environ.get("IDGEN_TEST_RAY"),
    reason="a cluster does not start on busy cores: `make test-ray` starts one when nothing else runs",
)
def test_tasks_of_a_cluster_make_the_same_dataset_though_one_worker_is_killed(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    ray = pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    out, killed = tmp_path_factory.mktemp("ray") / "dataset", threading.Event()

    def kill_one() -> None:
        while not killed.is_set():
            for process in psutil.process_iter(["cmdline"]):
                if "ray::_shard_task" in "".join(process.info["cmdline"] or []):
                    process.kill()
                    killed.set()
                    return
            time.sleep(0.05)

    start_cluster(ray)
    try:
        address = ray.get_runtime_context().gcs_address
        threading.Thread(target=kill_one, daemon=True).start()
        assert main(command(out, "--engine", "ray", "--ray-address", address, "--device", "cpu")) == 0
    finally:
        ray.shutdown()
        was_killed = killed.is_set()
        killed.set()
    assert was_killed
    assert contents(out) == whole
