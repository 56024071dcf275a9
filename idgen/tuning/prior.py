"""Prior pictures: what the model draws of the class before it is trained, made once and kept."""

from dataclasses import asdict
from pathlib import Path

from idgen.data.pictures import Picture, read_pictures
from idgen.diffusion.denoiser import picture_px
from idgen.errors import ConfigError
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.provenance import Provenance, save_picture
from idgen.runs import PictureRun, model_sha256, short_hash

PIXELS_AT_ONCE = 4 * 512 * 512


def prior_pictures(
    pipe: IDPipeline | IDPipelineXL, store: Path, *, prompt: str, count: int, seed: int, model: Path
) -> tuple[Picture, ...]:
    """Pictures that the model draws with its own settings, picture i from the seed ``seed + i``.

    Args:
        pipe: the model without what is trained.
        store: folder of all such pictures; these go into one named after what decides them, and those that
            are there are kept.
        prompt: names the class, such as "photo of a person".
        count: how many.
        seed: of the first.
        model: folder that ``pipe`` was opened from.

    Raises:
        StorageError: if a picture cannot be written.
    """
    from tqdm import tqdm

    model_hash, defaults, side = model_sha256(model), pipe.defaults, picture_px(pipe)
    settings = {"prompt": prompt, "seed": seed, "model": model_hash, **asdict(defaults)}
    run = PictureRun(store / f"prior-{short_hash(settings)}-{count}", settings, count)
    if not run.is_finished:
        run.start({})
    pipe.set_progress_bar_config(disable=True)  # one bar for all of them instead
    batches = run.batches(max(1, min(8, PIXELS_AT_ONCE // side**2)))
    with tqdm(total=count, initial=len(run.pictures), desc="drawing prior pictures", unit="picture",
              disable=None) as bar:  # fmt: skip
        for batch in batches:
            images = pipe([prompt] * len(batch), seed=[seed + i for i in batch]).images
            for i, image in zip(batch, images, strict=True):
                if i in run.pictures:
                    continue
                said = Provenance(
                    prompt=prompt, negative_prompt="", seed=seed + i, id_scale=0.0, model=model.name,
                    model_hash=model_hash, steps=defaults.num_inference_steps,
                    guidance_scale=defaults.guidance_scale,
                )  # fmt: skip
                save_picture(image, run.path(i), said)
                run.add(i, {"seed": seed + i})
                bar.update()
    return read_pictures(run.folder).pictures


def own_prior(folder: Path, count: int) -> tuple[Picture, ...]:
    """The first ``count`` pictures of a folder of the user's.

    Raises:
        ImageError: if there is none.
        ConfigError: if there are fewer.
    """
    found = read_pictures(folder, flat=True).pictures
    if len(found) < count:
        raise ConfigError(
            f"{folder} holds {len(found)} prior pictures, {count} are wanted (prior.count); add some, lower "
            "the number, or leave prior.folder out: then the model draws them"
        )
    return found[:count]
