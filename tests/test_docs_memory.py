"""`idgen evaluate memory`, and the table in the documents that it printed."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_unet, tiny_vae
from generating import _save_sd
from torch import nn
from transformers import CLIPTokenizer

from idgen import mini
from idgen.cli import main
from idgen.pipeline import IDPipeline

ROOT = Path(__file__).parents[1]
# Sizes of the published models, as everybody can count them: UNet, autoencoder, text encoders.
PUBLISHED = {
    "SD 1.5": (859_520_964, 83_653_863, 123_060_480),
    "SD 2.1": (865_910_724, 83_653_863, 340_387_840),
    "SDXL": (2_567_463_684, 83_653_863, 123_060_480 + 694_659_840),
}


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "eval" / "memory.py"))


def test_the_tables_of_the_documents_are_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "memory"]) == 0
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 * 2
    page = (ROOT / "docs" / "memory.md").read_text()
    assert "\n".join(table) in page
    recogniser = re.search(r"takes (\S+ \w+) more", said)
    assert recogniser is not None
    assert f"({recogniser[1]})" in page
    readme = (ROOT / "README.md").read_text()
    for line in table[2:]:
        base, _, precision, *_, together = (cell.strip() for cell in line.strip("|").split("|"))
        (row,) = re.findall(rf"^\| {re.escape(base)} \| \d+ \|.*$", readme, re.MULTILINE)
        assert together in row or (base, precision) == ("mini", "float16"), f"{row}: {together}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_networks_are_as_large_as_the_published_ones(program: dict[str, Any], name: str) -> None:
    with torch.device("meta"):
        parts = program["BASES"][name]()
    counted = tuple(sum(w.numel() for w in module.parameters())
                    for module in (parts.unet, parts.vae, nn.ModuleList(parts.texts)))  # fmt: skip
    assert counted == PUBLISHED[name]


def test_mini_is_what_its_files_hold(program: dict[str, Any]) -> None:
    pipe = IDPipeline.from_pretrained("mini")
    assert pipe.adapter is not None
    modules = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.adapter.adapter)
    weights = sum(value.nbytes for module in modules for value in module.state_dict().values())
    with torch.device("meta"):
        found = program["needs"](program["of_folder"](mini.BASE), torch.float32, (64, 64), 1)
    assert found.weight_bytes == weights


def test_a_call_holds_what_is_alive_at_once_and_no_weights(program: dict[str, Any]) -> None:
    peak: Callable[..., int] = program["peak_bytes"]
    with torch.device("meta"):
        layer, start = nn.Linear(100, 100), torch.empty(10, 100)  # 4,000 bytes

        def chain() -> torch.Tensor:
            value = start
            for _ in range(5):
                value = layer(value)  # the one before goes when the next is there
            return value

        assert peak(layer, chain) == 2 * 4000
        assert peak(layer, lambda: [layer(start) for _ in range(5)]) == 5 * 4000


def test_a_call_of_the_network_holds_as_much_as_on_a_real_device(program: dict[str, Any]) -> None:
    """The same counting over real tensors, where kernels do run, gives the same."""
    unet, vae = tiny_unet(16), tiny_vae()
    latents = torch.zeros(2, 4, 8, 8)
    for module, call in (
        (vae, lambda m, x: m.decode(x).sample),
        (unet, lambda m, x: m(x, 1, encoder_hidden_states=torch.zeros(2, 77, 16, device=x.device)).sample),
    ):
        here = program["peak_bytes"](module, lambda c=call, m=module: c(m, latents))
        on_meta = module.to("meta")
        there = program["peak_bytes"](on_meta, lambda c=call, m=on_meta: c(m, latents.to("meta")))
        assert there == pytest.approx(here, rel=0.1)


def test_a_folder_and_other_sizes(
    tmp_path: Path, tiny_tokenizer: CLIPTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    _save_sd(tmp_path / "model", tiny_tokenizer, width=16)
    assert (
        main(
            ["evaluate", "memory", "--model", str(tmp_path / "model"), "--size", "64x32", "--batch-size", "3"]
        )
        == 0
    )
    first, second = [line.split("|") for line in capsys.readouterr().out.splitlines() if "float" in line]
    assert first[2].strip() == "3 of 64 x 32"
    assert float(first[4].split()[0]) == pytest.approx(2 * float(second[4].split()[0]), abs=0.11)


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "memory", "--model", "SD1.5"]) == 2
    assert "no model 'SD1.5'" in capsys.readouterr().err
    assert main(["evaluate", "memory", "--size", "65"]) == 2
    assert main(["evaluate", "memory", "--batch-size", "0"]) == 2
    assert "--batch-size must be at least 1, got 0" in capsys.readouterr().err
