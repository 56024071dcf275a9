"""Files of generators and of W+ encoders: the published ones, idgen's own, and what is refused."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_wplus import STYLE_DIM, published, save_published, tiny_encoder, tiny_generator, tiny_model
from torch import Tensor, nn

from idgen.errors import ModelNotFoundError, StorageError, WeightsError
from idgen.stylegan import checkpoint
from idgen.stylegan.checkpoint import WPlusCard, read_generator, read_wplus, write_wplus
from idgen.stylegan.model import CodeEncoder, WPlusModel


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_wplus(path, tiny_model(), WPlusCard(kind="e4e", licence="for tests"))
    return path


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object], **said: str) -> Path:
    """A copy of a safetensors with other tensors, or other metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    other = path.with_name("other.safetensors")
    save_file(state, other, metadata | said)
    return other


# what we write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["e4e", "psp"])
def test_what_is_written_is_read_back(tmp_path: Path, kind: str) -> None:
    model, card = tiny_model(kind), WPlusCard(kind=kind, licence="for tests")
    sha256 = write_wplus(tmp_path / "tiny.safetensors", model, card)
    file = read_wplus(tmp_path / "tiny.safetensors")
    assert (file.card, file.sha256) == (card, sha256)
    state = file.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    faces = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(file.model(faces), model(faces))
    assert not any(p.requires_grad for p in file.model.parameters())
    assert write_wplus(tmp_path / "again.safetensors", file.model, file.card) == sha256


def test_keys_are_the_published_ones_and_metadata_says_the_rest(written: Path) -> None:
    assert set(load_file(written)) == {*published()["state_dict"], "latent_avg"}
    with safe_open(written, framework="pt") as file:
        said = file.metadata()
    assert (said["idgen_wplus"], said["encoder_kind"], said["licence"]) == ("1", "e4e", "for tests")
    assert json.loads(said["crop"]) == {"size_px": 256, "template": "ffhq", "mean": 127.5, "std": 127.5}


def test_half_precision_halves_the_file_and_is_read_as_single(tmp_path: Path, written: Path) -> None:
    write_wplus(tmp_path / "half.safetensors", tiny_model(), WPlusCard(kind="e4e"), dtype=torch.float16)
    assert (
        tmp_path / "half.safetensors"
    ).stat().st_size < 0.8 * written.stat().st_size  # many keys, few numbers
    half, whole = (read_wplus(path).model for path in (tmp_path / "half.safetensors", written))
    assert {t.dtype for t in half.state_dict().values()} == {torch.float32, torch.int64}
    face = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(half.invert(face), whole.invert(face), atol=2e-2, rtol=2e-2)


def test_writing_refuses_what_would_not_be_read(tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model())
    with pytest.raises(WeightsError, match=r"written as \.safetensors, got who\.pt"):
        write_wplus(tmp_path / "who.pt", model, WPlusCard(kind="e4e"))
    with pytest.raises(WeightsError, match=r"'e5e' is no kind of W\+ encoder that idgen knows .*e4e, psp"):
        WPlusCard(kind="e5e")
    with pytest.raises(WeightsError, match="a size_px from 1 on, got None"):
        WPlusCard(kind="e4e", crop={"template": "ffhq"})
    with torch.no_grad():
        model.encoder.get_parameter("input_layer.0.weight")[0, 0] = 1e5
    with pytest.raises(
        WeightsError, match=r"encoder\.input_layer\.0\.weight is not finite in torch\.float16"
    ):
        write_wplus(tmp_path / "who.safetensors", model, WPlusCard(kind="e4e"), dtype=torch.float16)
    with pytest.raises(StorageError, match="cannot write into"):
        write_wplus(tmp_path / "no" / "who.safetensors", model, WPlusCard(kind="e4e"))


