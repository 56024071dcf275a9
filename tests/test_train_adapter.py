"""`idgen train adapter`, run as a user runs it, on tiny models of the real kinds and a few people."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from generating import World, build_world
from tiny_wplus import save_published
from training_runs import adapter_command, add_people, check_every_weight_trains, log_of
from transformers import CLIPTokenizer

from idgen.adapters.checkpoint import read_adapter
from idgen.cli import main
from idgen.data.sampler import PersonSampler
from idgen.encoders.arcface import load_encoder
from idgen.encoders.wplus import load_wplus
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.pipeline import IDPipeline

FILE = Path("adapter") / "faceid.safetensors"

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    """Models, encoders, and a folder of four people: one real, three who do not exist."""
    world = build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    add_people(world)
    return world


TERMS = ("cosine", "triplet", "background", "preservation")


@pytest.mark.parametrize(
    ("model", "terms"), [*(("sd", (term,)) for term in TERMS), ("sd2", TERMS), ("sdxl", TERMS)]
)
def test_every_weight_of_the_file_trains(
    world: World, tmp_path: Path, model: str, terms: tuple[str, ...]
) -> None:
    extra = (*(f"terms.{term}.weight=1.0" for term in terms), "drop.both=0.0", "drop.identity=0.0")
    assert main(adapter_command(world, tmp_path / "run", *extra, model=model)) == 0
    for line in log_of(tmp_path / "run"):
        for name in ("denoising", *terms):
            assert 0 < line[name] < math.inf, (name, line)
    assert any(name.endswith("to_v_ip.weight") for name in check_every_weight_trains(tmp_path / "run"))


def test_identity_terms_may_see_through_another_eye(world: World, tmp_path: Path) -> None:
    def similarity(*extra: str) -> float:
        folder = tmp_path / str(len(extra))
        settings = (
            "terms.cosine.weight=1.0",
            "optimizer.steps=1",
            "drop.identity=0.0",
            "drop.both=0.0",
            *extra,
        )
        assert main(adapter_command(world, folder, *settings)) == 0
        return log_of(folder)[0]["cosine/similarity"]

    assert similarity("id_encoder=judge") != similarity()


def test_the_adapter_opens_in_plain_diffusers_and_draws_the_same(world: World, tmp_path: Path) -> None:
    assert main(adapter_command(world, tmp_path / "run", "optimizer.learning_rate=0.01")) == 0
    file = read_adapter(tmp_path / "run" / FILE)
    assert file.card.encoder == load_encoder(str(world.encoder)).id
    assert "train/adapter.py, 3 steps of 4: denoising" in file.card.training_run
    vector = torch.nn.functional.normalize(torch.randn(file.adapter.id_dim), dim=0)
    plain = StableDiffusionPipeline.from_pretrained(world.root / "sd")
    plain.load_ip_adapter(str(tmp_path / "run" / "adapter"), subfolder="", weight_name=FILE.name,
                          image_encoder_folder=None, low_cpu_mem_usage=False)  # fmt: skip
    ours = IDPipeline.from_pretrained(world.root / "sd")
    ours.load_adapter(file)
    for pipe in (plain, ours):
        pipe.set_progress_bar_config(disable=True)
    embeds = [torch.stack([torch.zeros_like(vector), vector])[:, None]]
    common = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    noise = torch.randn(1, 4, 8, 8)
    theirs = plain("a face", latents=noise, ip_adapter_image_embeds=embeds, **common).images
    who = Identity.from_vector(vector.numpy(), file.card.encoder)
    assert torch.allclose(ours("a face", latents=noise, identity=who, **common).images, theirs, atol=1e-4)
    assert not torch.allclose(ours("a face", latents=noise, **common).images, theirs, atol=1e-3)


def test_a_run_that_goes_on_equals_one_that_never_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    """Interrupted after its second step."""
    from idgen.tuning import optimize

    settings = ("optimizer.ema_decay=0.9", "optimizer.steps=5", "terms.triplet.weight=1.0",
                "optimizer.checkpoint_every=2")  # fmt: skip
    assert main(adapter_command(world, tmp_path / "whole", *settings)) == 0
    keep = optimize.Optimization.record

    def stop_at_3(self: optimize.Optimization, said: dict[str, float], **how: bool) -> None:
        keep(self, said, **how)
        if self.progress.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optimize.Optimization, "record", stop_at_3)
        assert main(adapter_command(world, tmp_path / "stopped", *settings)) == 130
    assert main(adapter_command(world, tmp_path / "stopped", *settings)) == 0
    assert [line["step"] for line in log_of(tmp_path / "stopped")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "whole" / FILE).read_bytes() == (tmp_path / "stopped" / FILE).read_bytes()


def test_pieces_do_not_change_the_loss(world: World, tmp_path: Path) -> None:
    """Also where the identity is left out in some rows, and in all of a piece."""
    settings = (
        "terms.triplet.weight=1.0", "terms.triplet.mining=semi-hard", "terms.background.weight=1.0",
        "terms.preservation.weight=1.0", "drop.both=0.3", "optimizer.steps=6",
    )  # fmt: skip
    assert main(adapter_command(world, tmp_path / "one", *settings)) == 0
    assert main(adapter_command(world, tmp_path / "pieces", *settings, "optimizer.accumulation=4")) == 0
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path / "pieces"), strict=True):
        for name in ("loss", "denoising", "triplet", "background", "preservation"):
            assert a[name] == pytest.approx(b[name], abs=2e-5), name


def test_people_set_aside_are_drawn_and_judged(world: World, tmp_path: Path) -> None:
    command = adapter_command(world, tmp_path / "run", "samples.every=3", "judge=judge", "encoder=mini")
    assert main(command) == 0
    assert (tmp_path / "run" / "samples" / "step-000003.png").exists()
    (drawn,) = [line for line in log_of(tmp_path / "run") if "face_found" in line]
    assert {"similarity/mini", "similarity/judge"} <= drawn.keys()


def test_mini_goes_on_from_its_own_adapter(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("start=auto", "optimizer.steps=1", "framing=auto", "encoder=mini")
    assert main([*adapter_command(world, tmp_path / "run", *settings), "--model", "mini"]) == 0
    made = read_adapter(tmp_path / "run" / FILE)
    assert made.adapter.num_tokens == 16
    assert made.card.licence == "research-only"  # as what it began with
    other = adapter_command(world, tmp_path / "other", *settings[:3], f"encoder={world.encoder}")
    refuse(capsys, [*other, "--model", "mini"], "reads face vectors of mini")


def refuse(capsys: pytest.CaptureFixture[str], command: list[str], *said: str) -> None:
    assert main(command) == 2
    last = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    for text in said:
        assert text in last, last


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("terms.prior.weight=1", "the term prior keeps a LoRA's model"),
        ("drop.text=0.99", "at most 1 together"),
        ("id_encoder=judge", "no term looks at faces, so none needs id_encoder judge"),
        ("held_out=1", "held_out must be in [0, 1)"),
        ("optimizer.batch_size=3", "not a multiple of pictures_per_person 2"),
        ("optimizer.batch_size=40", "20 people a batch are wanted, there are 3"),
        ("start=nowhere.safetensors", "nowhere.safetensors"),
        ("optimizer.accumulation=3", "cannot be cut into 3 equal parts"),
    ],
)
def test_settings_that_cannot_be(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    refuse(capsys, adapter_command(world, tmp_path / "run", setting), said)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_an_adapter_for_another_model_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = f"start={world.root / 'sd2.safetensors'}"
    refuse(capsys, adapter_command(world, tmp_path / "run", setting), "16", "32")


def test_a_dry_run_says_what_it_would_do(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*adapter_command(world, tmp_path / "run", "terms.cosine.weight=1"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "pictures of 3 people, 1 people set aside" in said
    assert "2 people with 2 pictures at 16 pixels; terms: denoising, cosine" in said
    assert "MiB of memory (weights" in said
    assert not (tmp_path / "run").exists()


def test_batches_hold_people_with_several_pictures() -> None:
    person = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])
    sampler = PersonSampler(person, people=2, pictures=3, seed=0)
    seen = []
    for step in range(2):
        rows = sampler.rows(step).reshape(2, 3)
        assert np.array_equal(rows, sampler.rows(step).reshape(2, 3))
        for group in rows:
            (who,) = set(person[group])
            seen.append(who)
            enough = (person == who).sum() >= 3
            assert len(set(group)) == (3 if enough else len(set(group)))
    assert sorted(seen) == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    assert sampler.another(3, rng) == 3
    assert {sampler.another(0, rng) for _ in range(40)} == {1, 2}
    with pytest.raises(ConfigError, match="5 people a batch are wanted, there are 4"):
        PersonSampler(person, people=5, pictures=1, seed=0)


@pytest.fixture(scope="module")
def wplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp("wplus") / "e4e.pt")


@pytest.mark.parametrize("model", ["sd", "sd2", "sdxl"])
def test_the_wplus_adapter_trains_in_two_stages(
    world: World, wplus: Path, tmp_path: Path, model: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    extra = (f"wplus={wplus}", "drop.both=0.0", "drop.identity=0.0")
    assert main(adapter_command(world, first, *extra, model=model, preset="wplus_stage1")) == 0
    assert "w_proj.proj_0.weight" in check_every_weight_trains(first)
    start = first / "adapter" / "wplus.safetensors"
    command = adapter_command(world, second, *extra, f"start={start}", model=model, preset="wplus_stage2")
    assert main(command) == 0
    for line in log_of(second):
        for name in ("denoising", "background", "preservation"):
            assert 0 < line[name] < math.inf, (name, line)
    assert not any(name.startswith("w_proj") for name in check_every_weight_trains(second))
    before, after = (read_adapter(run / "adapter" / "wplus.safetensors") for run in (first, second))
    assert (after.card.feature, after.card.encoder) == ("wplus", load_wplus(wplus).id)
    kept, moved = "w_proj.proj_0.weight", "wplus_adapter.1.to_v_wplus.weight"
    states = before.adapter.state_dict(), after.adapter.state_dict()
    assert torch.equal(states[0][kept], states[1][kept])
    assert not torch.equal(states[0][moved], states[1][moved])


def test_people_set_aside_are_drawn_from_their_codes(world: World, wplus: Path, tmp_path: Path) -> None:
    extra = (
        f"wplus={wplus}",
        "samples.every=3",
        "terms.background.weight=1",
        "terms.background.disturbance=mix",
    )
    assert main(adapter_command(world, tmp_path / "run", *extra, preset="wplus_stage1")) == 0
    assert (tmp_path / "run" / "samples" / "step-000003.png").is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["kind=wplus"], "kind wplus needs an encoder of codes"),
        (["wplus=x.pt"], "kind wplus needs an encoder of codes"),
        (["train_projection=false"], "train_projection false is for kind wplus"),
        (["kind=wplus", "wplus=x.pt"], "no such file: x.pt"),
        (["kind=wplus", "wplus=@", "terms.background.weight=1", "terms.background.disturbance=noise"],
         "W+ codes take shuffle or mix"),
    ],
)  # fmt: skip
def test_wrong_settings_of_the_wplus_road(
    world: World,
    wplus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    said: str,
) -> None:
    given = [setting.replace("@", str(wplus)) for setting in settings]
    refuse(capsys, adapter_command(world, tmp_path / "run", *given), said)


def test_an_adapter_of_face_vectors_is_no_first_stage(
    world: World, wplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(adapter_command(world, tmp_path / "face")) == 0
    extra = (f"wplus={wplus}", f"start={tmp_path / 'face' / FILE}")
    refuse(capsys, adapter_command(world, tmp_path / "run", *extra, preset="wplus_stage2"), "reads", "e4e")
