"""Files of W+ adapters: what we write, what we read of others, what we refuse."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_unet
from safetensors.torch import load_file, save_file
from tiny_wplus_adapter import ENCODER, NUM_LAYERS, STYLE_DIM, random_wplus, wplus_card, write_wplus
from torch import Tensor

from idgen import cli, mini
from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import read_adapter, write_adapter
from idgen.adapters.install import IDAdapter, install_adapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.errors import ConfigError, EncoderMismatchError, WeightsError
from idgen.opening import open_kit

FACE_CARD = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_wplus(tmp_path / "wplus.safetensors", tiny_unet(16))


def published(path: Path, *, style_dim: int = STYLE_DIM, num_layers: int = NUM_LAYERS) -> dict[str, Tensor]:
    """The pickle of two dictionaries that the authors' programs write; returns its tensors by flat keys."""
    adapter = random_wplus(tiny_unet(16), style_dim=style_dim, num_layers=num_layers)
    nested: dict[str, dict[str, Tensor]] = {"w_proj": {}, "wplus_adapter": {}}
    for key, value in adapter.state_dict().items():
        group, _, rest = key.partition(".")
        nested[group][rest] = value
    torch.save(nested, path)
    return adapter.state_dict()


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of an adapter file with other tensors, and its card."""
    state = load_file(path)
    change(state)
    other = path.with_name("other.safetensors")
    save_file(state, other, {"style_dim": str(STYLE_DIM), "encoder": ENCODER})
    return other


def same(adapter: object, state: dict[str, Tensor]) -> bool:
    assert isinstance(adapter, WPlusAdapter)
    read = adapter.state_dict()
    return list(read) == list(state) and all(torch.equal(value, state[key]) for key, value in read.items())


# what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_layers", "style_dim"), [(6, 8), (18, 512), (14, 3)])
def test_what_is_written_is_read_back(tmp_path: Path, num_layers: int, style_dim: int) -> None:
    adapter = random_wplus(tiny_unet(16), num_layers=num_layers, style_dim=style_dim)
    card = wplus_card(style_dim=None if style_dim == 512 else style_dim)
    sha256 = write_adapter(tmp_path / "wplus.safetensors", adapter, card)
    file = read_adapter(tmp_path)
    assert same(file.adapter, adapter.state_dict())
    assert isinstance(file.adapter, WPlusAdapter)
    assert (file.adapter.num_layers, file.adapter.style_dim) == (num_layers, style_dim)
    assert (file.card, file.sha256, file.dtype) == (card, sha256, torch.float32)
    assert write_adapter(tmp_path / "again.safetensors", file.adapter, file.card) == sha256
    (tmp_path / "wplus.json").unlink()
    assert read_adapter(tmp_path / "wplus.safetensors").card == card  # from the metadata
    write_adapter(tmp_path / "half.safetensors", adapter, card, dtype=torch.float16)
    assert read_adapter(tmp_path / "half.safetensors").dtype == torch.float16


@pytest.mark.parametrize("name", ["wplus_adapter_stage1.bin", "wplus_adapter.bin"])
def test_published_pickles_are_read_key_for_key(tmp_path: Path, name: str) -> None:
    state = published(tmp_path / name, num_layers=18, style_dim=512)
    assert {key.split(".")[-2] for key in state} == {
        "proj_0", "proj_1", "proj_2", "proj_3", "norm", "to_k_wplus", "to_v_wplus", "to_q_wplus",
    }  # fmt: skip
    with pytest.raises(
        WeightsError,
        match=r"does not say whose W\+ codes it reads, .* encoder=load_wplus\('e4e_ffhq_encode.pt'\).id",
    ):
        read_adapter(tmp_path / name)
    file = read_adapter(tmp_path / name, encoder="e4e")
    assert same(file.adapter, state)
    assert (file.card.feature, file.card.encoder, file.card.num_tokens) == ("wplus", "e4e", 4)
    assert file.reads("e4e@0123456789ab")
    assert not file.reads("psp@0123456789ab")


def test_any_grouping_is_read_from_the_shapes(tmp_path: Path) -> None:
    state = published(tmp_path / "wplus.bin", num_layers=18, style_dim=512)
    for i, size in enumerate((1, 2, 12)):
        state[f"w_proj.proj_{i}.weight"] = torch.randn(16, size * 512)
    del state["w_proj.proj_3.weight"]
    save_file(state, tmp_path / "other.safetensors")
    adapter = read_adapter(tmp_path / "other.safetensors", encoder="e4e").adapter
    assert isinstance(adapter, WPlusAdapter)
    assert (adapter.w_proj.layer_groups, adapter.num_layers, adapter.num_tokens) == ((1, 2, 12), 15, 3)


def test_another_width_of_styles_must_be_said(tmp_path: Path) -> None:
    state = published(tmp_path / "wplus.bin")
    with pytest.raises(
        WeightsError, match=r"proj_0\.weight reads 8 numbers, no multiple of the 512 .* style_dim"
    ):
        read_adapter(tmp_path / "wplus.bin", encoder=ENCODER)
    said = {
        "base_model": "tiny",
        "encoder": ENCODER,
        "num_tokens": 4,
        "licence": "none",
        "style_dim": STYLE_DIM,
    }
    (tmp_path / "wplus.json").write_text(json.dumps(said))
    file = read_adapter(tmp_path / "wplus.bin")
    assert same(file.adapter, state)
    assert (file.card.feature, file.card.style_dim) == ("wplus", STYLE_DIM)
    (tmp_path / "wplus.json").write_text(json.dumps({**said, "style_dim": "wide"}))
    with pytest.raises(ConfigError, match=r"style_dim of wplus\.bin must be a whole number >= 1, got 'wide'"):
        read_adapter(tmp_path / "wplus.bin")
    save_file(state, tmp_path / "bare.safetensors", {"style_dim": str(STYLE_DIM)})
    with pytest.raises(WeightsError, match=r"must be one with W\+ codes of 6 x 8"):
        read_adapter(tmp_path / "bare.safetensors")
    assert same(read_adapter(tmp_path / "bare.safetensors", encoder=ENCODER).adapter, state)


def test_inspect_describes_it(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--json", str(written)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["what"] == "a W+ adapter"
    assert (facts["cross_attention_layers"], facts["num_tokens"], facts["text_width"]) == (4, 4, 16)
    assert facts["code_size"] == NUM_LAYERS * STYLE_DIM
    assert (facts["feature"], facts["encoder"], facts["style_dim"]) == ("wplus", ENCODER, STYLE_DIM)


# what is refused -------------------------------------------------------------------------------------------


def test_missing_surplus_and_bent_tensors_are_named(written: Path) -> None:
    def refuse(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
        with pytest.raises(WeightsError, match=message):
            read_adapter(rewritten(written, change))

    refuse(
        lambda state: state.pop("wplus_adapter.3.to_q_wplus.weight"),
        r"is no whole W\+ adapter: it lacks wplus_adapter\.3\.to_q_wplus\.weight",
    )
    refuse(lambda state: state.pop("w_proj.proj_1.weight"), r"w_proj\.proj_1\.weight is missing")
    refuse(lambda state: state.pop("w_proj.norm.bias"), r"it lacks w_proj\.norm\.bias")
    refuse(
        lambda state: state.update({"wplus_adapter.9.gate": torch.ones(1)}),
        r"has no use for wplus_adapter\.9\.gate",
    )
    refuse(
        lambda state: state.update({"image_proj.norm.weight": torch.ones(16)}),
        r"has no use for image_proj\.norm\.weight",
    )
    refuse(
        lambda state: state.update({"wplus_adapter.3.to_v_wplus.weight": torch.ones(16, 17)}),
        r"to_v_wplus\.weight is \(16, 17\), its neighbours need \(16, 16\)",
    )
    refuse(
        lambda state: state.update({"w_proj.proj_0.weight": torch.ones(16)}),
        r"w_proj\.proj_0\.weight must be a matrix, got \(16,\)",
    )


@pytest.mark.parametrize(("width", "guess"), [(768, "1.x"), (1024, "2.x"), (2048, "XL")])
def test_a_file_for_another_base_is_refused_with_both_shapes_and_a_guess(width: int, guess: str) -> None:
    unet = tiny_unet(16)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        install_adapter(unet, random_wplus(tiny_unet(width)))
    assert f"to_k_wplus.weight is (16, {width}) in the file, (16, 16) in this UNet" in str(error.value)
    assert f"Stable Diffusion {guess} (text width {width})" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_file_for_a_unet_of_other_depth_is_refused_by_layer() -> None:
    adapter = random_wplus(tiny_unet(16))
    with pytest.raises(WeightsError, match=r"wplus_adapter\.9\.to_\w_wplus\.weight is missing"):
        install_adapter(tiny_unet(16, layers_per_block=2), adapter)
    single = tiny_unet(16, up_block_types=("UpBlock2D", "UpBlock2D"))
    with pytest.raises(WeightsError, match=r"wplus_adapter\.5\.to_k_wplus\.weight has no place in this UNet"):
        install_adapter(single, adapter)


def test_damaged_files_and_pickles_with_code(written: Path, tmp_path: Path) -> None:
    published(tmp_path / "plain.bin")
    for whole in (written, tmp_path / "plain.bin"):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(WeightsError, match="is damaged or is not a"):
            read_adapter(cut, encoder=ENCODER)
    with (tmp_path / "code.bin").open("wb") as file:
        pickle.dump({"w_proj": Path()}, file, protocol=2)  # made by calling a class
    with pytest.raises(WeightsError, match="is a pickle with code in it"):
        read_adapter(tmp_path / "code.bin", encoder=ENCODER)


def test_unknown_files_hear_of_both_kinds(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"reads IP-Adapter FaceID files .* and W\+ adapters: `w_proj\.\*`"
    ):
        read_adapter(tmp_path / "other.safetensors")
    save_file({"w_proj_model.norm.weight": torch.ones(1)}, tmp_path / "raw.safetensors")
    with pytest.raises(WeightsError, match=r"raw checkpoint of the W\+ adapter's training script"):
        read_adapter(tmp_path / "raw.safetensors")


def test_a_card_that_contradicts_the_weights_is_refused(
    written: Path, tmp_path: Path, random_adapter: Callable[..., IDAdapter]
) -> None:
    unet = tiny_unet(16)
    adapter, face = random_wplus(unet), random_adapter(unet)
    not_codes = r"says that it reads face vectors, its weights read W\+ codes"
    for kind, card, message in [
        (adapter, wplus_card(feature="face_vector"), not_codes),
        (face, wplus_card(), r"says that it reads W\+ codes, its weights read face vectors"),
        (adapter, wplus_card(style_dim=None), "says style_dim 512, its weights read 8"),
        (adapter, wplus_card(num_tokens=5), "the card says 5 tokens, the adapter makes 4"),
    ]:
        with pytest.raises(WeightsError, match=message):
            write_adapter(tmp_path / "no.safetensors", kind, card)
    with pytest.raises(EncoderMismatchError, match=r"reads W\+ codes of tiny_e4e@0123456789ab, not of psp@"):
        read_adapter(written, encoder="psp@0123456789ab")
    said = json.loads(written.with_suffix(".json").read_text())
    written.with_suffix(".json").write_text(json.dumps({**said, "feature": "raw_face_vector"}))
    with pytest.raises(WeightsError, match=not_codes):
        read_adapter(written)


def test_the_files_of_the_other_kind_say_what_they_said(
    tmp_path: Path, random_adapter: Callable[..., IDAdapter]
) -> None:
    """A new line in every card would change the hash of every file that is written again."""
    write_adapter(tmp_path / "face.safetensors", random_adapter(tiny_unet(16)), FACE_CARD)
    assert set(json.loads((tmp_path / "face.json").read_text())) == {
        "idgen_adapter", "base_model", "encoder", "num_tokens", "licence", "training_run", "feature",
        "sha256",
    }  # fmt: skip


def test_where_face_vectors_are_wanted_it_is_refused(written: Path) -> None:
    for encoder in (None, "mini"):
        with pytest.raises(WeightsError, match=r"is a W\+ adapter, which reads codes of a StyleGAN"):
            open_kit(mini.BASE, adapter=written, encoder=encoder)