# what others write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["e4e", "psp"])
def test_a_published_checkpoint_says_its_kind_and_gives_its_codes(tmp_path: Path, kind: str) -> None:
    file = read_wplus(save_published(tmp_path / "encode.pt", kind))
    assert file.card == WPlusCard(kind=kind)
    assert (file.model.decoder.size_px, file.model.decoder.num_mapping_layers) == (32, 2)
    assert file.model.decoder.channels == {4: 8, 8: 6, 16: 4, 32: 4}
    face, expected = torch.randn(1, 3, 64, 64), tiny_model(kind)
    codes = expected.encoder(face) + expected.latent_avg
    torch.testing.assert_close(file.model.invert(face), codes)
    torch.testing.assert_close(file.model(face), expected.decoder(codes))


def test_a_checkpoint_that_does_not_say_its_kind_asks(tmp_path: Path) -> None:
    path = save_published(tmp_path / "bare.pt", opts={})
    with pytest.raises(
        WeightsError, match=r"bare\.pt: it does not say of which kind .*kind='e4e' or kind='psp'"
    ):
        read_wplus(path)
    codes = [read_wplus(path, kind=kind).model.invert(torch.ones(1, 3, 64, 64)) for kind in ("e4e", "psp")]
    torch.testing.assert_close(codes[0][:, 0], codes[1][:, 0])  # the first head is the same in both
    assert (codes[0] - codes[1])[:, 1:].abs().max() > 1e-2
    said = save_published(tmp_path / "said.pt", "psp")
    with pytest.raises(WeightsError, match="its encoder is psp, not e4e; leave the kind out"):
        read_wplus(said, kind="e4e")
    other = save_published(tmp_path / "w.pt", opts={"encoder_type": "BackboneEncoderUsingLastLayerIntoW"})
    with pytest.raises(
        WeightsError, match=r"holds a BackboneEncoder.*reads Encoder4Editing and GradualStyle"
    ):
        read_wplus(other)


def test_a_safetensors_of_others_is_read_as_well(written: Path) -> None:
    path = written.with_name("converted.safetensors")
    save_file(load_file(written), path)
    file = read_wplus(path, kind="e4e")
    assert file.card == WPlusCard(kind="e4e")
    assert file.sha256 != read_wplus(written).sha256


