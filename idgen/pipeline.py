"""Stable Diffusion with people in it: the diffusers pipelines, and an identity a row.

::

    pipe = IDPipeline.from_pretrained("mini")
    pipe("a photo of a woman", identity=Identity.load("who.safetensors"), seed=0).images[0]

Everything that the pipelines of diffusers do stays as it is. Without an identity, or at strength 0, the
pictures are those of the base model, bit for bit.

Two adapters can be loaded side by side, one that reads face vectors and one that reads W+ codes; each gives
a row what it knows of the person in it.

Shapes: R rows, P = R * num_images_per_prompt pictures, in the order row 0, row 0, ..., row 1, ...
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import SafetensorError

from idgen import mini
from idgen.adapters.call import finite, read_call, share_of_guidance
from idgen.adapters.checkpoint import AdapterFile, read_adapter, write_adapter
from idgen.adapters.conditioning import injected
from idgen.adapters.install import IDAdapter, install_adapter, remove_adapter
from idgen.adapters.rows import Person
from idgen.adapters.stages import StageTokens, read_stage_tokens, staged
from idgen.adapters.wplus import WPlusAdapter
from idgen.blocklist import Blocklist
from idgen.config import from_mapping, nearest
from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.identity import Identity
from idgen.storage import write_json

DEFAULTS_NAME = "idgen.json"  # beside model_index.json: the settings a model likes best
ADAPTER_FOLDER = "adapter"  # in a saved pipeline
WPLUS_FOLDER = "wplus"  # likewise

_FACE, _WPLUS = IDAdapter.feature_kind, WPlusAdapter.feature_kind
_FOLDERS = {_FACE: ADAPTER_FOLDER, _WPLUS: WPLUS_FOLDER}

_KINDS = {
    "StableDiffusionPipeline": (StableDiffusionPipeline, "IDPipeline"),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, "IDPipelineXL"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_SETTINGS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings that a model likes best; they hold where a call does not say otherwise."""

    num_inference_steps: int = 30
    guidance_scale: float = 7.0


