"""Every block of code in the documents runs, or is at least understood by the program that it calls."""

import ast
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_unet
from documents import PAGES, ROOT, USUAL_PAGE, Block, Reader, Told, blocks_of, commands_of, environment
from generating import _SDXL_UNET, _save_sd, _save_sdxl, astronaut, write_recognizer
from one_process import commands_run_here
from PIL import Image, ImageOps
from recognizer_runs import people as people_of_colour
from synthesizing import models_opened_once
from tiny_wplus import STYLE_DIM, save_published
from training_runs import nobodies
from transformers import CLIPTokenizer

from idgen import mini
from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.cli import main
from idgen.config import from_mapping
from idgen.encoders.wplus import load_wplus
from idgen.storage import write_json

PUBLISHED_DIM = 512  # of the vectors that published FaceID files read


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> Path:
    """A folder with what the documents speak of, under their names: photos, identities, models, adapters."""
    root = tmp_path_factory.mktemp("material")
    write_photos(root)
    write_models(root, tiny_tokenizer)
    for name in ("ann", "ben"):
        assert main(["embed", str(root / f"{name}.jpg"), "--out", str(root / f"{name}.safetensors")]) == 0
    return root


def write_photos(root: Path) -> None:
    """Ann is an astronaut; everybody else does not exist."""
    face = astronaut().crop((100, 0, 400, 300))
    views = {"ann": face, "ann1": face, "ann2": ImageOps.mirror(face), "ann3": face.rotate(8)}
    for name, view in views.items():
        view.save(root / f"{name}.jpg")
    (root / "ann").mkdir()
    for name in ("ann1", "ann2", "ann3", "ann"):
        shutil.copy(root / f"{name}.jpg", root / "ann")
    face.save(root / "photo.jpg")
    others = nobodies((98, 99, 100), 2)
    others[0][0].resize((256, 256)).save(root / "ben.jpg")
    for name, images in {
        "ann": list(views.values())[1:],
        **dict(zip(("ben", "carl", "dora"), others, strict=True)),
    }.items():
        (root / "people" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.resize((192, 192)).save(root / "people" / name / f"{number}.png")
    images, names = people_of_colour(110, 2)
    for number, (pixels, name) in enumerate(zip(images, names, strict=True)):
        (root / "new-people" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "new-people" / name / f"{number}.png")
    for method in ("mine", "theirs"):  # as far as a document goes: the same people again
        shutil.copytree(root / "people", root / method)


def write_models(root: Path, tokenizer: CLIPTokenizer) -> None:
    """The published models in miniature, where a reader has them: random weights, the real layouts."""
    torch.manual_seed(0)
    xl = root / "stabilityai" / "stable-diffusion-xl-base-1.0"
    first = root / "stable-diffusion-v1-5" / "stable-diffusion-v1-5"
    _save_sd(first, tokenizer, width=16)
    _save_sdxl(xl, tokenizer)
    shutil.copytree(first, root / "my-model")
    for name, unet in {"sd15": tiny_unet(16), "sdxl": tiny_unet(32, **_SDXL_UNET)}.items():
        adapter = IDAdapter.for_unet(unet, id_dim=PUBLISHED_DIM, lora_rank=2)
        torch.save(published_layout(adapter), root / f"ip-adapter-faceid_{name}.bin")
    save_published(root / "e4e_ffhq_encode.pt")
    adapter = WPlusAdapter.for_unet(tiny_unet(16), num_layers=8, style_dim=STYLE_DIM)
    torch.save(published_layout(adapter), root / "wplus_adapter.bin")
    encoder = load_wplus(root / "e4e_ffhq_encode.pt").id
    card = {
        "base_model": "", "encoder": encoder, "num_tokens": adapter.num_tokens, "licence": "for tests",
        "feature": "wplus", "style_dim": STYLE_DIM,
    }  # fmt: skip
    # Only because these style vectors are narrower than those of published files.
    write_json(root / "wplus_adapter.json", card)
    torch.save(torch.randn(8, STYLE_DIM), root / "smile.pt")
    pack = root / "home" / ".insightface" / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    shutil.copy(mini.FACES / "det_mini.onnx", pack / "det_10g.onnx")
    write_recognizer(pack / "w600k_r50.onnx", PUBLISHED_DIM, seed=3)


def published_layout(adapter: IDAdapter | WPlusAdapter) -> dict[str, dict[str, torch.Tensor]]:
    """The weights as the published `.bin` files hold them: two groups."""
    groups: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in adapter.state_dict().items():
        group, _, rest = key.partition(".")
        groups[group][rest] = value.half()
    return dict(groups)


@pytest.fixture
def reader(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Somebody in a folder of their own that holds the material."""
    for path in material.iterdir():
        target = tmp_path / path.name
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    monkeypatch.chdir(tmp_path)
    faces, weights = (
        os.environ.get(name, str(tmp_path / "none")) for name in ("IDGEN_FACES", "IDGEN_WEIGHTS")
    )
    names = {
        "HOME": tmp_path / "home", "SOURCE_DATE_EPOCH": "1760000000", "W": weights, "IDGEN_WEIGHTS": weights,
        "T": f"{faces}/faces_test.parquet", "F": f"{faces}/faces_train.parquet", "IDGEN_FACES": faces,
    }  # fmt: skip
    environment(names, monkeypatch)
    with models_opened_once(), commands_run_here():
        yield Reader(tmp_path)


@pytest.mark.usefixtures("faces_are_remembered")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, reader: Reader) -> None:
    for block in blocks_of(page):
        if USUAL_PAGE not in block.code:  # these run where a page is served: tests/test_page_server.py
            reader.follow(block)


# ---- links


def anchors_of(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(there), (
            f"{page.name}: {target} is no heading of {there.name}"
        )


def test_every_page_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name})" not in index]
    assert missing == ["README.md"]


def test_the_rooms_are_those_that_the_layers_have() -> None:
    layers = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    (steps,) = (ast.literal_eval(node.value) for node in layers.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STEPS")  # fmt: skip
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows] == steps
    assert [int(number) for number, _ in rows] == list(range(1, len(steps) + 1))


# ---- the reader itself


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Somebody who has the programs alone."""
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path)


def block(code: str, how: str = "", language: str = "sh") -> Block:
    return Block(ROOT / "docs" / "made-up.md", 1, language, code, how)


def test_blocks_are_found_with_what_stands_before_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- test: generate --steps 2; train lora --set a=1 -->\n```sh\nidgen doctor\n```\n\n"
        "```python\n1\n```\n"
    )
    first, second = blocks_of(page)
    assert (first.line, first.language, first.code) == (4, "sh", "idgen doctor\n")
    assert first.told_of(["generate", "--face", "a"]) == Told(
        ("generate",), ("--steps", "2"), is_only_read=False
    )
    assert first.told_of(["train", "lora"]).added == ("--set", "a=1")
    assert first.told_of(["train", "adapter"]).added == ()
    assert Told.of("parse train adapter") == Told(("train", "adapter"), (), is_only_read=True)
    assert Told.of("parse").speaks_of(["anything"])
    assert (second.line, second.language, second.how) == (8, "python", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```rust\n1\n```\n", "no known language 'rust'"),
        ("```sh\nidgen doctor\n", "a fence is open"),
        ("<!-- test: parse -->\n\n```sh\nidgen doctor\n```\n", "has no block after it"),
    ],
)
def test_a_page_that_cannot_be_tested_is_refused(tmp_path: Path, text: str, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=said):
        blocks_of(page)


