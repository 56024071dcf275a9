import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from generating import ENCODER_DIM, World, astronaut, build_world, pixels, record
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from idgen import mini
from idgen.cli import main
from idgen.encoders.arcface import load_encoder
from idgen.identity import Identity
from idgen.provenance import read_provenance

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    return build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_photo_and_a_prompt_give_pictures_a_sheet_and_a_record(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["--count", "3", "--seed", "7", "--negative", "blurred", "--judge", str(world.judge)]
    assert main(world.command(*asked, "--out", str(out))) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "0000.png",
        "0001.png",
        "0002.png",
        "run.json",
        "sheet.png",
    ]
    assert f"3 pictures in {out}" in capsys.readouterr().out

    run, encoders = record(out), [load_encoder(str(p)).id for p in (world.encoder, world.judge)]
    assert run["finished"]
    assert run["run"]["settings"] == {
        "steps": 2, "guidance": 7.0, "size": "16x16", "batch_size": 8, "device": "cpu", "precision": "float32"
    }  # fmt: skip
    for i, picture in enumerate(run["pictures"]):
        file = out / f"{i:04d}.png"
        assert (picture["file"], picture["seed"]) == (file.name, 7 + i)
        assert picture["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert list(picture["similarity"]) == encoders
        said = read_provenance(file)
        assert (said.prompt, said.negative_prompt, said.seed, said.steps) == ("a face", "blurred", 7 + i, 2)
        assert (said.encoder, said.similarity) == (encoders[0], picture["similarity"])
        assert (said.model_hash, said.adapter_hash) == (run["command"]["model"], run["command"]["adapter"])
    assert len({pixels(out / f"{i:04d}.png").tobytes() for i in range(3)}) == 3


def test_nothing_that_is_written_names_the_photo(world: World, tmp_path: Path) -> None:
    assert main(world.command("--out", str(tmp_path / "out"))) == 0
    for file in (tmp_path / "out").iterdir():
        assert b"person-with-a-name" not in file.read_bytes(), file
        assert str(world.root).encode() not in file.read_bytes(), file
    assert record(tmp_path / "out")["command"]["photos"] == [
        hashlib.sha256(world.photo.read_bytes()).hexdigest()
    ]


@pytest.mark.parametrize("model", ["sd", "sd2", "sdxl"])
def test_the_same_command_takes_stable_diffusion_1_2_and_xl(world: World, tmp_path: Path, model: str) -> None:
    assert main(world.command("--out", str(tmp_path / "out"), "--count", "2", model=model)) == 0
    assert record(tmp_path / "out")["run"]["model"] == model
    assert pixels(tmp_path / "out" / "0001.png").shape == (16, 16, 3)


def test_the_identity_changes_the_pictures_and_its_strength_counts(world: World, tmp_path: Path) -> None:
    for name, scale in {"none": "0", "some": "1", "more": "3"}.items():
        assert main(world.command("--out", str(tmp_path / name), "--id-scale", scale)) == 0
    none, some, more = (pixels(tmp_path / n / "0000.png").astype(int) for n in ("none", "some", "more"))
    assert 0 < np.abs(some - none).mean() < np.abs(more - none).mean()


def test_a_missing_picture_is_made_again_bit_for_bit_and_the_others_stay(
    world: World, tmp_path: Path
) -> None:
    command = world.command("--out", str(tmp_path / "out"), "--count", "5", "--batch-size", "2")
    assert main(command) == 0
    files = {p.name: p for p in (tmp_path / "out").glob("0*.png")}
    before = {name: (pixels(p), p.stat().st_mtime_ns) for name, p in files.items()}
    files["0002.png"].unlink()
    files["0004.png"].unlink()
    assert main(command) == 0
    assert record(tmp_path / "out")["finished"]
    for name, (shown, written) in before.items():
        assert np.array_equal(pixels(files[name]), shown), name
        assert (files[name].stat().st_mtime_ns == written) == (name not in ("0002.png", "0004.png")), name


def test_a_finished_run_is_left_as_it_is(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = world.command("--out", str(tmp_path / "out"))
    assert main(command) == 0
    written = (tmp_path / "out" / "0000.png").stat().st_mtime_ns
    (tmp_path / "out" / "sheet.png").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert (tmp_path / "out" / "0000.png").stat().st_mtime_ns == written
    assert (tmp_path / "out" / "sheet.png").exists()
    assert "1 picture in" in capsys.readouterr().out


def interrupt_when(path: Path, seconds: float = 300) -> threading.Thread:
    """Send this process what Ctrl-C sends, as soon as a file is there."""

    def watch() -> None:
        end = time.monotonic() + seconds
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_whole_files_and_the_same_command_finishes_the_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--count", "5", "--batch-size", "1")
    command, out = world.command("--out", str(tmp_path / "out"), *settings), tmp_path / "out"
    thread = interrupt_when(out / "0001.png")
    assert main(command) == 130
    thread.join()
    assert "the same command goes on" in capsys.readouterr().err

    run = record(out)
    assert not run["finished"]
    assert 1 <= run["pictures_written"] == len(run["pictures"]) < 5
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    for picture in run["pictures"]:
        assert picture["sha256"] == hashlib.sha256((out / picture["file"]).read_bytes()).hexdigest()
    kept = {p["file"]: (out / p["file"]).stat().st_mtime_ns for p in run["pictures"]}

    assert main(command) == 0
    assert record(out)["finished"]
    assert all((out / name).stat().st_mtime_ns == written for name, written in kept.items())
    assert main(world.command("--out", str(tmp_path / "whole"), *settings)) == 0
    for i in range(5):
        assert np.array_equal(pixels(out / f"{i:04d}.png"), pixels(tmp_path / "whole" / f"{i:04d}.png")), i


def test_without_out_the_folder_is_named_after_the_command(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = world.command("--prompt", "Anna, smiling!")
    assert main(command) == main(command) == 0
    (only,) = (tmp_path / "runs").iterdir()
    assert only.name.startswith("anna-smiling-")
    assert main([*command, "--seed", "1"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_options_override_the_configuration_file(world: World, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("prompt: from the file\nid_scale: 0.5\nsteps: 9\nguidance: 2\nsize: 24x16\n")
    words = world.command()
    for option in ("--prompt", "--size"):
        at = words.index(option)
        del words[at : at + 2]
    assert main([*words, "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    run = record(tmp_path / "out")
    assert (run["command"]["prompt"], run["command"]["id_scale"]) == ("from the file", 0.5)
    assert (run["run"]["settings"]["steps"], run["run"]["settings"]["guidance"]) == (2, 2.0)
    assert pixels(tmp_path / "out" / "0000.png").shape == (16, 24, 3)


def test_the_settings_that_lie_beside_a_model_hold_where_none_are_given(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "sd", tmp_path / "model")
    (tmp_path / "model" / "idgen.json").write_text('{"num_inference_steps": 3, "guidance_scale": 1.5}')
    words = world.command("--model", str(tmp_path / "model"), "--adapter", str(world.root / "sd.safetensors"))
    at = words.index("--steps")
    del words[at : at + 2]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    settings = record(tmp_path / "out")["run"]["settings"]
    assert (settings["steps"], settings["guidance"]) == (3, 1.5)


def test_an_identity_file_takes_the_place_of_a_photo(world: World, tmp_path: Path) -> None:
    who = tmp_path / "who.safetensors"
    vector = np.eye(ENCODER_DIM, dtype=np.float32)[0]
    Identity.from_vector(vector, load_encoder(str(world.encoder)).id).save(who)
    assert main(world.command("--face", str(who), "--out", str(tmp_path / "out"))) == 0
    assert main(world.command("--out", str(tmp_path / "photo"))) == 0
    assert not np.array_equal(pixels(tmp_path / "out" / "0000.png"), pixels(tmp_path / "photo" / "0000.png"))
    # There is no face to show beside the pictures.
    assert pixels(tmp_path / "out" / "sheet.png").shape[1] < pixels(tmp_path / "photo" / "sheet.png").shape[1]


def published(world: World, folder: Path, card: dict[str, object] | None) -> Path:
    """The adapter as others publish theirs: nothing in the weights' metadata, and ``card`` beside them."""
    file = folder / "ip-adapter-faceid.safetensors"
    save_file(load_file(world.root / "sd.safetensors"), file)
    if card is not None:
        file.with_suffix(".json").write_text(json.dumps(card))
    return file


def test_a_published_adapter_asks_for_its_encoder_and_runs_with_it(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(world.root / "sd"), "--adapter", str(published(world, tmp_path, None))]
    command = world.command(*words, "--out", str(tmp_path / "out"))
    assert main(command) == 0
    assert main(world.command("--out", str(tmp_path / "own"))) == 0
    assert np.array_equal(pixels(tmp_path / "out" / "0000.png"), pixels(tmp_path / "own" / "0000.png"))
    capsys.readouterr()
    at = command.index("--encoder")
    assert main([*command[:at], *command[at + 2 :]]) == 2
    assert "does not say whose face vectors it reads" in capsys.readouterr().err


def test_a_card_that_names_the_encoder_without_a_hash_is_enough(world: World, tmp_path: Path) -> None:
    card = {"base_model": "sd", "encoder": "first", "num_tokens": 4, "licence": "for tests"}
    words = ["--model", str(world.root / "sd"), "--adapter", str(published(world, tmp_path, card))]
    assert main(world.command(*words, "--out", str(tmp_path / "out"))) == 0


def test_a_photo_of_somebody_else_is_left_out_and_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brighter, smaller, stranger = tmp_path / "b.png", tmp_path / "s.png", tmp_path / "stranger.safetensors"
    astronaut().point(lambda v: min(255, v + 20)).save(brighter)
    astronaut().resize((400, 400), Image.Resampling.LANCZOS).save(smaller)
    vector = np.eye(ENCODER_DIM, dtype=np.float32)[0]
    Identity.from_vector(vector, load_encoder(str(world.encoder)).id).save(stranger)
    photos = [w for p in (world.photo, brighter, stranger, smaller) for w in ("--face", str(p))]
    assert main(world.command(*photos, "--out", str(tmp_path / "out"))) == 0
    assert f"{stranger} is unlike the other photos" in capsys.readouterr().err
    assert [p["kept"] for p in record(tmp_path / "out")["run"]["photos"]] == [True, True, False, True]


def test_of_two_faces_the_one_that_is_meant_is_used(world: World, tmp_path: Path) -> None:
    both = Image.new("RGB", (1024, 512))
    both.paste(astronaut(), (0, 0))
    both.paste(astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    both.save(tmp_path / "both.png")
    for which in ("left", "right", "0"):
        words = ("--face", str(tmp_path / "both.png"), "--which", which)
        assert main(world.command(*words, "--out", str(tmp_path / which))) == 0
    left, right, first = (pixels(tmp_path / w / "0000.png") for w in ("left", "right", "0"))
    assert not np.array_equal(left, right)
    assert np.array_equal(left, first)


def test_a_mistyped_value_is_answered_before_anything_heavy_is_imported() -> None:
    script = (
        "import sys; from idgen.cli import main\n"
        "code = main(['generate', '--face', 'x', '--prompt', 'x', '--count', '-1'])\n"
        "assert code == 2 and not {'torch', 'diffusers', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--count must be between 1 and 100000, got -1" in done.stderr


def test_mini_makes_portraits_from_a_photo_and_a_prompt(tmp_path: Path) -> None:
    photo = tmp_path / "astronaut.png"
    astronaut().save(photo)
    command = ["generate", "--face", str(photo), "--prompt", "a photo of a smiling woman"]
    assert main([*command, "--steps", "8", "--out", str(tmp_path / "out")]) == 0
    run = record(tmp_path / "out")
    assert run["run"]["model"] == "mini"
    assert run["pictures_written"] == 4
    assert sum(p["face_found"] for p in run["pictures"]) >= 3
    assert json.loads(mini.ADAPTER.with_suffix(".json").read_text())["encoder"] == run["command"]["encoder"]