class IdentityMixin(DiffusionPipeline):
    """What idgen adds to a diffusers pipeline with a UNet. Use ``IDPipeline`` or ``IDPipelineXL``."""

    model_defaults: ClassVar[Defaults] = Defaults()
    _adapters: Mapping[str, AdapterFile] = MappingProxyType({})  # by the kind of feature that they read
    _stage_tokens: StageTokens | None = None
    _defaults: Defaults | None = None

    @property
    def adapter(self) -> AdapterFile[IDAdapter] | None:
        """The face-vector adapter that is loaded, with its card."""
        return self._adapters.get(_FACE)

    @property
    def wplus_adapter(self) -> AdapterFile[WPlusAdapter] | None:
        """The W+ adapter that is loaded, with its card."""
        return self._adapters.get(_WPLUS)

    @property
    def defaults(self) -> Defaults:
        """The model's own settings, from ``idgen.json`` in its folder or else those usual for its kind."""
        return self._defaults or self.model_defaults

    @classmethod
    def from_pretrained(cls, model: str | Path, **settings: Any) -> Self:  # noqa: ANN401  # pyright: ignore
        """Open the embedded model (``"mini"``), a diffusers folder, or a model of the Hub.

        The adapters that lie in the folder (``save_pretrained`` puts them there) are loaded with it, and so
        is mini's own.

        Args:
            model: ``"mini"``, a folder, or an id such as ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``.
            settings: as for diffusers.

        Raises:
            ModelNotFoundError: if it is not on this disk and cannot be had, or a part is missing.
            WeightsError: if a file of weights is damaged, or the adapter beside it does not fit.
            ConfigError: if it is a model of another kind.
        """
        folder = _find_model(model)
        index = _read_index(folder, settings)
        _check_kind(cls, index, str(model))
        _check_components(Path(folder), index, settings)
        try:
            pipe = super().from_pretrained(folder, **settings)
        except OSError as error:
            raise ModelNotFoundError(
                f"the model {model} is incomplete: {str(error).splitlines()[0]}"
            ) from None
        except SafetensorError as error:
            raise WeightsError(f"the model {model} holds a damaged file of weights: {error}") from None
        defaults = Path(folder) / DEFAULTS_NAME
        if defaults.is_file():
            pipe._defaults = _read_defaults(defaults)
        if model == "mini":
            pipe.load_adapter(mini.ADAPTER)
        for name in _FOLDERS.values():
            if (Path(folder) / name).is_dir():
                pipe.load_adapter(Path(folder) / name)
        return pipe

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:  # noqa: ANN401 # pyright: ignore
        """Save as an ordinary diffusers folder; beside the model ``adapter/``, ``wplus/`` and ``idgen.json``.

        Plain diffusers opens the base model from it, and the face-vector adapter by ``load_ip_adapter``.
        """
        super().save_pretrained(str(save_directory), **settings)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        index["_class_name"] = next(
            c.__name__ for c in type(self).__mro__ if c.__module__.startswith("diffusers.")
        )
        write_json(folder / self.config_name, index)
        write_json(folder / DEFAULTS_NAME, asdict(self.defaults))
        for kind, file in self._adapters.items():
            place = folder / _FOLDERS[kind]
            place.mkdir(exist_ok=True)
            write_adapter(place / f"{file.path.stem}.safetensors", file.adapter, file.card, dtype=file.dtype)

    def load_adapter(self, path: str | Path | AdapterFile, *, encoder: str | None = None) -> AdapterFile:
        """Put an IP-Adapter FaceID file or a W+ adapter on the model, in place of the one of its kind before.

        Args:
            path: the file, a folder with exactly one, or what ``read_adapter`` made of it.
            encoder: whose face vectors or W+ codes it reads, where the file does not say so.

        Raises:
            ModelNotFoundError: if there is no such file.
            WeightsError: if it is of another family or does not fit this model; what was there before stays.
        """
        file = path if isinstance(path, AdapterFile) else read_adapter(path, encoder=encoder)
        install_adapter(self.unet, file.adapter)
        loaded = {**self._adapters, file.adapter.feature_kind: file}
        self._adapters = dict(sorted(loaded.items()))  # no picture depends on which was loaded first
        return file

    def unload_adapter(self) -> None:
        """Take the face-vector adapter off; without a W+ adapter, the model is bit for bit what it was."""
        self._unload(_FACE)

    def unload_wplus_adapter(self) -> None:
        """Take the W+ adapter off; without another one, the model is bit for bit what it was."""
        self._unload(_WPLUS)

    def _unload(self, feature_kind: str) -> None:
        remove_adapter(self.unet, feature_kind)
        self._adapters = {kind: file for kind, file in self._adapters.items() if kind != feature_kind}

    def load_stage_tokens(self, path: str | Path | StageTokens) -> StageTokens:
        """Put a person's identity tokens beside every prompt, in place of those before.

        Args:
            path: the file, the folder of the training that wrote it, or the tokens while they train.

        Raises:
            ModelNotFoundError: if there is no such file.
            WeightsError: if it is damaged or does not fit this model; what was there before stays.
        """
        tokens = path if isinstance(path, StageTokens) else read_stage_tokens(path)
        tokens.check_fit(
            self.unet.config["cross_attention_dim"], self.scheduler.config["num_train_timesteps"]
        )
        self._stage_tokens = tokens
        return tokens

    def unload_stage_tokens(self) -> None:
        """Take them away; the model is bit for bit what it was."""
        self._stage_tokens = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        identity: Identity | Sequence[Person] | None = None,
        id_scale: float | Sequence[float] = 1.0,
        id_start: float = 0.0,
        id_end: float = 1.0,
        id_layers: Mapping[str, float] | None = None,
        lora_scale: float = 1.0,
        wplus_scale: float | Sequence[float] = 1.0,
        wplus_start: float = 0.2,
        wplus_end: float = 1.0,
        wplus_layers: Mapping[str, float] | None = None,
        seed: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        id_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        blocklist: Blocklist | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - what the diffusers pipeline returns
        """Make pictures: row i shows ``identity[i]`` as ``prompt[i]`` asks, from a seed of its own.

        Args:
            prompt: one, or one a row.
            identity: one person for all rows, or a list with one entry a row: an Identity, a list of them
                (several references of one person), or None (nobody: the base model).
            id_scale: strength of the identity, >= 0: one, or one a row, or one a picture.
            id_start: part of the denoising from which on the identity has a say, in [0, 1).
            id_end: part up to which it has, in (0, 1].
            id_layers: factors on the strength by layer group, as in ``IDSchedule.layers``.
            lora_scale: strength of the adapter's LoRA part, where it has one; off in rows of strength 0.
            wplus_scale: as ``id_scale``, for the W+ adapter; the names with ``id_`` are for the other one.
            wplus_start: as ``id_start``; the first fifth of the steps goes without, as published.
            wplus_end: as ``id_end``.
            wplus_layers: as ``id_layers``.
            seed: of the noise: one (it counts on from picture to picture), one a row, or one a picture.
            num_inference_steps: the model's own where None.
            guidance_scale: the model's own where None; 1 switches guidance off.
            id_guidance_scale: of the identity apart from the text's: ``u + guidance_scale (t - u) +
                id_guidance_scale (ti - t)``, at half as much work again. As the text's where None.
            num_images_per_prompt: pictures a row.
            blocklist: people who refused; the user's own list if not given. An empty one is for who checked
                before, as the commands do.
            settings: everything else that the diffusers pipeline takes; prompts may be one or one a row.

        Raises:
            ConfigError: if a value is out of range, lists differ in length, or no adapter is loaded.
            IdentityError: if somebody has nothing that a loaded adapter reads.
            EncoderMismatchError: if an identity is of another encoder than the adapter's, or cannot be
                compared with people who refused.
            RefusedPersonError: if somebody refused.
        """
        defaults = self.defaults
        call = read_call(
            {
                "prompt": prompt,
                "seed": seed,
                "num_inference_steps": defaults.num_inference_steps
                if num_inference_steps is None
                else num_inference_steps,
                "guidance_scale": defaults.guidance_scale if guidance_scale is None else guidance_scale,
                "num_images_per_prompt": num_images_per_prompt,
                **settings,
            },
            identity,
        )
        _refuse(call.persons, Blocklist.load() if blocklist is None else blocklist)
        schedules = {
            _FACE: call.schedule("id", id_scale, id_start, id_end, id_layers),
            _WPLUS: call.schedule("wplus", wplus_scale, wplus_start, wplus_end, wplus_layers),
        }
        apart = None
        if id_guidance_scale is not None:
            apart = share_of_guidance(id_guidance_scale, call.settings["guidance_scale"])
        with (
            staged(self.unet, self._stage_tokens, call.num_rows * call.num_images),  # before rows are added
            injected(
                self.unet,
                self._adapters.values(),
                call.persons,
                schedules,
                lora_scale=finite(lora_scale, "lora_scale"),
                num_images=call.num_images,
                apart=apart,
                device=self._execution_device,
                num_steps=lambda: self.num_timesteps,  # pyright: ignore[reportAttributeAccessIssue]
            ),
        ):
            return super().__call__(**call.settings)  # pyright: ignore[reportAttributeAccessIssue]

    def maybe_free_model_hooks(self) -> None:
        """Called by diffusers at the end of a call: with cpu offload the adapters go to the CPU as well."""
        super().maybe_free_model_hooks()
        if getattr(self, "_all_hooks", []):
            for file in self._adapters.values():
                file.adapter.to("cpu")


