"""`idgen train recognizer` with every head and backbone, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from face_tables import write_table
from recognizer_runs import CONFIGS, arguments, lines, load_program, people

from idgen.cli import main
from idgen.config import from_mapping, program_arguments, read_yaml
from idgen.data.images import FaceTable, split_people
from idgen.recognition.corpus import labelled_faces, read_sources
from idgen.recognition.heads import heads
from idgen.recognition.networks import write_backbone


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred people of three pictures."""
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", *people(100, 3))


@pytest.fixture(scope="module")
def tables(faces: Path) -> tuple[FaceTable, FaceTable]:
    return split_people(labelled_faces(read_sources([faces]))[0])


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return load_program()


def read(program: SimpleNamespace, out: Path, *settings: str) -> Any:
    words = arguments(Path("unread"), out, *settings)[2:]
    return program_arguments(program.RecognizerConfig, "", words).config


def trained(
    program: SimpleNamespace, tables: tuple[FaceTable, FaceTable], out: Path, *settings: str
) -> dict[str, torch.Tensor]:
    """The weights after a run without reading and export."""
    config = read(program, out, *settings)
    program.check(config)
    return program.train(program.TrainingRun(out, config), config, *tables)[0]


@pytest.mark.parametrize("head", sorted(heads))
def test_every_head_trains_the_network(
    program: SimpleNamespace, tables: tuple[FaceTable, FaceTable], tmp_path: Path, head: str
) -> None:
    trained(program, tables, tmp_path, f"head={head}", "pictures_each=4")
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / "train.jsonl"))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    moments = state["optimizers"][1]["state"]  # of AdamW
    assert len(moments) > 10
    assert all(moment["exp_avg"].isfinite().all() for moment in moments.values())
    assert sum(bool(moment["exp_avg"].any()) for moment in moments.values()) > 10


SHAPES = {
    "mobilefacenet": ("widths=[32,32]", "blocks=[1,1,1]"),
    "iresnet18": ("widths=[32,32,32,32,32]", "blocks=[1,1,1,1]"),
    "small_resnet": ("widths=[32,32,32,32]", "blocks=[1,1,1]"),
}


