"""The page in a browser: this person, that prompt, and how sure we are that it is still this person."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.config import Parser
from idgen.errors import ConfigError
from idgen.startup import quick_imports

if TYPE_CHECKING:
    import gradio as gr
    import numpy as np

    from idgen.page.callbacks import Callbacks
    from idgen.page.keeping import Keeping
    from idgen.page.making import Workshop

INTRO = """# idgen
This person, that prompt, and how sure we are that it is still this person."""
PICTURES = ["image", ".heic", ".heif"]
# Option, type, default, what stands for its value in --help, help.
OPTIONS: tuple[tuple[str, type, str | None, str, str], ...] = (
    (
        "--model",
        str,
        "mini",
        "NAME",
        "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub (mini)",
    ),
    ("--adapter", Path, None, "FILE", "IP-Adapter FaceID file (the one that came with the model)"),
    (
        "--encoder",
        str,
        None,
        "SPEC",
        "mini, an insightface pack or an ONNX file (the one that the adapter names)",
    ),
    ("--judge", str, None, "SPEC", "a second encoder, that only measures similarity (the embedded one)"),
    ("--detector", str, "mini", "SPEC", "mini, yunet:FILE, scrfd:FILE or an insightface pack (mini)"),
    ("--device", str, "auto", "NAME", "cpu, cuda, cuda:N, mps or auto (auto)"),
    ("--precision", str, "auto", "TYPE", "float32, float16, bfloat16 or auto (auto)"),
    ("--host", str, "127.0.0.1", "NAME", "who may come: this machine (127.0.0.1), or everybody (0.0.0.0)"),
    ("--port", int, None, "N", "of the page (the first free one from 7860 on)"),
    ("--auth", str, None, "WHO", "NAME:PASSWORD, or a file with one such line for each user"),
)
CONSENT = "I have the right to use these photos, and to make pictures of the person they show."


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(prog="idgen app", description=__doc__)
    for option, kind, default, metavar, text in OPTIONS:
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=text)
    text = "photos of real people, whom new ones keep away from; may be given several times"
    parser.add_argument("--gallery", type=Path, action="append", default=[], metavar="PHOTOS", help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Open the models, lay out the page, serve it until Ctrl-C."""
    options = read_options(argv)
    if not _is_installed("gradio"):
        raise ConfigError("the page needs gradio: `pip install 'idgen[app]'`")
    with quick_imports():
        from idgen.opening import hide_loading_bars
        from idgen.page.blend import real_people
        from idgen.page.keeping import private_folder
        from idgen.page.making import open_workshop
        from idgen.page.serving import Address, free_port, read_users, serve

    users = read_users(options.auth)
    address = Address(host=options.host, port=free_port(options.host, options.port), users=users)
    if address.warning:
        print(f"idgen: {address.warning}", file=sys.stderr)
    hide_loading_bars()
    shop = open_workshop(
        options.model,
        adapter=options.adapter,
        encoder=options.encoder,
        judge=options.judge,
        detector=options.detector,
        device=options.device,
        precision=options.precision,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: photos are deleted then
    galleries = real_people(options.gallery, shop.kit.detector, shop.kit.encoder)
    with private_folder() as keeping:
        serve(build_page(shop, keeping, galleries), address)


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def build_page(shop: "Workshop", keeping: "Keeping", galleries: "Sequence[np.ndarray]" = ()) -> "gr.Blocks":
    """The whole page, ready to be served.

    Args:
        shop: who makes pictures.
        keeping: where they lie.
        galleries: face vectors (M, D) of real people whom new ones keep away from.
    """
    import gradio as gr

    from idgen.page.callbacks import Callbacks

    with gr.Blocks(title="idgen", analytics_enabled=False) as page:
        gr.Markdown(INTRO, elem_classes="head")
        callbacks = Callbacks(shop, keeping, galleries)
        for name, lay_out in (
            ("Portrait", lay_out_portrait), ("Several people", lay_out_people), ("Blend", lay_out_blend),
        ):  # fmt: skip
            with gr.Tab(name):
                lay_out(callbacks)
        gr.Markdown(
            "Photos and pictures stay on the machine that runs this page, and are deleted after an hour. "
            "Every picture says in its file that a model made it, and how.",
            elem_classes="note",
        )
    return page


# --- what all tabs have -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Where a tab shows what came of a click: how far it is or how alike, pictures, a zip, numbers."""

    status: "gr.HTML"
    gallery: "gr.Gallery"
    everything: "gr.File"
    measured: "gr.JSON"

    @property
    def parts(self) -> "list[Any]":
        """All of them, in the order of `Callbacks.shown`."""
        return [self.status, self.gallery, self.everything, self.measured]


def lay_out_outcome(tab: str, invitation: str, *, columns: int = 2) -> Outcome:
    """An empty column, for pictures to come."""
    import gradio as gr

    from idgen.page.markup import message_html

    status = gr.HTML(message_html(invitation), label="outcome", elem_id=f"{tab}-status", min_height=24)
    gallery = gr.Gallery(
        label="Pictures", columns=columns, object_fit="contain", height=None, interactive=False, format="png",
        buttons=["download", "fullscreen"], elem_id=f"{tab}-gallery", elem_classes=["results", "result"],
    )  # fmt: skip
    everything = gr.File(
        label="All of them as a zip",
        interactive=False,
        height=90,
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

    from idgen.page.making import MAX_PROMPT

    return gr.Textbox(label=label, lines=2, max_length=MAX_PROMPT, value=value, elem_id=elem_id)


def lay_out_who() -> "gr.Dropdown":
    """Which face is meant."""
    import gradio as gr

    from idgen.page.looking import WHO

    return gr.Dropdown(list(WHO), value=next(iter(WHO)), label="If a photo shows several faces, I mean")


def lay_out_edits(callbacks: "Callbacks") -> "list[gr.Slider]":
    """A slider for each direction that people can be moved along; none where the model knows of none."""
    import gradio as gr

    from idgen.page.edits import MOST, edits_of

    names = edits_of(callbacks.shop.folder)
    if not names:
        return []
    with gr.Accordion("Edit the person", open=False):
        return [
            gr.Slider(-MOST, MOST, 0, step=0.5, label=name.capitalize(), elem_id=f"edit-{name}")
            for name in names
        ]


def lay_out_denoising(callbacks: "Callbacks", tab: str) -> "tuple[gr.Slider, gr.Slider]":
    """Steps and guidance."""
    import gradio as gr

    from idgen.page.making import MAX_STEPS

    defaults = callbacks.shop.pipe.defaults
    steps = gr.Slider(
        1, MAX_STEPS, defaults.num_inference_steps, step=1, label="Steps", elem_id=f"{tab}-steps"
    )
    guidance = gr.Slider(
        1, 15, defaults.guidance_scale, step=0.5, label="Guidance", info="how closely it obeys the prompt"
    )
    return steps, guidance


def lay_out_buttons(tab: str) -> "tuple[gr.Checkbox, gr.Button, gr.Button]":
    """The line about consent, and the two buttons under it."""
    import gradio as gr

    consent = gr.Checkbox(label=CONSENT, elem_id=f"{tab}-consent")
    with gr.Row():
        make = gr.Button("Make pictures", variant="primary", elem_id=f"{tab}-make")
        cancel = gr.Button("Cancel", variant="secondary", elem_id=f"{tab}-cancel", min_width=110, scale=0)
    return consent, make, cancel


def connect(
    make: "gr.Button", cancel: "gr.Button", work: Callable[..., Any], inputs: "list[Any]", outcome: Outcome,
    *, name: str, description: str,
) -> None:  # fmt: skip
    """Let the one button make pictures and the other stop that."""
    from idgen.page.markup import message_html

    making = make.click(
        work, inputs, outcome.parts, api_name=name, api_description=description, concurrency_id="model",
        show_progress="minimal", show_progress_on=outcome.status,
    )  # fmt: skip

    def stopped() -> str:
        return message_html("stopped; nothing was kept")

    said = {"outputs": outcome.status, "queue": False, "api_visibility": "private"}
    # said twice: news of a step that was on its way may come after the first time
    cancel.click(stopped, cancels=[making], **said).then(stopped, **said)


# --- the tabs ---------------------------------------------------------------------------------------------


def lay_out_portrait(callbacks: "Callbacks") -> None:
    """Photos and wishes on the left, pictures on the right."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES, MAX_PROMPT
    from idgen.page.portrait import EXAMPLES

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photos = lay_out_photos("Photos of one person", "portrait-photos")
            seen = gr.HTML(label="photos seen", elem_id="portrait-seen")
            prompt = lay_out_prompt("What the pictures show", EXAMPLES["smiling"], "portrait-prompt")
            with gr.Row(elem_classes="chips"):
                for name, words in EXAMPLES.items():
                    chip = gr.Button(name, size="sm", min_width=60, elem_classes="chip")
                    chip.click(None, None, prompt, js=f"() => {json.dumps(words)}", api_visibility="private")
            strength = gr.Slider(
                0, 2, 1, step=0.05, label="Strength", info="how much of the person; 0 is nobody"
            )
            with gr.Row():
                count = gr.Slider(1, MAX_PICTURES, min(4, MAX_PICTURES), step=1, label="Pictures")
                seed = gr.Number(0, label="Seed", info="-1 for any", precision=0)
            edits = lay_out_edits(callbacks)
            with gr.Accordion("More settings", open=False):
                who = lay_out_who()
                start = gr.Slider(
                    0, 0.9, 0, step=0.05, label="Start",
                    info="share of the steps that the prompt has for itself, before the person comes in",
                )  # fmt: skip
                negative = gr.Textbox("", label="What they should not show", max_length=MAX_PROMPT)
                steps, guidance = lay_out_denoising(callbacks, "portrait")
            consent, make, cancel = lay_out_buttons("portrait")
        with gr.Column(scale=7, min_width=320, elem_classes="outcome"):
            outcome = lay_out_outcome(
                "portrait", "add a photo, say what you would like to see, and make pictures"
            )
    photos.change(
        callbacks.look, [photos, who], seen, api_name="look", concurrency_id="eyes", show_progress="hidden",
        api_description="Which face is found in each photo, and what is doubtful, as HTML.",
    )  # fmt: skip
    who.change(
        callbacks.look, [photos, who], seen, concurrency_id="eyes", show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    connect(
        make, cancel, callbacks.portrait,
        [photos, prompt, strength, start, seed, count, consent, who, negative, steps, guidance, *edits],
        outcome,
        name="portrait",
        description="Pictures of the person in the photos, with the similarity of each. `consent` must be "
        "true: it says that you have the right to use the photos.",
    )  # fmt: skip


def lay_out_people(callbacks: "Callbacks") -> None:
    """Two or three people beside each other, their pictures below."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES
    from idgen.page.people import MOST_PEOPLE
    from idgen.page.portrait import EXAMPLES

    guests: list[Any] = []
    with gr.Row(equal_height=False):
        for number, words in zip(range(1, MOST_PEOPLE + 1), EXAMPLES.values(), strict=False):
            with gr.Column(min_width=240):
                label = f"Person {number}" if number < 3 else f"Person {number}, if there is one"
                photos = lay_out_photos(label, f"people-photos-{number}")
                guests += [
                    photos,
                    lay_out_prompt("What their pictures show", words, f"people-prompt-{number}"),
                ]
                seen = gr.HTML(label="photos seen", elem_id=f"people-seen-{number}")
                photos.change(
                    lambda given: callbacks.look(given, "the largest"), photos, seen, concurrency_id="eyes",
                    show_progress="hidden", api_visibility="private",
                )  # fmt: skip
    with gr.Row():
        strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", info="how much of each person")
        count = gr.Slider(1, MAX_PICTURES // MOST_PEOPLE, 2, step=1, label="Pictures of each")
        seed = gr.Number(0, label="Seed", info="everybody's first picture begins from it", precision=0)
    with gr.Accordion("More settings", open=False):
        steps, guidance = lay_out_denoising(callbacks, "people")
    consent, make, cancel = lay_out_buttons("people")
    with gr.Column(elem_classes="outcome"):
        outcome = lay_out_outcome(
            "people", "each person keeps their own face and their own prompt", columns=4
        )
    connect(
        make, cancel, callbacks.people, [*guests, strength, seed, count, consent, steps, guidance], outcome,
        name="people",
        description="Pictures of two or three people, made in one batch: each shows one of them, by the "
        "prompt of this person. Of several faces in a photo the largest is taken.",
    )  # fmt: skip


def lay_out_blend(callbacks: "Callbacks") -> None:
    """Two people, real or new, and a slider between them."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES

    sides: list[Any] = []
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Row(equal_height=False):
                for name in ("first", "second"):
                    with gr.Column(min_width=150):
                        photos = lay_out_photos(f"The {name} person", f"blend-{name}")
                        number = gr.Number(
                            -1, label="Without photos: new person number", info="-1 for any", precision=0,
                            elem_id=f"blend-number-{name}",
                        )  # fmt: skip
                        sides += [photos, number]
            way = gr.Slider(0, 1, 0.5, step=0.05, label="From the first to the second", elem_id="blend-way")
            prompt = lay_out_prompt("What the pictures show", "a photo of a person", "blend-prompt")
            with gr.Row():
                count = gr.Slider(1, MAX_PICTURES, 2, step=1, label="Pictures")
                seed = gr.Number(0, label="Seed", precision=0)
            with gr.Accordion("More settings", open=False):
                steps, guidance = lay_out_denoising(callbacks, "blend")
            consent, make, cancel = lay_out_buttons("blend")
        with gr.Column(scale=7, min_width=320, elem_classes="outcome"):
            outcome = lay_out_outcome(
                "blend", "without photos two people are drawn who do not exist; consent is for photos"
            )
    connect(
        make, cancel, callbacks.blend, [*sides, way, prompt, seed, count, consent, steps, guidance], outcome,
        name="blend",
        description="Pictures of somebody between two people: of photos, or new ones who do not exist. Of "
        "several faces in a photo the largest is taken.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
