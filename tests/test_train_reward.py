"""`idgen train reward`, on top of a LoRA and of an adapter, as a user runs it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from generating import World, build_world
from one_process import commands_run_here, run_by_two_processes
from safetensors.torch import load_file
from training_runs import CONFIGS, adapter_command, add_one_person, add_people, log_of, lora_command
from transformers import CLIPTokenizer

from idgen.cli import main
from idgen.tuning.lora import WEIGHTS_NAME

pytestmark = pytest.mark.usefixtures("faces_are_remembered")
ADAPTER = Path("adapter") / "faceid.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    """Models, people, and a finished run of each kind."""
    world = build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    add_one_person(world)
    add_people(world)
    assert main(lora_command(world, world.root / "lora", preset="dreambooth")) == 0
    assert main(adapter_command(world, world.root / "adapter")) == 0
    return world


def reward(run: Path, out: Path, *settings: str, preset: str) -> list[str]:
    small = ("optimizer.steps=2", "optimizer.log_every=1", "optimizer.learning_rate=1e-3",
             "optimizer.batch_size=4", "rollout.steps=3", *settings)  # fmt: skip
    words = [word for setting in small for word in ("--set", setting)]
    return ["train", "reward", "--on", str(run), "--config", str(CONFIGS / f"{preset}.yaml"), *words,
            "--out", str(out)]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "file", "extra"),
    [("lora", Path(WEIGHTS_NAME), ("optimizer.prior_batch_size=4", "rollout.guidance=2.0")),
     ("adapter", ADAPTER, ("rollout.grad_steps=2",))],
)  # fmt: skip
def test_it_goes_on_from_a_finished_run(
    world: World, tmp_path: Path, kind: str, file: Path, extra: tuple[str, ...]
) -> None:
    command = reward(world.root / kind, tmp_path / "run", *extra, preset=f"id_aligner_{kind}")
    with commands_run_here():
        assert main(command) == 0
    for line in log_of(tmp_path / "run"):
        assert line["identity_reward"] > 0 < line["aesthetic_reward"]
        assert {"identity_reward/similarity", "identity_reward/diversity"} <= line.keys()
    before, after = (load_file(folder / file) for folder in (world.root / kind, tmp_path / "run"))
    moved = {name: float((after[name].float() - before[name].float()).abs().max()) for name in before}
    assert 0 < max(moved.values()) < 0.05  # two small steps from there, and not from a new beginning
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["start"] == str(world.root / kind / file)
    assert settings["framing"] == "aligned"  # of the run that it goes on from
    with commands_run_here():
        assert main(command) == 0  # finished: nothing is done again


def test_two_processes_give_the_loss_of_one(world: World, tmp_path: Path) -> None:
    settings = ("optimizer.batch_size=4", "drop.both=0.0", "drop.identity=0.0", "rollout.steps=3")
    one = adapter_command(world, tmp_path / "one", *settings, preset="id_aligner_adapter")
    assert main(one) == 0
    two = adapter_command(world, tmp_path / "two", *settings, preset="id_aligner_adapter")
    run_by_two_processes(two, tmp_path / "logs")
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        for name in ("loss", "denoising", "identity_reward", "aesthetic_reward"):
            assert a[name] == pytest.approx(b[name], abs=2e-5), name


def test_what_cannot_be_gone_on_from(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(command: list[str], *said: str) -> None:
        with commands_run_here():
            assert main(command) == 2
        last = capfd.readouterr().err.replace("\r", "\n").splitlines()[-1]
        for text in said:
            assert text in last, last

    out = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(reward(empty, out, preset="id_aligner_lora"), "is no run of `idgen train lora`")
    (empty / "config.yaml").write_text("steps: 3\n")
    refuse(reward(empty, out, preset="id_aligner_lora"), "is not of a LoRA or an adapter")
    (empty / "config.yaml").write_text("photos: somewhere\nstages: {tokens: 2}\n")
    refuse(reward(empty, out, preset="id_aligner_lora"), "trained identity tokens (stages)")
    (empty / "config.yaml").write_text("photos: somewhere\n")
    refuse(reward(empty, out, preset="id_aligner_lora"), "has not finished")
    refuse(
        reward(world.root / "lora", world.root / "lora", preset="id_aligner_lora"), "choose another folder"
    )
    refuse(
        reward(world.root / "lora", out, preset="dreambooth"), "no reward among the terms (denoising, prior)"
    )
    other = ("optimizer.prior_batch_size=4", "lora.rank=2")
    refuse(reward(world.root / "lora", out, *other, preset="id_aligner_lora"), "do not fit", "lora.rank")
    assert not out.exists() or not (out / "state.pt").exists()


def test_the_plan_of_a_reward(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [*reward(world.root / "lora", tmp_path / "run", preset="id_aligner_lora"), "--dry-run"]
    with commands_run_here():
        assert main(command) == 0
    assert "terms: denoising, prior, identity_reward, aesthetic_reward" in capfd.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_run_it_goes_on_from_stays_as_it_is(world: World) -> None:
    state = torch.load(world.root / "lora" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 3
    assert json.loads((world.root / "lora" / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_wplus_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("pictures_per_person: 2\nkind: wplus\n")
    assert main(["train", "reward", "--on", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "trained a W+ adapter" in capsys.readouterr().err
