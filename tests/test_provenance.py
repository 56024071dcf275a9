import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from idgen.errors import ConfigError, ImageError, StorageError
from idgen.provenance import Provenance, read_provenance, save_picture
from idgen.storage import replacing, write_json

FORMATS = [".png", ".jpg", ".jpeg", ".webp", ".PNG"]
HARD_PROMPTS = [
    "a <b>man</b> & \"a woman\", 'smiling' ]]> <!-- no --> <!DOCTYPE x>",
    "two\nlines\r\nand a\ttab, trailing space ",
    "café, 日本語, 👩🏽\u200d🚀, עברית",
    "control \x00\x07\x1f\x7f and \ufffe\uffff and a lone \ud83d",
    "\\(weight:1.2\\) \\n \ufeff",
    "",
]
RECORD = Provenance(
    prompt="a portrait", negative_prompt="blurred", seed=2**53 + 1, steps=30, guidance_scale=4.5,
    id_scale=0.8, model="mini", model_hash="a" * 64, adapter_hash="b" * 64, encoder="mini@0123456789ab",
    similarity={"mini@0123456789ab": 0.625, "other@fedcba987654": -0.1},
)  # fmt: skip


def picture(size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_record_comes_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    save_picture(picture(), tmp_path / f"a{suffix}", RECORD)
    assert read_provenance(tmp_path / f"a{suffix}") == RECORD
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("prompt", HARD_PROMPTS)
def test_any_prompt_comes_back(tmp_path: Path, suffix: str, prompt: str) -> None:
    record = replace(RECORD, prompt=prompt, negative_prompt=prompt[::-1])
    save_picture(picture(), tmp_path / f"a{suffix}", record)
    assert read_provenance(tmp_path / f"a{suffix}") == record


def test_png_pixels_are_untouched(tmp_path: Path) -> None:
    save_picture(picture(), tmp_path / "a.png", RECORD)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture()))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.filterwarnings("error")
def test_other_programs_see_that_a_model_made_it(tmp_path: Path, suffix: str) -> None:
    save_picture(picture(), tmp_path / f"a{suffix}", RECORD)
    with Image.open(tmp_path / f"a{suffix}") as image:
        described = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    assert (
        described["DigitalSourceType"]
        == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    assert described["CreatorTool"].startswith("idgen ")
    assert described["CreateDate"] == RECORD.created


def test_a_record_has_no_place_for_the_reference(tmp_path: Path) -> None:
    names = {f.name for f in fields(Provenance)}
    assert names == {
        "prompt", "negative_prompt", "seed", "steps", "guidance_scale", "id_scale", "model", "model_hash",
        "adapter_hash", "lora_hash", "encoder", "edit", "similarity", "idgen_version", "created",
    }  # fmt: skip
    reference = picture()
    exif = Image.Exif()
    exif[0x010E] = "photo of Ann"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", "photo of Ann")
    reference.save(tmp_path / "ann.png", exif=exif, pnginfo=chunks)
    reference.save(tmp_path / "ann.jpg", exif=exif, comment=b"photo of Ann", xmp=b"<x>photo of Ann</x>")
    for source in ("ann.png", "ann.jpg"):
        for suffix in (".png", ".jpg", ".webp"):
            save_picture(Image.open(tmp_path / source), tmp_path / f"made{suffix}", RECORD)
            assert b"Ann" not in (tmp_path / f"made{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/ann/models/sd15", "sd15"), ("../ann/sd15/", "sd15"), ("~/sd15", "sd15"),
        (r"C:\Users\ann\sd15", "sd15"), ("models/ann/sd15", "sd15"),
        ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
        ("mini", "mini"),
    ],
)  # fmt: skip
def test_of_a_model_path_only_the_last_part_is_kept(given: str, kept: str) -> None:
    assert replace(RECORD, model=given).model == kept


def test_alpha_and_grey_pictures_can_be_saved(tmp_path: Path) -> None:
    for mode in ("RGBA", "L", "P"):
        for suffix in (".png", ".jpg", ".webp"):
            save_picture(picture().convert(mode), tmp_path / f"a{suffix}", RECORD)
            assert read_provenance(tmp_path / f"a{suffix}") == RECORD


