"""A model that draws planned pictures: each row of a micro-batch its own person, prompt and seed.

Shapes: B pictures of a micro-batch, D width of a face vector.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from idgen.identity import Identity
from idgen.opening import Kit, open_model
from idgen.opening import model_folder as find_model
from idgen.synth.plan import PicturePlan
from idgen.synth.recipe import Recipe


class Painter:
    """The model with its adapter, on its device.

    Args:
        recipe: how it draws.
        kit: of the model.
        device: as in `open_model`.

    Attributes:
        pipe: the pipeline.
        steps: of denoising.
        guidance: classifier-free.
    """

    def __init__(self, recipe: Recipe, kit: Kit, device: str) -> None:
        self.recipe, self.encoder = recipe, kit.encoder.id
        self.pipe = open_model(
            find_model(recipe.model), kit.adapter, device=device, precision=recipe.precision
        )
        self.pipe.set_progress_bar_config(disable=True)  # one bar for all pictures instead
        defaults = self.pipe.defaults
        self.steps = defaults.num_inference_steps if recipe.steps is None else recipe.steps
        self.guidance = defaults.guidance_scale if recipe.guidance is None else recipe.guidance

    def draw(
        self,
        plans: Sequence[PicturePlan],
        people: np.ndarray,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
    ) -> tuple[list[Image.Image], list[bool]]:
        """Make the pictures of a micro-batch.

        Args:
            plans: B of them.
            people: (B, D) whom they show.
            seeds: B of them.
            steps: of denoising, if others than usual.

        Returns:
            The pictures, and which of them the model's own safety checker made black.
        """
        recipe = self.recipe
        made = self.pipe(
            [plan.prompt for plan in plans],
            negative_prompt=[plan.negative_prompt for plan in plans],
            identity=[Identity.from_vector(vector, self.encoder) for vector in people],
            seed=list(seeds),
            id_scale=recipe.id_scale,
            id_start=recipe.id_start,
            id_end=recipe.id_end,
            num_inference_steps=self.steps if steps is None else steps,
            guidance_scale=self.guidance,
            id_guidance_scale=recipe.id_guidance,
            width=recipe.layout.width,
            height=recipe.layout.height,
        )
        blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(plans)
        return made.images, [bool(is_blocked) for is_blocked in blocked]
