"""Nobody who refused is trained or sampled."""

from pathlib import Path

import numpy as np
import pytest
from generating import World, build_world
from training_runs import add_one_person, lora_command
from transformers import CLIPTokenizer

from idgen.blocklist import VARIABLE, Blocklist
from idgen.cli import main
from idgen.encoders.arcface import mini_encoder
from idgen.faces.detect import load_detector
from idgen.identity import Identity
from idgen.reference import read_reference
from idgen.tuning.samples import may_be_drawn

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    world = build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    add_one_person(world)
    return world


@pytest.fixture
def ann(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Identity:
    """The person of these photos, who is on the user's list."""
    photos = sorted((world.root / "photos").iterdir())[:1]
    identity = read_reference(photos, load_detector("mini"), [mini_encoder()]).identities[mini_encoder().id]
    listed = Blocklist(path=tmp_path / "refused.safetensors")
    listed.add(identity, "Ann")
    listed.save()
    monkeypatch.setenv(VARIABLE, str(listed.path))
    return identity


@pytest.mark.usefixtures("ann")
def test_no_lora_is_trained_of_somebody_who_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(lora_command(world, tmp_path / "run", "encoder=mini", "judge=judge")) == 2
    assert "this is 'Ann', who refused" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_samples_leave_them_out_and_draw_the_others(ann: Identity) -> None:
    encoder = mini_encoder()
    assert not may_be_drawn(ann, encoder)
    away = Identity.from_vector(-np.asarray(ann.face_vector.value), encoder.id)
    assert may_be_drawn(away, encoder)
    elsewhere = Identity.from_vector(np.eye(8)[0], "other@0123456789ab")
    assert may_be_drawn(elsewhere, encoder)  # cannot be compared