class IDPipeline(IdentityMixin, StableDiffusionPipeline):  # pyright: ignore
    """Stable Diffusion 1.x and 2.x, and idgen's ``mini``, with an identity a row."""


class IDPipelineXL(IdentityMixin, StableDiffusionXLPipeline):  # pyright: ignore
    """Stable Diffusion XL with an identity a row."""

    model_defaults: ClassVar[Defaults] = Defaults(guidance_scale=5.0)


def _refuse(persons: Sequence[Person], blocklist: Blocklist) -> None:
    references = [p if isinstance(p, Sequence) else [p] for p in persons if p is not None]
    for identity in {id(one): one for several in references for one in several}.values():
        blocklist.check(identity)


def open_pipeline(model: str | Path, **settings: Any) -> IDPipeline | IDPipelineXL:  # noqa: ANN401
    """Open a model with the pipeline of its kind; the arguments are those of ``IDPipeline.from_pretrained``.

    Raises:
        ModelNotFoundError: if it is not on this disk and cannot be had.
        ConfigError: if it is neither SD 1.x, 2.x nor SDXL.
    """
    index = _read_index(_find_model(model), settings)
    return (IDPipelineXL if "XL" in str(index.get("_class_name")) else IDPipeline).from_pretrained(
        model, **settings
    )


