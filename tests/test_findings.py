"""What is found of a finished dataset: each number against a plain loop, and where it is told."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_dataset import make_dataset, picture

from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, StorageError
from idgen.report.write import read_report
from idgen.synth.counts import counts_of_attributes, quotas_of, yield_of
from idgen.synth.dataset import Dataset
from idgen.synth.embeddings import read_embeddings, write_embeddings
from idgen.synth.export.base import exporters
from idgen.synth.export.exporting import export_dataset
from idgen.synth.facts import facts_of, quantile
from idgen.synth.findings import write_findings
from idgen.synth.measuring import find, nearest_centres
from idgen.synth.shards import VECTORS_FACT, read_shards, write_shard

PEOPLE, EACH = 6, 4
REASONS = ("unlike", "attribute", "no_face")
DIM = 128


@pytest.fixture(scope="module")
def encoders() -> list[FaceEncoder]:
    return [mini_encoder(), judge_encoder()]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def vector(eye: int, person: int, number: int) -> np.ndarray:
    """Pictures of a person are about 0.6 alike; one of person 0 shows person 1."""
    whose = 1 if (person, number) == (0, 2) else person
    centre = np.random.default_rng([eye, whose]).standard_normal(DIM)
    return unit(centre + 0.8 * np.random.default_rng([eye, person, number]).standard_normal(DIM))


def row_of(person: int, number: int) -> dict[str, Any]:
    """Everybody's last picture is rejected for good; the first one was drawn twice."""
    is_kept = number < EACH - 1
    reason = REASONS[person % 3]
    rejections = {0: "unlike", EACH - 1: ",".join(["quality", reason])}.get(number, "")
    return {
        "identity": f"new_{person}", "person": person, "picture": number, "key": f"new_{person}_{number:03d}",
        "decision": "kept" if is_kept else reason, "seed": 10 * person + number,
        "attempts": 2 if rejections else 1, "rejections": rejections, "prompt": "a person",
        "pose": ("ahead", "left")[number % 2], "mood": "" if number == 1 else "glad",
        "similarity": 0.5 + number / 10 if number else None, "yaw": 10.0 * number, "smile": 0.25,
    }  # fmt: skip


def kept_vectors(eye: int) -> np.ndarray:
    return np.stack([vector(eye, person, number) for person in range(PEOPLE) for number in range(EACH - 1)])


PERSON = np.repeat(np.arange(PEOPLE), EACH - 1)


@pytest.fixture
def dataset(tmp_path: Path, encoders: list[FaceEncoder]) -> Path:
    """Six people in three shards, three kept pictures each."""
    folder = tmp_path / "made"
    folder.mkdir()
    about = {
        "models": [{"name": "mini", "role": "base model", "licence": "research only"}],
        "encoder_ids": [encoders[0].id], "judge": encoders[1].id, "detector": "mini",
        "adapter": {"base_model": "mini"}, "licences": {"mini": "research only"}, "seed": 7, "num_shards": 3,
        "sources": {"people": "pca"}, "rules": {"min_similarity": 0.258, "near_duplicate": None},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about))
    for shard in range(3):
        pairs = [(person, number) for person in (2 * shard, 2 * shard + 1) for number in range(EACH)]
        rows = [
            (row_of(*pair), picture(EACH * pair[0] + pair[1]) if pair[1] < EACH - 1 else None)
            for pair in pairs
        ]
        vectors = {
            row["key"]: {encoder.id: vector(eye, *pair) for eye, encoder in enumerate(encoders)}
            for pair, (row, data) in zip(pairs, rows, strict=True)
            if data is not None
        }
        write_shard(folder, shard, rows, facts={VECTORS_FACT: write_embeddings(folder, shard, vectors)})
    return folder


def gallery(encoders: list[FaceEncoder]) -> dict[str, dict[str, np.ndarray]]:
    """Strangers, a photo without a face, and by mini somebody who is person 3."""
    strangers = unit(np.random.default_rng(99).standard_normal((20, DIM)))
    known = unit(vector(0, 3, 0) + vector(0, 3, 1))[None]
    photos = np.concatenate([strangers, np.zeros((1, DIM), np.float32), known])
    return {"photos": {encoders[0].id: photos, encoders[1].id: strangers}}


def pairs_of(vectors: np.ndarray) -> tuple[list[float], list[float]]:
    within, between = [], []
    for i in range(len(vectors)):
        for j in range(i):
            kind = within if PERSON[i] == PERSON[j] else between
            kind.append(math.fsum(vectors[i].astype(float) * vectors[j].astype(float)))
    return within, between