@pytest.mark.parametrize("shape", [(STYLE_DIM,), (1, STYLE_DIM), (8, STYLE_DIM)])
def test_the_mean_code_has_a_row_for_each_layer(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mean = torch.arange(float(STYLE_DIM)).expand(shape).clone()
    latent_avg = read_generator(save_published(tmp_path / "encode.pt", latent_avg=mean)).latent_avg
    assert latent_avg is not None
    assert torch.equal(latent_avg, torch.arange(float(STYLE_DIM)).expand(8, -1))


def test_a_mean_code_is_needed_unless_the_codes_are_whole(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"latent_avg is \(18, 8\), the generator needs \(8, 8\)"):
        read_wplus(save_published(tmp_path / "a.pt", latent_avg=torch.zeros(18, STYLE_DIM)))
    with pytest.raises(WeightsError, match="it lacks latent_avg, the mean code"):
        read_wplus(save_published(tmp_path / "b.pt", latent_avg=None))
    options = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": False}
    file = read_wplus(save_published(tmp_path / "c.pt", latent_avg=None, opts=options))
    assert not file.model.latent_avg.any()


def test_a_generator_is_read_alone_and_what_trained_it_is_passed_over(tmp_path: Path) -> None:
    generator = tiny_generator()
    mean = torch.randn(STYLE_DIM)
    training = {
        "g": generator.state_dict(),
        "d": {"convs.0.0.weight": torch.ones(2)},
        "g_optim": {"state": {}},
    }
    torch.save({"g_ema": generator.state_dict(), "latent_avg": mean, **training}, tmp_path / "g.pt")
    file = read_generator(tmp_path / "g.pt")
    codes = torch.randn(2, 8, STYLE_DIM)
    torch.testing.assert_close(file.generator(codes), generator(codes))
    assert file.latent_avg is not None
    assert torch.equal(file.latent_avg, mean.expand(8, -1))
    torch.save({"g_ema": generator.state_dict(), "latent_avg": torch.zeros(9)}, tmp_path / "bent.pt")
    with pytest.raises(WeightsError, match=r"bent\.pt: latent_avg is \(9,\), the generator needs \(8, 8\)"):
        read_generator(tmp_path / "bent.pt")
    torch.save({"g_ema": generator.state_dict()}, tmp_path / "bare.pt")
    assert read_generator(tmp_path / "bare.pt").latent_avg is None
    assert read_generator(save_published(tmp_path / "e4e.pt")).generator.num_layers == 8
    with pytest.raises(
        WeightsError, match=r"no encoder: it can make faces .* cannot read photos; give the e4e"
    ):
        read_wplus(tmp_path / "g.pt")


# another kind of encoder -----------------------------------------------------------------------------------


class OneMatrix(CodeEncoder):
    def __init__(self, num_layers: int, style_dim: int, size_px: int) -> None:
        super().__init__()
        self.num_layers, self.style_dim = num_layers, style_dim
        self.matrix = nn.Linear(3 * size_px**2, num_layers * style_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.matrix(pixel_values.flatten(1)).unflatten(1, (self.num_layers, -1))


def test_a_third_kind_is_one_row_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(state: Any, settings: Any) -> CodeEncoder:
        num_codes, num_pixels = state["matrix.weight"].shape
        num_layers = settings["num_layers"]
        return OneMatrix(num_layers, num_codes // num_layers, int((num_pixels / 3) ** 0.5))

    monkeypatch.setitem(checkpoint.ENCODER_KINDS, "one matrix", empty)
    generator = tiny_generator()
    model = WPlusModel(OneMatrix(8, STYLE_DIM, 16), generator, torch.zeros(8, STYLE_DIM))
    crop = {"size_px": 16, "template": "arcface"}
    card = WPlusCard(kind="one matrix", crop=crop, settings={"num_layers": 8})
    write_wplus(tmp_path / "one.safetensors", model, card)
    file = read_wplus(tmp_path / "one.safetensors")
    assert file.card == card
    face = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(file.model(face), model(face))


# what we refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.body.3.shortcut_layer.0.weight"),
         r"encoder\.body\.3\.shortcut_layer\.0\.weight \(8, 4, 1, 1\) is missing$"),
        (lambda s: [s.pop(f"encoder.styles.2.{k}") for k in ("linear.weight", "linear.bias")],
         r"encoder\.styles\.2\.linear\.weight \(8, 8\) is missing \(and 1 more\)"),
        (lambda s: s.update({"encoder.body.24.res_layer.2.weight": torch.ones(7)}),
         r"encoder\.body\.24\.res_layer\.2\.weight \(7,\) has no place$"),
        (lambda s: s.update({"decoder.to_rgb1.bias": torch.ones(1, 4, 1, 1)}),
         r"decoder\.to_rgb1\.bias is \(1, 4, 1, 1\), its neighbours need \(1, 3, 1, 1\)$"),
        (lambda s: s.update({"encoder.latlayer1.bias": torch.ones(32, dtype=torch.int64)}),
         r"encoder\.latlayer1\.bias is \(32,\) of int64, its neighbours need \(32,\)$"),
        (lambda s: s.pop("decoder.convs.3.conv.weight"),
         r"decoder\.convs\.3\.conv\.weight \(1, 4, 4, 3, 3\) is missing$"),
        (lambda s: s.pop("decoder.convs.2.conv.weight"), r"decoder\.convs\.2\.conv\.weight is missing"),
        (lambda s: s.pop("encoder.input_layer.0.weight"), r"encoder\.input_layer\.0\.weight is missing"),
        (lambda s: s.update({"encoder.styles.0.linear.weight": torch.ones(8)}),
         r"encoder\.styles\.0\.linear\.weight must have 2 dimensions, none of them 0, got \(8,\)"),
        (lambda s: s.update(a=torch.ones(2), b=torch.ones(3)), r": a \(2,\) has no place \(and 1 more\)"),
        (lambda s: [s.pop(k) for k in list(s) if ".to_rgbs." in k], r"decoder\.to_rgbs\.0 is missing"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("decoder.")],
         "an encoder without its generator, .*give a checkpoint with decoder"),
        (lambda s: [s.pop(k) for k in list(s) if k != "latent_avg"],
         r"neither encoder\.\* nor decoder\.\*, but latent_avg"),
    ],
)  # fmt: skip
def test_tensors_that_are_missing_surplus_or_bent_are_named(
    written: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_wplus(rewritten(written, change))
    assert "other.safetensors: " in str(error.value)


def test_an_encoder_and_another_generator_do_not_belong_together(tmp_path: Path) -> None:
    mixed = published()
    others = {k: t for k, t in mixed["state_dict"].items() if not k.startswith("decoder.")}
    others |= {f"decoder.{k}": t for k, t in tiny_generator(16).state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"mixed\.pt: the encoder .* \(8, 8\), .* 16 pixels reads \(6, 8\)"
    ):
        read_wplus(save_published(tmp_path / "mixed.pt", state_dict=others))
    with pytest.raises(WeightsError, match=r"latent_avg is \(8,\), the generator needs \(8, 8\)"):
        WPlusModel(tiny_encoder(), tiny_generator(), torch.zeros(8))


def test_newer_and_damaged_metadata_are_refused(written: Path) -> None:
    with pytest.raises(WeightsError, match=r"W\+ format 2, this idgen reads 1: `pip install --upgrade"):
        read_wplus(rewritten(written, dict, idgen_wplus="2"))
    with pytest.raises(WeightsError, match=r"other\.safetensors: 'vit' is no kind"):
        read_wplus(rewritten(written, dict, encoder_kind="vit"))
    for crop in ("{", "3", "[1]"):
        with pytest.raises(WeightsError, match="has damaged metadata"):
            read_wplus(rewritten(written, dict, crop=crop))


def test_a_pickle_with_code_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "code was run"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "evil.pkl.pt").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    torch.save(published() | {"opts": Evil()}, tmp_path / "evil.pt")
    for name in ("evil.pkl.pt", "evil.pt"):
        for read in (read_wplus, read_generator):
            with pytest.raises(WeightsError, match="is a pickle with code in it"):
                read(tmp_path / name)
    assert not marker.exists()


def test_damaged_absent_and_other_files(tmp_path: Path, written: Path) -> None:
    save_published(tmp_path / "whole.pt")
    for whole in (written, tmp_path / "whole.pt"):
        cut = whole.with_stem("cut")
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(WeightsError, match=f"{cut.name} is damaged or is not a"):
            read_wplus(cut)
    for absent in (tmp_path / "nobody.pt", tmp_path):
        with pytest.raises(
            ModelNotFoundError, match=r"no such file: .*e4e_ffhq_encode\.pt.*nothing is downloaded"
        ):
            read_wplus(absent)
    torch.save({"model": 1, "epoch": 2, "best": 3, "last": 4}, tmp_path / "other.pt")
    with pytest.raises(
        WeightsError, match=r"neither a StyleGAN2 .*: it holds a dict of model, epoch, best, \.\.\."
    ):
        read_wplus(tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="it holds a list"):
        read_generator(tmp_path / "list.pt")
    torch.save({"g_ema": {"style.1.weight": [1.0]}}, tmp_path / "numbers.pt")
    with pytest.raises(
        WeightsError, match=r"holds a list at decoder\.style\.1\.weight, where tensors should be"
    ):
        read_generator(tmp_path / "numbers.pt")