def _find_model(model: str | Path) -> str:
    """The folder of a model, or its id on the Hub, whichever ``model`` means."""
    if model == "mini":
        if not (mini.BASE / DiffusionPipeline.config_name).is_file():
            raise ModelNotFoundError(f"the embedded model is missing from {mini.BASE}; install idgen again")
        return str(mini.BASE)
    path = Path(model).expanduser()
    if path.is_file():
        raise ModelNotFoundError(
            f"{model} is a file, a diffusers folder is wanted; convert it: "
            f"IDPipeline.from_single_file({str(model)!r}).save_pretrained(FOLDER)"
        )
    if path.is_dir():
        if not (path / DiffusionPipeline.config_name).is_file():
            raise ModelNotFoundError(f"{model} is no diffusers folder: it holds no model_index.json")
        return str(path)
    if not _HUB_ID.fullmatch(str(model)):
        raise ModelNotFoundError(
            f"no such model: {model} is no folder here{nearest(str(model), ['mini'])} "
            "(known by name: mini; models of the Hub are written OWNER/NAME)"
        )
    return str(model)


def _read_index(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model_index.json of a model found by ``_find_model``."""
    hub = {name: settings[name] for name in _HUB_SETTINGS if name in settings}
    try:
        return DiffusionPipeline.load_config(model, **hub)  # pyright: ignore[reportReturnType]
    except OSError:
        raise ModelNotFoundError(
            f"the model {model} is not on this disk, and the Hub cannot be reached or has no such model; "
            f"where there is a network get it with `hf download {model}`, or name a folder that holds it"
        ) from None


def _check_kind(cls: type, index: Mapping[str, Any], model: str) -> None:
    """Refuse a model that the class cannot hold, with the class that can."""
    kind = str(index.get("_class_name"))
    if kind not in _KINDS:
        raise ConfigError(f"{model} is a {kind}; idgen opens Stable Diffusion 1.x, 2.x and SDXL")
    base, name = _KINDS[kind]
    if not issubclass(cls, base):
        raise ConfigError(f"{model} is a {kind}; open it with {name}")


def _check_components(folder: Path, index: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a folder without all parts that its index names; a missing tokenizer would be made up empty."""
    if not folder.is_dir():
        return  # a model of the Hub, which diffusers looks after
    for name, entry in index.items():
        is_component = isinstance(entry, list | tuple) and len(entry) == 2 and None not in entry
        if is_component and name not in settings and not (folder / name).is_dir():
            raise ModelNotFoundError(f"the model {folder} is incomplete: it has no {name}/")


def _read_defaults(path: Path) -> Defaults:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    return from_mapping(Defaults, values, at=str(path))
