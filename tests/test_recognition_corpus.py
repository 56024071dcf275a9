"""Labelled pictures: read from several datasets, aligned once, chosen among."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from face_tables import portrait, write_table
from PIL import Image

from idgen.data.images import FaceTable, split_names
from idgen.data.pictures import Picture
from idgen.errors import ConfigError, ImageError
from idgen.faces.detect import Detector, Face
from idgen.faces.photo import crop_at, find_faces
from idgen.faces.scrfd import mini_detector
from idgen.recognition.corpus import (
    Choice,
    choose,
    histogram_of,
    labelled_faces,
    read_labelled,
    read_sources,
    split_sources,
)


def folder_of(root: Path, people: dict[str, list[np.ndarray]]) -> Path:
    for person, images in people.items():
        (root / person).mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(root / person / f"{number}.png")
    return root


def table_of(counts: dict[str, int]) -> FaceTable:
    """A table whose pictures are grey and tell their row."""
    people = [name for name, count in counts.items() for _ in range(count)]
    images = np.arange(len(people), dtype=np.uint8)[:, None, None, None] * np.ones((128, 128, 3), np.uint8)
    files = tuple(f"{row}.png" for row in range(len(people)))
    return FaceTable(images=images, files=files, identities=tuple(people), labels={})


def noise(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_aligned_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    whole, crop = noise(0, 128), noise(1, 112)
    table, lost = labelled_faces(read_labelled(folder_of(tmp_path, {"a": [whole], "b": [crop]})))
    assert lost == []
    assert table.identities == ("a", "b")
    assert table.files == ("a/0.png", "b/0.png")
    np.testing.assert_array_equal(table.images[0], whole)
    np.testing.assert_array_equal(table.images[1, 8:-8, 8:-8], crop)
    np.testing.assert_array_equal(table.images[1, 8:-8, 7], crop[:, 1])  # its border is a mirror
    crops = (table.crops([1])[0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(crops, crop)


class Counting:
    """mini's detector, which counts how often it looks."""

    def __init__(self) -> None:
        self.detector = mini_detector()
        self.name, self.licence, self.looks = self.detector.name, self.detector.licence, 0

    def detect(self, image: np.ndarray) -> list[Face]:
        self.looks += 1
        return self.detector.detect(image)


def test_other_pictures_are_aligned_once_and_those_without_a_face_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.fromarray(skimage.data.astronaut())
    small = photo.crop((150, 30, 300, 180)).resize((64, 64), Image.Resampling.BOX)
    data = folder_of(
        tmp_path / "data", {"collins": [np.asarray(photo), np.asarray(small)], "nobody": [noise(0, 64)],
                            "other": [portrait()]},
    )  # fmt: skip
    eye = Counting()

    def open_it(spec: str) -> Detector:
        assert spec == "mini"
        return eye

    monkeypatch.setattr("idgen.recognition.corpus.load_detector", open_it)
    table, lost = labelled_faces(read_labelled(data), store=tmp_path / "seen")
    assert lost == ["nobody/0.png"]
    assert table.identities == ("collins", "collins", "other")
    looks = eye.looks
    assert looks >= 3
    again, _ = labelled_faces(read_labelled(data), store=tmp_path / "seen")
    assert eye.looks == looks
    np.testing.assert_array_equal(again.images, table.images)
    # the face lies where the template has it, in the large photo and in the small one
    for image in table.images[:2]:
        (face,) = mini_detector().detect(np.asarray(Image.fromarray(image).resize((256, 256))))
        eyes = face.landmarks[:2] / 2
        np.testing.assert_allclose(eyes, [[46.3, 59.7], [81.5, 59.5]], atol=4)


def test_small_pictures_are_shown_enlarged_as_curation_shows_them(tmp_path: Path) -> None:
    photo = Image.fromarray(skimage.data.astronaut())
    small = photo.crop((150, 30, 300, 180)).resize((64, 64), Image.Resampling.BOX)
    data = folder_of(tmp_path / "data", {"collins": [np.asarray(small), np.asarray(photo)]})
    table, lost = labelled_faces(read_labelled(data), store=tmp_path / "seen")
    assert lost == []
    for image, picture, detector in (
        (table.images[0], small, mini_detector().fitted(64)),
        (table.images[1], photo, mini_detector()),
    ):
        found = find_faces(picture, detector)
        crop, _ = crop_at(picture, found.faces[0].landmarks, 112, margin_px=8)
        np.testing.assert_array_equal(image, (crop * 255).round().byte().permute(1, 2, 0).numpy())


def test_joined_datasets_set_aside_whom_each_sets_aside_alone() -> None:
    one, two = [f"p{n:02d}" for n in range(40)], [f"p{n:02d}" for n in range(25)]
    joined = table_of({f"0/{name}": 2 for name in one} | {f"1/{name}": 3 for name in two})
    seen, held = split_sources(joined, 2)
    alone = {f"{n}/{name}" for n, names in enumerate((one, two)) for name in split_names(names)[0]}
    assert set(held.identities) == alone
    assert len(held.people()) == 4 + 2
    assert not set(seen.identities) & alone
    assert len(seen) + len(held) == len(joined)
    single, aside = split_sources(joined, 1)
    assert set(aside.identities) == set(split_names(sorted(set(joined.identities)))[0])
    assert len(single) + len(aside) == len(joined)