# --- counts -----------------------------------------------------------------------------------------------


def test_the_yield_counts_each_attempt_once(dataset: Path) -> None:
    manifest = Dataset.open(dataset).manifest()
    found = yield_of(manifest)
    assert (found.planned, found.kept, found.drawn) == (24, 18, 36)
    assert found.kept_at_attempt == {"1": 12, "2": 6}
    assert found.missing == {"no_face": 2, "unlike": 2, "attribute": 2}
    assert found.rejected == {"no_face": 2, "unlike": 8, "quality": 6, "attribute": 2}
    assert found.kept + sum(found.rejected.values()) == found.drawn
    assert found.kept_of_drawn == 0.5


def test_quotas_are_counted_and_the_worst_value_is_named(dataset: Path) -> None:
    manifest = Dataset.open(dataset).manifest()
    assert counts_of_attributes(manifest) == {
        "pose": {"ahead": (12, 12), "left": (12, 6)},
        "mood": {"glad": (18, 12)},
    }
    assert quotas_of(manifest)["pose"] == {
        "planned": 24, "kept": 18, "least_reached": "left", "least_share": 0.5,
    }  # fmt: skip


def test_a_manifest_without_attempts_drew_everything_once(tmp_path: Path) -> None:
    found = yield_of(Dataset.open(make_dataset(tmp_path / "made")).manifest())
    assert (found.planned, found.kept, found.drawn) == (18, 15, 18)
    assert found.rejected == found.missing == {"no face": 3}


# --- vectors ----------------------------------------------------------------------------------------------


def test_vectors_are_read_as_they_were_written(dataset: Path, encoders: list[FaceEncoder]) -> None:
    for eye, encoder in enumerate(encoders):
        read = np.concatenate([read_embeddings(shard)[encoder.id] for shard in read_shards(dataset)])
        assert np.abs(read - kept_vectors(eye)).max() < 3e-4
        assert np.linalg.norm(read, axis=1) == pytest.approx(1, abs=1e-6)


def test_equal_vectors_give_equal_files(tmp_path: Path) -> None:
    vectors = {"a": {"x@0123456789ab": vector(0, 0, 0), "w@0123456789ab": vector(1, 0, 0)}}
    turned = {"a": dict(reversed(vectors["a"].items()))}
    assert write_embeddings(tmp_path, 0, vectors) == write_embeddings(tmp_path, 1, turned)
    with pytest.raises(ConfigError, match="the pictures of shard 00002 were seen by different encoders"):
        write_embeddings(tmp_path, 2, {**vectors, "b": {}})


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damaged_vectors_are_noticed(dataset: Path, encoders: list[FaceEncoder], harm: str) -> None:
    file = dataset / "shards" / "00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data if harm == "flip" else data[:-8])
    if harm == "remove":
        file.unlink()
    with pytest.raises(StorageError, match=r"shard 00001 of .* is damaged: 00001.safetensors"):
        find(dataset, encoders=encoders)


# --- what is measured -------------------------------------------------------------------------------------


def test_similarities_are_those_of_a_plain_loop(dataset: Path, encoders: list[FaceEncoder]) -> None:
    facts = facts_of(find(dataset, encoders=encoders))
    for eye, encoder in enumerate(encoders):
        said = facts["similarity"][encoder.id]
        for name, cosines in zip(
            ("within_people", "between_people"), pairs_of(kept_vectors(eye)), strict=True
        ):
            assert said[name]["pairs"] == len(cosines)
            assert said[name]["mean"] == pytest.approx(np.mean(cosines), abs=3e-4)
            assert said[name]["sd"] == pytest.approx(np.std(cosines), abs=3e-4)
            assert said[name]["highest"] == pytest.approx(max(cosines), abs=1e-3)
        within, between = pairs_of(kept_vectors(eye))
        low, high = sorted(within), sorted(between)
        assert said["within_people"]["5 %"] == pytest.approx(low[math.ceil(0.05 * len(low)) - 1], abs=1e-3)
        assert said["between_people"]["95 %"] == pytest.approx(
            high[math.ceil(0.95 * len(high)) - 1], abs=1e-3
        )
    assert facts["similarity"][encoders[0].id]["role"] == "conditioned the pictures"
    assert facts["similarity"][encoders[1].id]["role"] == "another eye"
    planned = facts["similarity"][encoders[0].id]["to_the_planned_person"]
    assert planned["mean"] == pytest.approx(0.65)  # 0.6 and 0.7 of everybody; one was not measured
    assert "to_the_planned_person" not in facts["similarity"][encoders[1].id]
    assert facts["diversity"]["sd_within_people"] == {
        "yaw": pytest.approx(np.std([0, 10, 20]), rel=1e-4),
        "smile": 0,
    }


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_the_nearest_centre_leaves_the_picture_itself_out(block: int) -> None:
    vectors = np.concatenate([kept_vectors(0), vector(0, 9, 9)[None]])
    person = np.append(PERSON, PEOPLE)
    own, other, who = nearest_centres(vectors, person, PEOPLE + 2, block=block)  # of the last nobody is there
    for row in range(len(vectors)):
        cosines = {}
        for number in range(PEOPLE + 1):
            others = [vectors[i] for i in range(len(vectors)) if person[i] == number and i != row]
            if others:
                centre = np.sum(np.array(others, float), axis=0)
                cosines[number] = float(centre @ vectors[row] / np.linalg.norm(centre))
        mine = cosines.pop(int(person[row]), math.nan)
        assert own[row] == pytest.approx(mine, abs=1e-6, nan_ok=True)
        assert who[row] == max(cosines, key=lambda number: cosines[number])
        assert other[row] == pytest.approx(cosines[who[row]], abs=1e-6)
    alone = nearest_centres(vectors[:1], np.array([0]), 1)
    assert np.isnan(alone[0][0])
    assert np.isnan(alone[1][0])
    assert alone[2].tolist() == [-1]