@pytest.mark.parametrize("backbone", SHAPES)
def test_every_backbone_trains_and_begins_with_given_weights(
    program: SimpleNamespace, tables: tuple[FaceTable, FaceTable], tmp_path: Path, backbone: str
) -> None:
    shape = (f"backbone={backbone}", *SHAPES[backbone], "steps=1", "batch_size=4", "ema_decay=0")
    first = trained(program, tables, tmp_path / "first", *shape)
    network = program.build_network(read(program, tmp_path, *shape))
    network.load_state_dict(first)
    write_backbone(network, tmp_path / "start.safetensors", {"dim": "8"})
    still = ("optimizer=sgd", "sgd_rate=1e-30", "sgd_decay=0.0", "seed=7")
    start = f"start={tmp_path / 'start.safetensors'}"
    second = trained(program, tables, tmp_path / "second", *shape, *still, start)
    weights = [name for name, _ in network.named_parameters()]
    for name in weights:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-20)
    other = trained(program, tables, tmp_path / "third", *shape, *still)
    assert not all(torch.equal(first[name], other[name]) for name in weights)


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(["train", "recognizer", *words]) == 2
    return capsys.readouterr().err.removeprefix("idgen: ").strip()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["head=arcfase"], "no head called 'arcfase'; did you mean 'arcface'?"),
        (["backbone=iresnet5"], "no backbone called 'iresnet5'; did you mean 'iresnet50'?"),
        (["margin=1.5"], "margin must be in [0, 1) and scale positive and finite, got 1.5 and 64.0"),
        (["widths=[24,64]"], "widths must be multiples of 32, got (24, 64)"),
        (["blocks=[1]"], "widths and blocks name the same stages, got (32, 64) and (1,)"),
        (
            ["head=triplet"],
            "the head triplet compares pictures of a person: pictures_each must be at least 2",
        ),
        (["pictures_each=5"], "batch_size must be at least 2 and a multiple of pictures_each (5), got 8"),
        (["centre_share=0.5"], "a share of the centres (centre_share) needs optimizer: sgd, got muon"),
        (["centre_share=2.0", "optimizer=sgd"], "the share of the centres must be in (0, 1], got 2.0"),
        (
            ["drops=[0.5]"],
            "drops are shares of the steps, in (0, 1), for schedule: steps alone; got [0.5] and",
        ),
        (["start=nothing.onnx"], "nothing.onnx is a finished graph, which cannot be trained"),
        (["pairs=nothing.csv", "pairs_pictures=x"], "no such file: nothing.csv"),
        (["match_histogram=nothing"], "no such "),
        (["erase_share=2.0"], "erase_share must be in [0, 1], got 2.0"),
        (["adam_rate=.nan"], "adam_rate must be positive and finite, got nan"),
        (["muon_rate=.inf"], "muon_rate must be positive and finite, got inf"),
        (["sgd_rate=0.0"], "sgd_rate must be positive and finite, got 0.0"),
        (["weight_decay=-0.1"], "weight_decay must be from 0 up and finite, got -0.1"),
        (["warmup_steps=-1"], "warmup_steps must be from 0 up and finite, got -1"),
        (["seed=-1"], "seed must be from 0 to 8796093022207, got -1"),
        (["seed=8796093022208"], "seed must be from 0 to 8796093022207, got 8796093022208"),
        (["clip=.nan"], "clip must be positive"),
        (
            ["pairs_pictures=x"],
            "pairs_pictures says where the pictures of pairs lie: give both, or pairs alone",
        ),
        (["pairs=nothing.csv"], "pairs_pictures says where the pictures of pairs lie: give both"),
        (["pairs=nothing.bin", "pairs_pictures=x"], "pairs_pictures says where the pictures of pairs lie"),
        (["steps=0"], "steps must be at least 1, got 0"),
        (["scale=.nan"], "margin must be in [0, 1) and scale positive and finite, got 0.35 and nan"),
        (["views.max_rotation_deg=.nan"], "views: max_rotation_deg must be in [0, 180], got nan"),
        (["views.max_scale=-5.0"], "views: max_scale must be in [0, 0.5], got -5.0"),
        (["epochs=0"], "epochs must be at least 1, got 0"),
        (["haed=arcface"], "config.haed is not a setting; did you mean 'head'?"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    assert refusal(capsys, arguments(faces, tmp_path / "run", *settings)).startswith(message)
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_used_is_refused(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    missing = refusal(capsys, arguments(tmp_path / "nothing", out))
    assert missing.startswith("no such ")
    assert missing.endswith(f": {tmp_path / 'nothing'}")
    monkeypatch.delenv("IDGEN_FACES", raising=False)
    nowhere = refusal(capsys, arguments(faces, out)[2:])
    assert nowhere.startswith("faces_train.parquet is needed: set IDGEN_FACES")
    assert not out.exists()
    few = write_table(tmp_path / "few.parquet", *people(20, 2))
    assert refusal(capsys, arguments(few, tmp_path / "few")) == (
        "at least 10 people have to be held out to choose on, got 2"
    )
    twice = refusal(capsys, arguments(faces, out, f"data=[{faces},{faces}]")[2:])
    assert twice == f"data names {faces} twice; each of its people would count as two"
    images, names = people(4, 1)
    small = [pixels[:48, :64] for pixels in images]
    faceless = write_table(tmp_path / "faceless.parquet", small, names)
    assert (
        refusal(capsys, arguments(faceless, tmp_path / "faceless"))
        .splitlines()[-1]
        .endswith(
            "no face was found in any of 4 pictures; crops of faces that are aligned already have 112 x 112 "
            "pixels, or 128 x 128 with 8 around the crop"
        )
    )
    alone = write_table(tmp_path / "alone.parquet", images, ["x"] * 4)
    assert refusal(capsys, arguments(alone, tmp_path / "alone")) == (
        f"{alone} shows one person; two are needed to compare"
    )
    images, names = people(100, 1)
    single = write_table(tmp_path / "single.parquet", images, names)
    assert refusal(capsys, arguments(single, tmp_path / "single")) == (
        "of the 10 people held out to choose on, too few have two pictures to compare"
    )


def test_pairs_of_pictures_need_two_of_each_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, names = people(50, 1)
    more, others = people(50, 3, seed=5)
    mixed = write_table(
        tmp_path / "mixed.parquet", [*images, *more], [*names, *(f"q{name}" for name in others)]
    )
    settings = ("head=supcon", "pictures_each=4", "steps=1")
    said = refusal(capsys, arguments(mixed, tmp_path / "mixed", *settings))
    assert said.endswith(
        "of 90 people have one picture, and the head supcon compares pictures of a person: "
        "leave_out_singles: true leaves them out"
    )
    # nothing was trained: the same folder takes the corrected command
    words = arguments(mixed, tmp_path / "mixed", *settings, "leave_out_singles=true")
    assert main(["train", "recognizer", *words]) == 0
    assert "holds a run with other settings" in refusal(
        capsys, arguments(mixed, tmp_path / "mixed", "steps=1")
    )


@pytest.mark.parametrize("damage", [b"junk", b"", bytes(range(256)) * 8])
def test_a_damaged_checkpoint_is_named(
    program: SimpleNamespace, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    program.main(arguments(faces, tmp_path / "run", "steps=1"))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(damage)
    said = refusal(capsys, arguments(faces, tmp_path / "run", "steps=1"))
    assert said.startswith(f"{tmp_path / 'run' / 'checkpoint.pt'} is damaged; delete it to begin anew")


def test_epochs_stand_for_steps(program: SimpleNamespace, tmp_path: Path) -> None:
    faces = write_table(tmp_path / "faces.parquet", *people(100, 2))
    program.main(arguments(faces, tmp_path / "run", "epochs=2", "batch_size=64", "steps=99"))
    assert [line["step"] for line in lines(tmp_path / "run" / "train.jsonl")] == list(range(1, 7))  # 180 / 64


def test_a_folder_with_another_run_is_refused(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 1\n")
    said = refusal(capsys, arguments(faces, tmp_path / "run"))
    assert "holds a run with other settings" in said


def test_a_run_does_not_go_on_with_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, names = people(100, 2)
    faces, out = write_table(tmp_path / "faces.parquet", images, names), tmp_path / "run"
    assert main(["train", "recognizer", *arguments(faces, out)]) == 0
    before = (out / "data.json").read_bytes()
    write_table(faces, images[:190], names[:190])
    assert refusal(capsys, arguments(faces, out)) == (
        f"{out} was begun with other pictures (pictures: 180 there, 170 now; people: 90 there, 85 now); "
        "choose another --out, or give the data of that run to go on with it"
    )
    write_table(faces, [*images[:-1], images[0]], names)  # as many, and one is another
    assert "was begun with other pictures (sha256: " in refusal(capsys, arguments(faces, out))
    assert (out / "data.json").read_bytes() == before
    write_table(faces, images, names)
    assert main(["train", "recognizer", *arguments(faces, out)]) == 0
    (out / "data.json").write_text("{")
    assert refusal(capsys, arguments(faces, out)) == (
        f"{out / 'data.json'} cannot be read, so nobody knows the data; choose another --out"
    )


@pytest.mark.parametrize("preset", ["judge", "recognizer", "recognizer_small", "arcface_r50"])
def test_the_presets_fit_together(program: SimpleNamespace, preset: str) -> None:
    program.check(from_mapping(program.RecognizerConfig, read_yaml(CONFIGS / f"{preset}.yaml")))


def test_the_judge_is_still_made_in_the_same_way(program: SimpleNamespace) -> None:
    """What the embedded judge was trained with."""
    config = from_mapping(program.RecognizerConfig, read_yaml(CONFIGS / "judge.yaml"))
    head = program.head_of(config, 3)
    assert (head.kind, head.margin, head.scale) == ("cosface", 0.35, 32.0)
    with torch.device("meta"):
        network = program.build_network(config)
    assert sum(p.numel() for p in network.parameters()) == 2_014_976
    muon, adam = program.optimizers_of(network, head, config)
    assert (type(muon).__name__, muon.defaults["lr"]) == ("Muon", 0.02)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (3e-3, 0.05)
    assert (config.steps, config.mirrored, config.stored, config.erase_share) == (3200, True, "int8", 0.3)
