"""What the tests of `idgen generate` share: tiny models of the real layouts on disk, an encoder, photos."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from conftest import tiny_scheduler, tiny_text_config, tiny_unet, tiny_vae
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage import data
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import write_adapter
from idgen.adapters.install import IDAdapter
from idgen.encoders.arcface import load_encoder
from idgen.tuning.lora import WEIGHTS_NAME, LoraSettings, add_lora, write_lora

ENCODER_DIM = 64


@dataclass(frozen=True)
class World:
    """A folder with everything that the command can be given."""

    root: Path
    detector: str
    encoder: Path
    judge: Path
    photo: Path

    def model(self, name: str) -> list[str]:
        """The options that name a model and its adapter."""
        return ["--model", str(self.root / name), "--adapter", str(self.root / f"{name}.safetensors")]

    def command(self, *words: str, model: str = "sd") -> list[str]:
        """A whole command that makes one small picture in two steps, unless ``words`` say otherwise."""
        options = {
            "--face": str(self.photo), "--prompt": "a face", "--count": "1", "--steps": "2", "--size": "16",
            "--detector": self.detector, "--encoder": str(self.encoder),
        }  # fmt: skip
        given = [word for option, value in options.items() if option not in words for word in (option, value)]
        named = [] if "--model" in words else self.model(model)
        return ["generate", *given, *named, *words]


def pixels(path: Path) -> np.ndarray:
    """What a picture file shows, without what it says."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def record(folder: Path) -> dict[str, Any]:
    """The record of a run."""
    return json.loads((folder / "run.json").read_text())


def build_world(root: Path, tokenizer: CLIPTokenizer) -> World:
    """Write models, adapters, encoders and the photo into ``root``."""
    torch.manual_seed(0)
    encoder, judge = root / "first.onnx", root / "second.onnx"
    write_recognizer(encoder, ENCODER_DIM, seed=1)
    write_recognizer(judge, 32, seed=2)
    _save_sd(root / "sd", tokenizer, width=16)
    _save_sd(root / "sd2", tokenizer, width=32, prediction_type="v_prediction")
    _save_sdxl(root / "sdxl", tokenizer)
    for name, width in {"sd": 16, "sd2": 32, "sdxl": 32}.items():
        settings = _SDXL_UNET if name == "sdxl" else {}
        adapter = IDAdapter.for_unet(tiny_unet(width, **settings), id_dim=ENCODER_DIM)
        card = AdapterCard(
            base_model=name, encoder=load_encoder(str(encoder)).id, num_tokens=4, licence="for tests"
        )
        write_adapter(root / f"{name}.safetensors", adapter, card)
    photo = root / "person-with-a-name.png"
    astronaut().save(photo)
    return World(root, "mini", encoder, judge, photo)


def astronaut() -> Image.Image:
    """Eileen Collins, photographed by NASA: the one real person in these tests."""
    return Image.fromarray(data.astronaut())


def write_a_lora(world: World, folder: Path, model: str = "sd") -> Path:
    """The file of a LoRA for one of the models, as training writes it, with random weights."""
    unet = UNet2DConditionModel.from_pretrained(world.root / model / "unet")
    settings = LoraSettings()
    trained = add_lora(unet, settings, seed=0)
    for value in trained.values():
        torch.nn.init.normal_(value, std=0.5, generator=torch.Generator().manual_seed(0))
    folder.mkdir(parents=True)
    write_lora(unet, settings, folder)
    return folder / WEIGHTS_NAME


_SDXL_UNET: dict[str, object] = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 16, "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}  # fmt: skip


def _save_sd(folder: Path, tokenizer: CLIPTokenizer, width: int, **scheduler: object) -> None:
    StableDiffusionPipeline(
        unet=tiny_unet(width), vae=tiny_vae(), text_encoder=CLIPTextModel(tiny_text_config(tokenizer, width)),
        tokenizer=tokenizer, scheduler=tiny_scheduler(**scheduler), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def _save_sdxl(folder: Path, tokenizer: CLIPTokenizer) -> None:
    StableDiffusionXLPipeline(
        unet=tiny_unet(32, **_SDXL_UNET), vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(tokenizer)), scheduler=tiny_scheduler(),
    ).save_pretrained(folder)  # fmt: skip


def write_recognizer(path: Path, dim: int, seed: int) -> None:
    """An ArcFace-like ONNX with random weights: blocks of 8 x 8 pixels, averaged, then one linear layer."""
    weight = np.random.default_rng(seed).standard_normal((dim, 3 * 14 * 14)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["blocks"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["blocks"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["embedding"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