def test_squares_that_only_look_aligned_can_be_aligned(tmp_path: Path) -> None:
    photo = Image.fromarray(skimage.data.astronaut()).crop((120, 0, 340, 220)).resize((128, 128))
    pictures = [Picture(identity="a", name="a", path=tmp_path / "a.png")]
    photo.save(tmp_path / "a.png")
    as_is, _ = labelled_faces(pictures)
    aligned, _ = labelled_faces(pictures, realign=True)
    np.testing.assert_array_equal(as_is.images[0], np.asarray(photo))
    (face,) = mini_detector().detect(np.asarray(Image.fromarray(aligned.images[0]).resize((256, 256))))
    np.testing.assert_allclose(face.landmarks[0] / 2, [46.3, 59.7], atol=4)


def test_equal_names_in_two_datasets_are_two_people(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", {"x": [noise(0, 112)], "y": [noise(1, 112)]})
    two = write_table(tmp_path / "two.parquet", [noise(2, 112), noise(3, 112)], ["x", "z"])
    joined = read_sources([one, two])
    assert [p.identity for p in joined] == ["0/x", "0/y", "1/x", "1/z"]
    assert len({p.name for p in joined}) == 4
    table, _ = labelled_faces(joined)
    np.testing.assert_array_equal(table.images[2, 8:-8, 8:-8], noise(2, 112))
    assert [p.identity for p in read_sources([one])] == ["x", "y"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    alone = folder_of(tmp_path / "alone", {"x": [noise(0, 112), noise(1, 112)]})
    with pytest.raises(ConfigError, match="shows one person; two are needed to compare"):
        read_sources([alone])
    with pytest.raises(ImageError, match="no such folder or Parquet file"):
        read_sources([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="data names no dataset"):
        read_sources([])
    unnamed = write_table(tmp_path / "unnamed.parquet", [noise(0, 112), noise(1, 112)], ["x", ""])
    with pytest.raises(ConfigError, match=r"1 of 2 pictures of .* do not say whom they show"):
        read_labelled(unnamed)


COUNTS = {"a": 5, "b": 1, "c": 8, "d": 2, "e": 1}


def test_singles_are_left_out() -> None:
    kept = choose(table_of(COUNTS), Choice(leave_out_singles=True))
    assert Counter(kept.identities) == {"a": 5, "c": 8, "d": 2}
    assert [int(image[0, 0, 0]) for image in kept.images] == [*range(5), *range(6, 16)]
    with pytest.raises(ConfigError, match="people left to train on: 0; two are needed"):
        choose(table_of({"a": 1, "b": 1}), Choice(leave_out_singles=True))


def test_the_histogram_of_another_dataset_is_matched() -> None:
    table = table_of(COUNTS)
    kept = choose(table, Choice(pictures_like=[6, 3, 3], seed=4))
    assert Counter(kept.identities) == {"c": 6, "d": 2, "e": 1}  # the first, the middle and the last of five
    own = {int(image[0, 0, 0]): name for image, name in zip(table.images, table.identities, strict=True)}
    assert all(
        own[int(image[0, 0, 0])] == name for image, name in zip(kept.images, kept.identities, strict=True)
    )
    again = choose(table, Choice(pictures_like=[6, 3, 3], seed=4))
    other = choose(table, Choice(pictures_like=[6, 3, 3], seed=5))
    assert again.files == kept.files
    assert other.files != kept.files
    assert choose(table, Choice(pictures_like=[9] * 9)).files == table.files


def test_two_datasets_cut_to_each_other_have_one_histogram_of_the_larger_ones_shape() -> None:
    made = table_of({f"m{n:02}": 12 - n % 5 for n in range(20)} | {"single": 1})
    real = table_of({f"r{n:02}": 2 + 200 // (n + 5) for n in range(60)} | {"single": 1})

    def falling(table: FaceTable) -> list[int]:
        return sorted(Counter(table.identities).values(), reverse=True)

    one = choose(made, Choice(pictures_like=falling(real), leave_out_singles=True))
    other = choose(real, Choice(pictures_like=falling(made), leave_out_singles=True))
    assert falling(one) == falling(other)
    assert len(one.people()) == 20
    every_third = [falling(real)[:60][round(n * 59 / 19)] for n in range(20)]
    assert falling(one) == [min(12 - n // 4, count) for n, count in enumerate(every_third)]


def test_names_are_permuted_and_their_numbers_kept() -> None:
    table = table_of({"a": 30, "b": 20, "c": 10})
    kept = choose(table, Choice(shuffle_identities=True, seed=1))
    assert Counter(kept.identities) == Counter(table.identities)
    assert kept.files == table.files
    same = sum(x == y for x, y in zip(kept.identities, table.identities, strict=True))
    assert same < 35  # by chance (30^2 + 20^2 + 10^2) / 60 = 23
    assert choose(table, Choice(shuffle_identities=True, seed=1)).identities == kept.identities
    assert choose(table, Choice(shuffle_identities=True, seed=2)).identities != kept.identities


def test_the_histogram_counts_people_to_train_on(tmp_path: Path) -> None:
    counts = {f"p{i:02}": 1 + i % 4 for i in range(20)}
    people = [name for name, count in counts.items() for _ in range(count)]
    path = write_table(tmp_path / "t.parquet", [noise(0, 112)] * len(people), people)
    held_out, training = split_names(list(counts))
    assert len(held_out) == 2
    assert histogram_of(path) == sorted((counts[name] for name in training), reverse=True)


def test_a_chosen_table_is_still_a_table() -> None:
    table = replace(table_of(COUNTS), labels={"yaw": np.arange(17, dtype=np.float32)})
    kept = choose(table, Choice(pictures_like=[2, 2], leave_out_singles=True, shuffle_identities=True))
    assert len(kept) == 4
    assert len(kept.labels["yaw"]) == 4