def test_commands_are_read_as_a_shell_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W", "weights")
    code = 'idgen a --b "c d" \\\n    --e $W/f.onnx ... # why\n\n# alone\nidgen g\n'
    assert commands_of(code) == [["idgen", "a", "--b", "c d", "--e", "weights/f.onnx"], ["idgen", "g"]]


@pytest.mark.parametrize(
    ("code", "how", "said"),
    [
        ("idgen doktor\n", "", "is not a command; did you mean 'doctor'"),
        ("idgen generate --id-scail 1\n", "parse", "--id-scail is not an option; did you mean '--id-scale'"),
        ("idgen train lora --set optimizer.stepps=1 --out a\n", "parse", "did you mean 'steps'"),
        ("idgen generate --face nobody.jpg --prompt a\n", "", "nobody.jpg"),
        ("idgen doctor\n", "generate --steps 2", "speaks of no command here"),
        ("curl x\n", "", "does not know how to run curl x"),
        ("pip install 'idgen[trian]'\n", "", "has no extra"),
        ("make dmeo\n", "", "No rule to make target"),
        ("python -m pytest tests/test_nothing.py\n", "", "no such test"),
    ],
)
def test_what_does_not_run_fails(bare: Reader, code: str, how: str, said: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(said)):
        bare.follow(block(code, how))


def test_what_is_only_read_does_nothing(bare: Reader) -> None:
    before = sorted(path.name for path in bare.folder.iterdir())
    bare.follow(
        block(
            "idgen generate --face nobody.jpg --prompt a --out pictures\n"
            "idgen train lora --out run\nidgen app\n",
            "parse",
        )
    )
    assert sorted(path.name for path in bare.folder.iterdir()) == before


def test_python_blocks_share_their_names(bare: Reader) -> None:
    bare.follow(block("a = 20\n", language="python"))
    bare.follow(block("assert a + 1 == 21\n", language="python"))
    with pytest.raises(ZeroDivisionError):
        bare.follow(block("a / 0\n", language="python"))


def test_a_new_term_takes_the_lines_that_the_page_says(bare: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/extending.md: a field of TermsConfig and an entry of _FACTORIES, and YAML knows it."""
    import idgen.objectives.config as known

    page = blocks_of(ROOT / "docs" / "extending.md")
    bare.follow(next(b for b in page if "def huber" in b.code))
    (settings,) = (yaml.safe_load(b.code)["terms"] for b in page if b.language == "yaml")
    config_type = bare.names["HuberConfig"]
    longer = make_dataclass(
        "Longer", [("huber", config_type | None, None)], bases=(known.TermsConfig,), frozen=True, kw_only=True
    )
    monkeypatch.setitem(known._FACTORIES, "huber", bare.names["huber"])
    terms = known.build_terms(from_mapping(longer, settings))
    assert set(terms) == {"huber"}
    assert terms["huber"][0].weight == 0.5
