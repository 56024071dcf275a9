"""`idgen synthesize` in several processes, on this machine and as tasks of Ray; some of them die."""

import multiprocessing
import os
import pickle
import re
import select
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthesizing import about, command, contents, models_opened_once, rows, whole_dataset

import idgen.errors
import idgen.synth.engines
import idgen.synth.work
from idgen import mini
from idgen.blocklist import Blocklist
from idgen.cli import main
from idgen.encoders.arcface import mini_encoder
from idgen.errors import ConfigError, WorkerError
from idgen.identity import Identity
from idgen.synth.curate import CurationRules
from idgen.synth.making import Progress
from idgen.synth.recipe import Layout, Recipe, absolute_spec
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


def test_a_process_that_dies_before_it_is_answered_is_said(
    whole: dict[str, bytes],
    tmp_path: Path,
    forking: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, worker = tmp_path / "dataset", idgen.synth.engines._Worker
    give, killed = worker.give, list[int]()

    def late(self: Any, number: int | None) -> None:
        if not killed:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()
            killed.append(self.process.pid)
        give(self, number)

    monkeypatch.setattr(worker, "give", late)
    assert main(command(out, "--device", "cpu,cpu")) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "idgen: the process on cpu died (killed by SIGKILL) over shards 00000; the same command"
    )
    assert main(command(out)) == 0
    assert contents(out) == whole


def test_processes_end_with_the_one_that_started_them(
    whole: dict[str, bytes], tmp_path: Path, forking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while both of them have pictures to write: the next run begins at once, and is alone."""
    out = tmp_path / "dataset"
    ours, theirs = os.pipe()  # whose end is read when nobody is left who could write

    def busy(*_: object) -> None:
        os.write(theirs, f"{os.getpid()}\n".encode())
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(idgen.synth.work.Workshop, "write", busy)
        parent = os.fork()
        if not parent:
            os.close(ours)
            os._exit(main(command(out, "--device", "cpu,cpu")))
    os.close(theirs)
    told = b""
    while told.count(b"\n") < 2 and (more := os.read(ours, 100)):
        told += more
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        ready, _, _ = select.select([ours], [], [], 5)
        assert ready, "they work on"
        assert os.read(ours, 100) == b""
    except AssertionError:
        for process in map(int, told.split()):
            os.kill(process, signal.SIGKILL)
        raise
    finally:
        os.close(ours)
    assert not about(out)["finished"]
    assert main(command(out)) == 0
    assert contents(out) == whole


def test_an_error_in_a_process_is_said_as_if_it_were_here(
    tmp_path: Path, forking: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import idgen.synth.finishing

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
        blocklist=Blocklist({"somebody": Identity.from_vector(np.eye(8)[0], "other@000000000000")}),
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


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray without processes: tasks are done here, with what was sent as bytes, by a node without own files.

    What goes wrong in a task is raised as Ray does it.
    """
    pytest.importorskip("ray")
    import ray.exceptions

    def remote(**_: object) -> Any:
        return lambda task: type("Task", (), {"remote": lambda self, *sent: pickle.dumps((task, sent))})()

    def get(asked: bytes) -> Any:
        task, (recipe, *rest) = pickle.loads(asked)
        with monkeypatch.context() as node:
            node.delenv("IDGEN_BLOCKLIST", raising=False)
            node.setenv("XDG_DATA_HOME", str(tmp_path / "empty"))
            try:
                return pickle.loads(pickle.dumps(task(pickle.loads(recipe), *rest)))
            except Exception as error:
                trace = f"\x1b[36mray::_shard_task()\x1b[39m (pid=1)\n  File x, line 1\n{error}"
                raised = ray.exceptions.RayTaskError("_shard_task", trace, error, "worker", 1, "127.0.0.1")
                raise raised.as_instanceof_cause() from None

    pieces = {
        "is_initialized": lambda: False, "init": lambda **_: None, "shutdown": lambda: None, "remote": remote,
        "put": pickle.dumps, "wait": lambda left, num_returns: (left[:1], left[1:]), "get": get,
        "cancel": lambda *_, **__: None,
    }  # fmt: skip
    for name, piece in pieces.items():
        monkeypatch.setattr(ray, name, piece)
    monkeypatch.setattr(idgen.synth.engines, "_opened", [])


def test_a_node_keeps_away_from_people_who_refused_where_the_command_was_given(
    whole: dict[str, bytes], tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--engine", "ray", "--device", "cpu")
    assert main(command(tmp_path / "dataset", *words)) == 0
    assert contents(tmp_path / "dataset") == whole
    path = tmp_path / "blocklist.safetensors"
    somebody = Identity.from_vector(np.eye(mini_encoder().dim)[0], mini_encoder().id)
    Blocklist({"somebody": somebody}, path).save()
    monkeypatch.setenv("IDGEN_BLOCKLIST", str(path))
    out = tmp_path / "again"
    assert main(command(out, *words)) == 0
    seen = [row["real_similarity"] for row in rows(out) if row["num_faces"]]
    assert seen
    assert np.isfinite(np.array(seen, float)).all()  # each was compared with somebody


def test_what_goes_wrong_in_a_task_of_ray_is_one_line(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray.exceptions

    def broken(*_: object) -> None:
        raise ConfigError("the record of picture.png has 99999 bytes")

    monkeypatch.setattr(idgen.synth.work.Workshop, "look", broken)
    assert main(command(tmp_path / "dataset", "--engine", "ray", "--device", "cpu", people=2)) == 2
    assert capsys.readouterr().err == "idgen: the record of picture.png has 99999 bytes\n"
    for kind in (ray.exceptions.RayError, ray.exceptions.WorkerCrashedError):
        said = idgen.synth.engines._as_here(kind("the worker died\nlogs follow"), 3)
        assert type(said) is WorkerError
        assert "\n" not in str(said)
    assert str(said).startswith("shard 00003 was not made: ")


def test_the_devices_of_ray_are_looked_for_by_its_tasks(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "dataset"
    words = command(out, "--engine", "ray", people=2)
    for device in ("cuda:1", "cpu,cpu"):
        assert main([*words, "--device", device]) == 2
        said = (
            "--device with --engine ray must be cpu, cuda or auto, since Ray chooses which one each task has"
        )
        assert capsys.readouterr().err == f"idgen: {said}, got {device!r}\n"
        assert not out.exists()
    assert main([*words, "--device", "cuda"]) == 2
    assert "--device cuda: this machine, or this build of torch, has none" in capsys.readouterr().err
    assert about(out)["num_shards"] == 1  # so far it came: it was the task that looked
    assert main([*command(out), "--ray-address", "127.0.0.1:1"]) == 2
    assert "--ray-address 127.0.0.1:1 goes with --engine ray, got --engine local" in capsys.readouterr().err


def test_paths_of_models_are_absolute_where_they_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "rec.onnx").touch()
    (tmp_path / "eyes.onnx").touch()
    (tmp_path / "pack").symlink_to("mini")
    (tmp_path / "model").symlink_to(mini.BASE)
    (tmp_path / "antelopev2").mkdir()  # holds no model: the name means the pack
    for spec in (None, "mini", "judge", "buffalo_l", "antelopev2", "owner/name", "insightface:buffalo_l"):
        assert absolute_spec(spec) == spec
    expected = {
        "eyes.onnx": "",
        "pack": "",
        "model": "",
        "yunet:eyes.onnx": "yunet:",
        "insightface:pack": "insightface:",
    }
    for spec, kind in expected.items():
        assert absolute_spec(spec) == f"{kind}{tmp_path / spec.removeprefix(kind)}"


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
