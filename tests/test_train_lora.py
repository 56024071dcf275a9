"""`idgen train lora`, run as a user runs it, on tiny models of the real kinds and photos of one person."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from generating import World, build_world
from one_process import begin, run_by_two_processes
from PIL import Image
from safetensors.torch import load_file
from training_runs import add_one_person, log_of, lora_command
from transformers import CLIPTokenizer

from idgen.cli import main
from idgen.tuning.lora import KOHYA_NAME, WEIGHTS_NAME

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    """Models, encoders, four photos of one person, four pictures of somebody who does not exist."""
    world = build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    add_one_person(world)
    return world


def test_both_files_open_in_plain_diffusers_and_say_the_same(world: World, tmp_path: Path) -> None:
    command = lora_command(world, tmp_path / "run", "optimizer.learning_rate=0.05", "lora.alpha=2.0")
    assert main(command) == 0
    pictures = {}
    for name in ("none", WEIGHTS_NAME, KOHYA_NAME):
        pipe = StableDiffusionPipeline.from_pretrained(world.root / "sd")
        pipe.set_progress_bar_config(disable=True)
        if name != "none":
            pipe.load_lora_weights(tmp_path / "run", weight_name=name)
        made = pipe(
            "a face", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
        )
        pictures[name] = made.images
    assert np.abs(pictures["none"] - pictures[WEIGHTS_NAME]).max() > 0.01
    assert np.abs(pictures[KOHYA_NAME] - pictures[WEIGHTS_NAME]).max() < 1e-5


def test_a_run_that_goes_on_equals_one_that_never_stopped(world: World, tmp_path: Path) -> None:
    """Killed with SIGKILL after its second step, in a process of its own with as many threads as this one."""
    settings = ("optimizer.steps=16", "optimizer.ema_decay=0.9", "optimizer.checkpoint_every=2")
    assert main(lora_command(world, tmp_path / "whole", *settings)) == 0
    command = lora_command(world, tmp_path / "killed", *settings)
    process = begin(main, command)
    log = tmp_path / "killed" / "log.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= 3) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / WEIGHTS_NAME).exists()
    assert main(command) == 0
    assert [line["step"] for line in log_of(tmp_path / "killed")] == list(range(1, 17))
    for name in (WEIGHTS_NAME, KOHYA_NAME):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_pieces_and_processes_do_not_change_the_loss(world: World, tmp_path: Path) -> None:
    """One process, one process in two pieces, two processes: the same global batch, the same loss."""
    settings = ("optimizer.batch_size=2", "optimizer.prior_batch_size=2", "terms.triplet.mining=hard")
    assert main(lora_command(world, tmp_path / "one", *settings)) == 0
    assert main(lora_command(world, tmp_path / "pieces", *settings, "optimizer.accumulation=2")) == 0
    run_by_two_processes(lora_command(world, tmp_path / "two", *settings), tmp_path / "logs")
    one = log_of(tmp_path / "one")
    for other in ("pieces", "two"):
        for a, b in zip(one, log_of(tmp_path / other), strict=True):
            for name in ("loss", "denoising", "prior", "triplet"):
                assert a[name] == pytest.approx(b[name], abs=2e-5), (other, name)


def test_samples_are_drawn_and_judged(world: World, tmp_path: Path) -> None:
    command = lora_command(world, tmp_path / "run", "samples.every=2", "samples.prompts=[a face, a dog]",
                    "judge=judge", "encoder=mini", "detect_in_prediction=true")  # fmt: skip
    assert main(command) == 0
    with Image.open(tmp_path / "run" / "samples" / "step-000002.png") as sheet:
        assert sheet.width > 400
    (drawn,) = [line for line in log_of(tmp_path / "run") if "face_found" in line]
    assert drawn["step"] == 2
    assert {"similarity/mini", "similarity/judge"} <= drawn.keys()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_dry_run_says_what_it_would_do(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*lora_command(world, tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 photos, 3 steps of 1 photos and 1 prior pictures at 16 pixels" in said
    assert "MiB of memory (weights" in said
    assert not (tmp_path / "run").exists()


def refuse(capsys: pytest.CaptureFixture[str], command: list[str], *said: str) -> None:
    assert main(command) == 2
    last = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    for text in said:
        assert text in last, last


def swap_photos(command: list[str], folder: Path) -> list[str]:
    return [str(folder) if before == "--photos" else word
            for before, word in zip(["", *command], command, strict=False)]  # fmt: skip


def test_photos_that_cannot_be_used(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = lora_command(world, tmp_path / "run", "encoder=mini")
    folder = tmp_path / "photos"
    folder.mkdir()
    refuse(capsys, swap_photos(command, folder), "holds no picture")
    shutil.copy(world.root / "photos" / "a.png", folder)
    refuse(capsys, swap_photos(command, folder), "holds one photo", "two at least")
    for name in ("b.png", "c.png", "d.png"):
        shutil.copy(world.root / "photos" / name, folder)
    Image.new("RGB", (64, 64), "navy").save(folder / "sky.png")
    (folder / "letter.jpg").write_text("Dear Sir or Madam")
    refuse(capsys, swap_photos(command, folder), "letter.jpg", "--skip-bad")
    (folder / "letter.jpg").unlink()
    refuse(capsys, swap_photos(command, folder), "no face found in 1 of 5 pictures: sky.png", "--skip-bad")
    for picture in (world.root / "others").glob("*.png"):
        shutil.copy(picture, folder)
    (folder / "sky.png").unlink()
    refuse(capsys, swap_photos(command, folder), "look like somebody else", "n0.png", "n3.png")
    assert not (tmp_path / "run" / "state.pt").exists()
    skies = tmp_path / "skies"
    skies.mkdir()
    for colour in ("navy", "teal"):
        Image.new("RGB", (64, 64), colour).save(skies / f"{colour}.png")
    refuse(
        capsys,
        [*swap_photos(command, skies), "--skip-bad"],
        "none of the 2 pictures can be used: navy.png, teal.png",
    )
    assert main([*swap_photos(command, folder), "--skip-bad"]) == 0
    assert "left out, since they look like somebody else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("terms.triplet.weight=-1", ["weight of a term must not be negative"]),
        ("terms.triple.weight=1", ["did you mean 'triplet'"]),
        ("lora.targets=[to_x]", ["no layer of the UNet is called to_x", "to_q"]),
        ("terms.background.weight=1", ["they train an adapter"]),
        ("lora.rank=0", ["rank must be at least 1"]),
        ("optimizer.accumulation=3", ["batch_size 1 cannot be cut into 3 equal parts"]),
        ("optimizer.learning_rate=0", ["learning_rate"]),
        ("model=nowhere", ["no model 'nowhere'"]),
        ("prior.count=9", ["holds 4 prior pictures, 9 are wanted"]),
        ("terms.attention.weight=1", ["there are none: set stages"]),
        ("lora=null", ["nothing would train"]),
        ("stages.words=dog", ["the words 'dog' are not in the first"]),
        ("start=nowhere", ["no LoRA to begin with", "nowhere"]),
        ("terms.identity_reward.time_power=1.0", ["a reward judges finished pictures"]),
        ("rollout.grad_steps=0", ["rollout.grad_steps from 1"]),
        ("decoder=mini", ["is not for this model", "set decoder to full"]),
        ("decoder=nowhere", ["no small decoder", "nowhere"]),
    ],
)
def test_settings_that_cannot_be(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: list[str]
) -> None:
    refuse(capsys, lora_command(world, tmp_path / "run", setting), *said)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_run_of_another_configuration_stays_as_it_is(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(lora_command(world, tmp_path / "run")) == 0
    before = (tmp_path / "run" / WEIGHTS_NAME).read_bytes()
    refuse(capsys, lora_command(world, tmp_path / "run", "seed=1"), "holds a run with other settings")
    assert (tmp_path / "run" / WEIGHTS_NAME).read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = lora_command(world, tmp_path / "run", "optimizer.learning_rate=1e30",
                           "optimizer.weight_decay=0.0", "optimizer.steps=9",
                           "optimizer.checkpoint_every=1", "optimizer.schedule=constant")  # fmt: skip
    refuse(capsys, command, "is not finite", "denoising", "are kept")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["weights"].values())


def test_a_weight_of_0_changes_nothing(world: World, tmp_path: Path) -> None:
    assert main(lora_command(world, tmp_path / "without", preset="dreambooth")) == 0
    assert main(lora_command(world, tmp_path / "zero", "terms.triplet.weight=0", preset="dreambooth")) == 0
    without, zero = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("without", "zero"))
    assert all(torch.equal(without[name], zero[name]) for name in without)
