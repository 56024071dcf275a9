"""What the tabs of the page are laid out with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idgen.page.edits import MOST, edits_of
from idgen.page.looking import WHO
from idgen.page.making import MAX_PROMPT, MAX_STEPS
from idgen.page.markup import message_html

if TYPE_CHECKING:
    import gradio as gr

    from idgen.page.callbacks import Callbacks

PICTURES = ["image", ".heic", ".heif"]
CONSENT = "I have the right to use these photos, and to make pictures of the person they show."


@dataclass(frozen=True)
class Outcome:
    """Where a tab shows what came of a click: how far it is or how alike, pictures, a zip, numbers."""

    status: "gr.HTML"
    gallery: "gr.Gallery | None"
    everything: "gr.File"
    measured: "gr.JSON"

    @property
    def parts(self) -> "list[Any]":
        """All of them, in the order of `Callbacks.shown`."""
        every = [self.status, self.gallery, self.everything, self.measured]
        return [part for part in every if part is not None]


@dataclass(frozen=True)
class Chosen:
    """Which model with which adapter makes the pictures, for all tabs.

    Attributes:
        model: by its name.
        adapter: likewise.
        button: opens them.
        status: says so.
        steps: sliders of the tabs.
        guidance: likewise.
    """

    model: "gr.Dropdown"
    adapter: "gr.Dropdown"
    button: "gr.Button"
    status: "gr.HTML"
    steps: "list[gr.Slider]" = field(default_factory=list)
    guidance: "list[gr.Slider]" = field(default_factory=list)

    @property
    def inputs(self) -> "list[Any]":
        """The last inputs of whatever makes pictures."""
        return [self.model, self.adapter]


def lay_out_outcome(
    tab: str,
    invitation: str,
    *,
    columns: int = 2,
    shows_pictures: bool = True,
    files: str = "All of them as a zip",
) -> Outcome:
    """An empty column, for pictures or numbers to come."""
    import gradio as gr

    status = gr.HTML(message_html(invitation), label="outcome", elem_id=f"{tab}-status", min_height=24)
    gallery = gr.Gallery(
        label="Pictures", columns=columns, object_fit="contain", height=None, interactive=False, format="png",
        buttons=["download", "fullscreen"], elem_id=f"{tab}-gallery", elem_classes=["results", "result"],
    ) if shows_pictures else None  # fmt: skip
    everything = gr.File(
        label=files,
        interactive=False,
        height=90 if shows_pictures else 150,
        elem_id=f"{tab}-zip",
        elem_classes="result",
    )
    with gr.Accordion("Numbers", open=False, elem_classes="result"):
        measured = gr.JSON(label="numbers", show_label=False, elem_id=f"{tab}-numbers")
    return Outcome(status, gallery, everything, measured)


def lay_out_photos(label: str, elem_id: str) -> "gr.File":
    """A place to drop photos."""
    import gradio as gr

    return gr.File(label=label, file_count="multiple", file_types=PICTURES, height=160, elem_id=elem_id)


def lay_out_prompt(label: str, value: str, elem_id: str) -> "gr.Textbox":
    """A prompt."""
    import gradio as gr

    return gr.Textbox(label=label, lines=2, max_length=MAX_PROMPT, value=value, elem_id=elem_id)


def lay_out_who() -> "gr.Dropdown":
    """Which face is meant."""
    import gradio as gr

    return gr.Dropdown(list(WHO), value=next(iter(WHO)), label="If a photo shows several faces, I mean")


def lay_out_edits(callbacks: "Callbacks") -> "list[gr.Slider]":
    """A slider for each direction that people can be moved along; none where the model knows of none."""
    import gradio as gr

    names = edits_of(callbacks.shop.folder)
    if not names:
        return []
    with gr.Accordion("Edit the person", open=False):
        return [
            gr.Slider(-MOST, MOST, 0, step=0.5, label=name.capitalize(), elem_id=f"edit-{name}")
            for name in names
        ]


def lay_out_denoising(callbacks: "Callbacks", chosen: Chosen, tab: str) -> "tuple[gr.Slider, gr.Slider]":
    """Steps and guidance, which follow the model that is chosen."""
    import gradio as gr

    defaults = callbacks.shop.defaults
    steps = gr.Slider(
        1, MAX_STEPS, defaults.num_inference_steps, step=1, label="Steps", elem_id=f"{tab}-steps"
    )
    guidance = gr.Slider(
        1, 15, defaults.guidance_scale, step=0.5, label="Guidance", info="how closely it obeys the prompt"
    )
    chosen.steps.append(steps)
    chosen.guidance.append(guidance)
    return steps, guidance


def lay_out_consent(tab: str) -> "gr.Checkbox":
    """The line about consent."""
    import gradio as gr

    return gr.Checkbox(label=CONSENT, elem_id=f"{tab}-consent")


def lay_out_buttons(tab: str, words: str = "Make pictures") -> "tuple[gr.Button, gr.Button]":
    """What begins the work, and what ends it."""
    import gradio as gr

    with gr.Row():
        make = gr.Button(words, variant="primary", elem_id=f"{tab}-make")
        cancel = gr.Button("Cancel", variant="secondary", elem_id=f"{tab}-cancel", min_width=110, scale=0)
    return make, cancel


def connect(
    make: "gr.Button", cancel: "gr.Button", work: Callable[..., Any], inputs: "list[Any]", outcome: Outcome,
    *, name: str, description: str, line: str = "model",
) -> None:  # fmt: skip
    """Let the one button begin the work and the other stop it.

    Args:
        make: begins it.
        cancel: stops it.
        work: a generator of values of the outcome.
        inputs: of the work.
        outcome: where it is shown.
        name: of the endpoint.
        description: of the endpoint.
        line: in which clicks wait; of each line one is worked on at a time.
    """
    making = make.click(
        work, inputs, outcome.parts, api_name=name, api_description=description, concurrency_id=line,
        show_progress="minimal", show_progress_on=outcome.status,
    )  # fmt: skip

    def stopped() -> str:
        return message_html("stopped; nothing was kept")

    said = {"outputs": outcome.status, "queue": False, "api_visibility": "private"}
    # said twice: news of a step that was on its way may come after the first time
    cancel.click(stopped, cancels=[making], **said).then(stopped, **said)
