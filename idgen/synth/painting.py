"""A model that draws planned pictures: each row of a micro-batch its own person, prompt and seed.

Shapes: B pictures of a micro-batch, D width of a face vector.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from PIL import Image

from idgen.blocklist import Blocklist
from idgen.identity import Identity
from idgen.opening import Kit, open_model
from idgen.opening import model_folder as find_model
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.synth.plan import PicturePlan
from idgen.synth.recipe import Recipe


class Painter:
    """The model with its adapter, on its device.

    Args:
        recipe: how it draws.
        kit: of the model.
        device: as in `open_model`.
        turn: lends a model that is open already, with the adapter on it, for one micro-batch; if not given,
            the painter opens one of its own.
        after_step: called after each step of the denoising; what it raises ends the micro-batch.

    Attributes:
        steps: of denoising.
        guidance: classifier-free.
    """

    def __init__(
        self,
        recipe: Recipe,
        kit: Kit,
        device: str,
        *,
        turn: Callable[[], AbstractContextManager[IDPipeline | IDPipelineXL]] | None = None,
        after_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.recipe, self.encoder, self._after_step = recipe, kit.encoder.id, after_step
        if turn is None:
            pipe = open_model(
                find_model(recipe.model), kit.adapter, device=device, precision=recipe.precision
            )
            pipe.set_progress_bar_config(disable=True)  # one bar for all pictures instead
            self.turn = lambda: nullcontext(pipe)
        else:
            self.turn = turn
        with self.turn() as pipe:
            defaults = pipe.defaults
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

        def step_done(_: object, step: int, time: object, tensors: dict[str, Any]) -> dict[str, Any]:
            del step, time
            self._after_step()
            return tensors

        with self.turn() as pipe:
            made = pipe(
                [plan.prompt for plan in plans],
                negative_prompt=[plan.negative_prompt for plan in plans],
                identity=[Identity.from_vector(vector, self.encoder) for vector in people],
                blocklist=Blocklist(),  # nobody was found near them, and every picture is judged
                seed=list(seeds),
                id_scale=recipe.id_scale,
                id_start=recipe.id_start,
                id_end=recipe.id_end,
                num_inference_steps=self.steps if steps is None else steps,
                guidance_scale=self.guidance,
                id_guidance_scale=recipe.id_guidance,
                width=recipe.layout.width,
                height=recipe.layout.height,
                callback_on_step_end=step_done,
            )
        blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(plans)
        return made.images, [bool(is_blocked) for is_blocked in blocked]