def test_a_record_rewritten_with_elements_is_still_read() -> None:
    packet = """
      <x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <r:Description xmlns:i="urn:idgen:provenance:1#" i:prompt='"a &lt;b&gt;"' i:negative_prompt='""'>
      <i:seed>7</i:seed><i:guidance_scale>4</i:guidance_scale><i:id_scale>1.0</i:id_scale><i:steps>3</i:steps>
      <i:model>"mini"</i:model><i:model_hash>"aa"</i:model_hash><i:of_a_later_idgen>[1]</i:of_a_later_idgen>
      </r:Description></r:RDF></x:xmpmeta>"""
    record = Provenance.from_xmp(packet.encode())
    assert (record.prompt, record.seed, record.guidance_scale, record.adapter_hash) == ("a <b>", 7, 4.0, None)


# ---- what cannot be read


def test_entities_are_refused_and_nothing_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    packet = RECORD.to_xmp().decode()
    laughs = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    outside = f'<!DOCTYPE a [<!ENTITY a SYSTEM "file://{secret}">]>'
    for declaration in (laughs, outside):
        with pytest.raises(ImageError, match="declares entities"):
            Provenance.from_xmp((declaration + packet).encode())
    with pytest.raises(ImageError, match="damaged"):
        Provenance.from_xmp((laughs + packet).encode("utf-16"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<rdf:RDF", "<rdf:RDF <", "damaged"),
        ("seed=", "sed=", "fields missing"),
        ('steps="30"', 'steps="many"', "steps cannot be read"),
        ('steps="30"', 'steps="3.5"', "steps has the wrong type"),
        ('steps="30"', 'steps="true"', "steps has the wrong type"),
        ('id_scale="0.8"', 'id_scale="null"', "id_scale has the wrong type"),
        ("urn:idgen:provenance:1#", "urn:other", "none that idgen wrote"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(old: str, new: str, message: str) -> None:
    packet = RECORD.to_xmp().decode()
    assert old in packet
    with pytest.raises(ImageError, match=message):
        Provenance.from_xmp(packet.replace(old, new).encode())


def test_a_packet_without_end_is_not_read() -> None:
    with pytest.raises(ImageError, match="at most 1048576 are read"):
        Provenance.from_xmp(b" " * (1 << 21))


def test_files_without_a_record(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"plain\.png says nothing of how it was made"):
        read_provenance(tmp_path / "plain.png")
    for name in ("text.png", "empty.png"):
        with pytest.raises(ImageError, match="not a picture"):
            read_provenance(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        read_provenance(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_provenance(tmp_path)


# ---- what cannot be written


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.jpg, \.jpeg, \.webp, got 'a\.gif'"):
        save_picture(picture(), tmp_path / "a.gif", RECORD)


def test_a_prompt_too_long_for_jpeg_is_refused_and_fits_png(tmp_path: Path) -> None:
    record = replace(RECORD, prompt="x" * 70_000)
    with pytest.raises(ConfigError, match=r"a JPEG holds 65502; save as PNG"):
        save_picture(picture(), tmp_path / "a.jpg", record)
    assert not list(tmp_path.iterdir())
    save_picture(picture(), tmp_path / "a.png", record)
    assert read_provenance(tmp_path / "a.png") == record


def test_the_longest_record_a_jpeg_holds(tmp_path: Path) -> None:
    room = 65_502 - len(replace(RECORD, prompt="").to_xmp())
    record = replace(RECORD, prompt="x" * room)
    save_picture(picture(), tmp_path / "a.jpg", record)
    assert read_provenance(tmp_path / "a.jpg") == record


FULL_DISK = """
import resource, sys
from PIL import Image
from idgen.errors import StorageError
from idgen.provenance import Provenance, save_picture
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
record = Provenance(prompt="", negative_prompt="", seed=0, steps=1, guidance_scale=1, id_scale=1,
                    model="m", model_hash="")
try:
    save_picture(Image.effect_noise((256, 256), 90), sys.argv[1], record)
except StorageError as error:
    print(error)
    raise SystemExit(2)
"""


def test_a_full_disk_leaves_the_old_picture_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    save_picture(picture(), target, RECORD)
    before = target.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, target], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"{target} was not written" in done.stdout
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write into"):
        save_picture(picture(), tmp_path / "nowhere" / "a.png", RECORD)


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "run.json") as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "run.json").read_text() == "{}"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_json_is_readable_by_others_and_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "run.json", {"prompt": "café"})
    finally:
        os.umask(old)
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == '{\n  "prompt": "café"\n}\n'
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o640
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "run.json", {"loss": float("nan")})