def test_a_picture_of_somebody_else_is_counted(dataset: Path, encoders: list[FaceEncoder]) -> None:
    found = find(dataset, encoders=encoders)
    wrong = [
        found.sample.pictures[row].name for row in np.flatnonzero(found.eyes[0].other >= found.eyes[0].own)
    ]
    assert wrong == ["new_0_002.png"]
    facts = facts_of(found)
    expected = np.mean([2 / 3, *[1.0] * (PEOPLE - 1)])  # a mean over people
    assert facts["separation"][encoders[0].id]["nearest_to_their_own_person"] == pytest.approx(
        expected, abs=1e-4
    )


def test_real_people_are_found_again(dataset: Path, encoders: list[FaceEncoder]) -> None:
    galleries = gallery(encoders)
    said = facts_of(find(dataset, encoders=encoders, galleries=galleries))["leakage"]
    assert said["galleries"] == 1
    for eye, encoder in enumerate(encoders):
        photos = galleries["photos"][encoder.id]
        highest = [max(float(one @ photo) for photo in photos) for one in kept_vectors(eye)]
        by = said["photos"][encoder.id]
        assert by["photos"] == photos.any(axis=1).sum()
        assert by["nearest_mean"] == pytest.approx(np.mean(highest), abs=1e-3)
        for fmr in ("1e-3", "1e-4"):
            limit = threshold_at(encoder, fmr)
            shares = [
                np.mean([highest[i] >= limit for i in np.flatnonzero(p == PERSON)]) for p in range(PEOPLE)
            ]
            assert by[f"threshold_fmr_{fmr}"] == limit
            assert by[f"pictures_above_fmr_{fmr}"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert said["photos"][encoders[0].id]["centres_above_fmr_1e-4"] == pytest.approx(1 / PEOPLE, abs=1e-4)
    assert said["photos"][encoders[1].id]["centres_above_fmr_1e-4"] == 0


def test_of_a_large_dataset_people_are_drawn_and_that_is_said(
    dataset: Path, encoders: list[FaceEncoder]
) -> None:
    found = find(dataset, encoders=encoders, most_pictures=7, seed=3)
    again = find(dataset, encoders=encoders, most_pictures=7, seed=3)
    assert found.sample.names == again.sample.names
    assert len(found.sample.names) == 3
    assert not found.sample.is_everybody
    assert facts_of(found)["measured"] == {"people": 3, "pictures": 9, "which": "people drawn at random"}
    rows = [int(name[-1]) for name in found.sample.names]
    assert np.abs(found.eyes[0].vectors - kept_vectors(0)[np.isin(PERSON, rows)]).max() < 3e-4
    assert facts_of(found)["yield"]["planned"] == 24  # of all


def test_a_quantile_is_the_border_of_its_bin(dataset: Path, encoders: list[FaceEncoder]) -> None:
    scores = find(dataset, encoders=encoders).eyes[0].pairs.impostor
    assert quantile(scores, 1.0) >= scores.highest > quantile(scores, 1.0) - 1e-4


def test_an_encoder_that_is_not_there_is_asked_for(dataset: Path, encoders: list[FaceEncoder]) -> None:
    with pytest.raises(ConfigError, match=f"holds vectors of {encoders[1].id}; give that encoder"):
        find(dataset, encoders=encoders[:1])


# --- where it is told -------------------------------------------------------------------------------------


def test_findings_stand_in_dataset_json_and_on_a_page(dataset: Path, encoders: list[FaceEncoder]) -> None:
    before = json.loads((dataset / "dataset.json").read_text())
    page = write_findings(dataset, encoders=encoders, galleries=gallery(encoders))
    about = json.loads((dataset / "dataset.json").read_text())
    assert before.items() <= about.items()
    added = {"yield", "quotas", "measured", "similarity", "separation", "diversity", "leakage", "provenance"}
    assert set(about) - set(before) == added
    assert about["provenance"] == {"pictures_looked_at": 18, "marked": 18}
    report = read_report(page.parent)
    name = encoders[0].name
    within = about["similarity"][encoders[0].id]["within_people"]["mean"]
    assert report.measures[f"{name}/genuine_mean"].value == pytest.approx(within, rel=1e-5)
    assert report.measures["kept of drawn"].value == 0.5
    assert set(report.per_identity[f"{name}/genuine_mean"]) == {f"new_{person}" for person in range(PEOPLE)}
    html = page.read_text()
    for words in ("Kept, and why not", "Quotas", "What they look like", "Real people: photos",
                  "Taken for somebody else, by judge", "mini <span"):  # fmt: skip
        assert words in html
    files = {file: file.read_bytes() for file in dataset.rglob("*") if file.is_file()}
    write_findings(dataset, encoders=encoders, galleries=gallery(encoders))
    assert files == {file: file.read_bytes() for file in dataset.rglob("*") if file.is_file()}


def test_the_datasheet_shows_every_key_in_its_place(
    dataset: Path, encoders: list[FaceEncoder], tmp_path: Path
) -> None:
    write_findings(dataset, encoders=encoders, galleries=gallery(encoders))
    made = Dataset.open(dataset)
    export_dataset(made, tmp_path / "out", "folder", exporters.build("folder"))
    sheet = (tmp_path / "out" / "DATASHEET.md").read_text()
    sections = {part.split("\n")[0]: part for part in sheet.split("\n## ")[1:]}
    places = {
        "models": "Models and data it was made from", "encoder_ids": "Models and data it was made from",
        "judge": "Models and data it was made from", "detector": "Models and data it was made from",
        "adapter": "Models and data it was made from", "sources": "Models and data it was made from",
        "licences": "Licences", "rules": "Rules by which pictures were kept",
        "yield": "What was planned and what was kept", "quotas": "Quotas", "measured": "Similarity",
        "similarity": "Similarity", "separation": "Similarity", "diversity": "Variety",
        "leakage": "Leakage audit", "provenance": "Provenance", "seed": "Further facts",
        "num_shards": "Further facts",
    }  # fmt: skip
    assert set(places) == set(made.about)
    for key, place in places.items():
        assert f"| {key}" in sections[place], key
        others = [title for title in sections if title != place and f"\n| {key}." in sections[title]]
        assert not others, key
    assert "not measured" not in sheet
    assert "not recorded" not in sheet


def test_a_dataset_without_vectors_says_that_nothing_is_known(
    tmp_path: Path, encoders: list[FaceEncoder]
) -> None:
    folder = make_dataset(tmp_path / "made", about={"num_shards": 3})
    page = write_findings(folder, encoders=encoders)
    report = read_report(page.parent)
    assert report.warnings[0].startswith("2 of 3 shards are finished")
    assert report.warnings[1].startswith("No face vectors were kept with these pictures")
    assert report.warnings[2].startswith("No gallery of real people was given")
    about = json.loads((folder / "dataset.json").read_text())
    assert about["similarity"] == about["separation"] == {}
    assert about["leakage"] == {"galleries": 0}


def test_a_dataset_of_which_nothing_was_kept_has_findings_too(
    tmp_path: Path, encoders: list[FaceEncoder]
) -> None:
    rows = [(row_of(person, EACH - 1), None) for person in range(2)]
    write_shard(tmp_path, 0, rows, facts={VECTORS_FACT: write_embeddings(tmp_path, 0, {})})
    (tmp_path / "dataset.json").write_text(json.dumps({"num_shards": 1}))
    write_findings(tmp_path, encoders=encoders)
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert about["yield"]["kept"] == 0
    assert about["measured"]["pictures"] == 0
