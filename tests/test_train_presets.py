"""Every preset, three steps on tiny models of three kinds: each term counts, each weight trains."""

import math
from pathlib import Path

import pytest
import yaml
from generating import World, build_world
from training_runs import (
    CONFIGS,
    adapter_command,
    add_one_person,
    add_people,
    check_every_weight_trains,
    log_of,
    lora_command,
)
from transformers import CLIPTokenizer

from idgen.cli import main

LORA = ("dreambooth", "portraitbooth", "id_booth", "id_aligner_lora", "disenbooth", "sefi_ide")
pytestmark = pytest.mark.usefixtures("faces_are_remembered")
ADAPTER = ("ip_adapter_faceid", "id_aligner_adapter", "masterweaver")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    world = build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    add_one_person(world)
    add_people(world)
    return world


@pytest.mark.parametrize("model", ["sd", "sd2", "sdxl"])  # eps, v, eps with two text encoders
@pytest.mark.parametrize("preset", [*LORA, *ADAPTER])
def test_every_preset_trains_every_weight_it_names(
    world: World, tmp_path: Path, model: str, preset: str
) -> None:
    command = lora_command if preset in LORA else adapter_command
    always = ("drop.both=0.0", "drop.identity=0.0") if preset in ADAPTER else ()
    # the tiny tokenizer spells the words, and takes few letters
    if preset == "sefi_ide":
        always = ("prompt=sks man", "stages.words=sks")
    if preset == "masterweaver":  # tiny models read the text in one other block; all rows are to be in range
        always = (*always, "prompt=a man", "terms.editing.edits=[old, sad]",
                  "terms.editing.layers=up_blocks.0", "terms.editing.timesteps=[0.0, 1.0]")  # fmt: skip
    always = (*always, "rollout.steps=3")
    assert main(command(world, tmp_path / "run", *always, model=model, preset=preset)) == 0
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == [1, 2, 3]
    terms = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())["terms"]
    for line in log:
        for term in terms:
            assert math.isfinite(line[term]), (term, line)
            assert line[term], (term, line)  # the contrastive one is a cosine: it may be negative
    check_every_weight_trains(tmp_path / "run")
