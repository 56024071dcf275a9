"""Wrong input to `idgen generate`: one clear line on stderr, exit code 2, nothing written, nothing lost."""

import os
import pickle
import re
import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from generating import World, astronaut, build_world, record
from PIL import Image
from transformers import CLIPTokenizer

from idgen.cli import main
from idgen.identity import Identity

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    return build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refuse(capsys: pytest.CaptureFixture[str], command: list[str], message: str) -> None:
    """The command ends with exit code 2 and one line that says ``message`` (a regular expression)."""
    assert main(command) == 2
    check_line(capsys.readouterr().err, message)


def check_line(stderr: str, message: str) -> None:
    """The last line names the mistake, and there is no traceback; a progress bar may stand before it."""
    *before, last = stderr.replace("\r", "\n").splitlines()
    assert all(" pictures: " in line or "step/s]" in line or not line for line in before), stderr
    assert re.match(r"idgen( generate)?: ", last), stderr
    assert re.search(message, last), stderr


def test_no_such_photo(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(capsys, world.command("--face", "nobody.jpg", "--out", str(out)), "no such file: nobody.jpg")
    assert not out.exists()


def test_a_file_that_is_no_picture(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("letter.jpg")
    photo.write_text("Dear Sir or Madam")
    refuse(capsys, world.command("--face", str(photo), "--out", str(out)), r"letter\.jpg is not a picture")
    assert not out.exists()


def test_a_truncated_photo(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("half.png")
    photo.write_bytes(world.photo.read_bytes()[:100_000])
    refuse(
        capsys, world.command("--face", str(photo), "--out", str(out)), r"half\.png is damaged or cut short"
    )
    assert not out.exists()


def write_bomb(path: Path, side: int) -> None:
    """A real PNG of side x side black pixels, one bit each, in some hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_decompression_bomb(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("bomb.png")
    write_bomb(photo, 30_000)
    assert photo.stat().st_size < 1_000_000
    refuse(capsys, world.command("--face", str(photo), "--out", str(out)), r"30000 x 30000 pixels|too large")
    assert not out.exists()


def test_a_photo_without_a_face(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("wall.png")
    Image.linear_gradient("L").resize((400, 300)).save(photo)
    refuse(capsys, world.command("--face", str(photo), "--out", str(out)), r"wall\.png: no face found")
    assert not out.exists()


def test_a_photo_of_several_people(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("both.png")
    both = Image.new("RGB", (1024, 512))
    both.paste(astronaut(), (0, 0))
    both.paste(astronaut(), (512, 0))
    both.save(photo)
    message = r"both\.png shows 2 faces, boxes .* 0: .* 1: .*--which largest\|left\|right\|N"
    refuse(capsys, world.command("--face", str(photo), "--out", str(out)), message)
    refuse(capsys, world.command("--face", str(photo), "--which", "2"), "no face number 2")
    assert not out.exists()


def test_a_face_of_twelve_pixels(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = out.with_name("far.png")
    side = round(512 * 12 / 92)  # the astronaut's face is 92 pixels wide
    far = Image.new("RGB", (160, 160), "grey")
    far.paste(astronaut().resize((side, side), Image.Resampling.LANCZOS), (48, 48))
    far.save(photo)
    message = r"largest face in .*far\.png is 1\d pixels wide; at least|far\.png: no face found"
    refuse(capsys, world.command("--face", str(photo), "--out", str(out)), message)
    assert not out.exists()


def test_an_identity_of_another_encoder(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    who = out.with_name("who.safetensors")
    Identity.from_vector([1.0] + [0.0] * 511, "stranger@0123456789ab").save(who)
    refuse(capsys, world.command("--face", str(who), "--out", str(out)), "stranger@0123456789ab.* first@")
    assert not out.exists()


def test_a_folder_that_holds_another_run(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(world.command("--out", str(out))) == 0
    before = {p: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    for words, difference in {
        ("--seed", "5"): "seed: 0 there, 5 now",
        ("--prompt", "a dog"): "prompt: 'a face' there, 'a dog' now",
        ("--count", "2"): "count: 1 there, 2 now",
    }.items():
        refuse(capsys, world.command(*words, "--out", str(out)), f"holds another run .*{difference}")
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_that_holds_other_things(
    world: World, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refuse(capsys, world.command("--out", str(out)), r"holds other files \(thesis\.tex\) and no run")
    refuse(capsys, world.command("--out", str(out / "thesis.tex")), "is a file")
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_adapter_for_another_base(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(world.root / "sd"), "--adapter", str(world.root / "sd2.safetensors")]
    refuse(
        capsys,
        world.command(*words, "--out", str(out)),
        r"sd2.*\b32\b.*\b16\b|sd2.*\b16\b.*\b32\b|width 32.*16",
    )
    assert not out.exists()


def test_a_model_without_an_adapter(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = world.command("--model", str(world.root / "sd"), "--out", str(out))
    refuse(capsys, command, "no adapter: sd knows no faces")
    assert not out.exists()


def test_an_encoder_that_is_not_the_adapters(
    world: World, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = world.command("--encoder", str(world.judge), "--out", str(out))
    refuse(capsys, command, r"first@\w{12}.* not .*second@\w{12}|second@\w{12}.*first@\w{12}")
    assert not out.exists()


def test_a_judge_that_conditions(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = world.command("--judge", str(world.encoder), "--out", str(out))
    refuse(capsys, command, "judge must be another encoder than first@")


class _Code:
    """What a malicious pickle holds: unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_in_it(
    world: World, out: Path, capsys: pytest.CaptureFixture[str], writer: str
) -> None:
    file, marker = out.with_name("adapter.bin"), out.with_name("the-code-ran")
    if writer == "torch":
        torch.save({"image_proj": _Code(marker)}, file)
    else:
        file.write_bytes(pickle.dumps({"image_proj": _Code(marker)}))
    words = ["--model", str(world.root / "sd"), "--adapter", str(file)]
    refuse(capsys, world.command(*words, "--out", str(out)), r"adapter\.bin is a pickle with code in it")
    assert not marker.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], "--stepz is not an option; did you mean '--steps'"),
        (["--steps", "0"], "--steps must be between 1 and 1000, got 0"),
        (["--count", "-1"], "--count must be between 1 and 100000, got -1"),
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
        (["--seed", "-3"], "--seed must be between 0"),
        (["--id-scale", "nan"], "--id-scale must be between 0 and 10, got nan"),
        (["--id-start", "0.5", "--id-end", "0.5"], "--id-end must be above --id-start"),
        (["--guidance", "-1"], "--guidance must be between 0 and 100"),
        (["--batch-size", "0"], "--batch-size must be between 1"),
        (["--size", "100"], "--size must be WIDTH or WIDTHxHEIGHT in multiples of 8 pixels, got '100'"),
        (["--which", "middle"], "--which must be only, largest, left, right or a number"),
        (["--precision", "float8"], "precision must be one of auto, float32"),
        (["--device", "toaster"], "--device must be auto, cpu, cuda"),
        (["--detector", "insightfase"], "no detector called 'insightfase'; did you mean 'insightface'"),
        (["--encoder", "nowhere.onnx"], r"nowhere\.onnx"),
        (["--model", "not a model"], "no model 'not a model'"),
        (["--config", "nowhere.yaml"], r"cannot read the configuration nowhere\.yaml"),
    ],
)
def test_a_setting_that_cannot_be(
    world: World, out: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    refuse(capsys, world.command(*words, "--out", str(out)), message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "config.stepz is not a setting; did you mean 'steps'"),
        ("steps: lots", "config.steps must be int, got 'lots'"),
        ("- steps", "must hold settings as `name: value`"),
        ("steps: [", "is not YAML"),
    ],
)
def test_a_configuration_that_cannot_be(
    world: World, out: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    config = out.with_name("settings.yaml")
    config.write_text(text)
    command = world.command("--config", str(config), "--out", str(out))
    at = command.index("--steps")
    del command[at : at + 2]
    refuse(capsys, command, message)


def test_missing_face_and_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    refuse(capsys, ["generate"], "--face and --prompt must be given")


def test_a_model_that_is_not_on_disk_while_offline(
    world: World, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    words = ["--model", "some-lab/some-model", "--adapter", str(world.root / "sd.safetensors")]
    message = "the model some-lab/some-model is not on this disk, .*`hf download some-lab/some-model`"
    refuse(capsys, world.command(*words, "--out", str(out)), message)
    assert not out.exists()


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Like a full disk: the system refuses to make any file longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_too_full_for_the_record(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_of_at_most(600):
        refuse(capsys, world.command("--out", str(out)), r"run\.json was not written: File too large")
    assert not out.exists()


def test_a_disk_too_full_for_a_picture(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = world.command("--size", "64", "--count", "2", "--out", str(out))
    with files_of_at_most(8000):
        refuse(capsys, command, r"0000\.png was not written: File too large")
    assert [p.name for p in out.iterdir()] == ["run.json"]
    assert record(out)["pictures_written"] == 0
    assert main(command) == 0  # once there is room again, the same command finishes the run
    assert record(out)["finished"]


def test_a_disk_too_full_for_the_sheet(world: World, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_of_at_most(20_000):
        refuse(capsys, world.command("--out", str(out)), r"sheet\.png was not written: File too large")
    assert sorted(p.name for p in out.iterdir()) == ["0000.png", "run.json"]
    assert record(out)["finished"]
