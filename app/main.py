"""The page in a browser: this person, that prompt, and how sure we are that it is still this person."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.config import Parser
from idgen.errors import ConfigError
from idgen.startup import quick_imports

if TYPE_CHECKING:
    import gradio as gr

    from idgen.page.callbacks import Callbacks
    from idgen.page.galleries import Galleries
    from idgen.page.keeping import Keeping
    from idgen.page.making import Workshop
    from idgen.page.models import Models
    from idgen.page.parts import Chosen

INTRO = """# idgen
This person, that prompt, and how sure we are that it is still this person."""
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


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(prog="idgen app", description=__doc__)
    for option, kind, default, metavar, text in OPTIONS:
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=text)
    several = {
        "--models": ("FOLDER", "whose models and adapters can be chosen on the page"),
        "--gallery": ("PHOTOS", "of real people, whom new ones keep away from"),
    }
    for option, (metavar, text) in several.items():
        text += "; may be given several times"
        parser.add_argument(option, type=Path, action="append", default=[], metavar=metavar, help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Open the models, lay out the page, serve it until Ctrl-C."""
    options = read_options(argv)
    if not _is_installed("gradio"):
        raise ConfigError("the page needs gradio: `pip install 'idgen[app]'`")
    with quick_imports():
        from idgen.opening import hide_loading_bars
        from idgen.page.galleries import Galleries
        from idgen.page.keeping import private_folder
        from idgen.page.making import open_workshop
        from idgen.page.models import Models, find_models
        from idgen.page.serving import Address, free_port, read_users, serve

    users = read_users(options.auth)
    address = Address(host=options.host, port=free_port(options.host, options.port), users=users)
    if address.warning:
        print(f"idgen: {address.warning}", file=sys.stderr)
    hide_loading_bars()
    shelf = find_models(options.models, model=options.model, adapter=options.adapter)
    named = ("encoder", "judge", "detector", "device", "precision")
    models = Models(shelf, partial(open_workshop, **{name: getattr(options, name) for name in named}))
    shop = models.choose()
    with shop.turn():  # opened, and warm
        pass
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: photos are deleted then
    galleries = Galleries(options.gallery)
    galleries.seen_by(shop.kit)
    with private_folder() as keeping:
        serve(build_page(shop, keeping, galleries, models if shelf.is_a_choice else None), address)


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def build_page(
    shop: "Workshop", keeping: "Keeping", galleries: "Galleries | None" = None, models: "Models | None" = None
) -> "gr.Blocks":
    """The whole page, ready to be served.

    Args:
        shop: who makes pictures.
        keeping: where they lie.
        galleries: real people whom new ones keep away from; nobody if not given.
        models: what else can be chosen; nothing if not given.
    """
    import gradio as gr

    from idgen.page.callbacks import Callbacks
    from idgen.page.galleries import Galleries
    from idgen.page.tabs import FOLDERS, connect_models, lay_out_dataset, lay_out_evaluate, lay_out_models

    with gr.Blocks(title="idgen", analytics_enabled=False) as page:
        gr.Markdown(INTRO, elem_classes="head")
        callbacks = Callbacks(shop, keeping, galleries or Galleries(), models)
        chosen = lay_out_models(callbacks)
        tabs = {"Portrait": lay_out_portrait, "Several people": lay_out_people, "Blend": lay_out_blend,
                "Dataset": lay_out_dataset, "Evaluate": lay_out_evaluate}  # fmt: skip
        with gr.Tabs(overflow_behavior="wrap"):  # a phone's width holds three of them
            for name, lay_out in tabs.items():
                with gr.Tab(name):
                    lay_out(callbacks, chosen)
        connect_models(callbacks, chosen)
        page.load(None, None, None, js=FOLDERS, api_visibility="private")
        gr.Markdown(
            "Photos and pictures stay on the machine that runs this page, and are deleted after an hour. "
            "Every picture says in its file that a model made it, and how.",
            elem_classes="note",
        )
    return page


# --- the tabs ---------------------------------------------------------------------------------------------


def lay_out_portrait(callbacks: "Callbacks", chosen: "Chosen") -> None:
    """Photos and wishes on the left, pictures on the right."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES, MAX_PROMPT
    from idgen.page.parts import (
        connect,
        lay_out_buttons,
        lay_out_consent,
        lay_out_denoising,
        lay_out_edits,
        lay_out_outcome,
        lay_out_photos,
        lay_out_prompt,
        lay_out_who,
    )
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
                steps, guidance = lay_out_denoising(callbacks, chosen, "portrait")
            consent = lay_out_consent("portrait")
            make, cancel = lay_out_buttons("portrait")
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
        [photos, prompt, strength, start, seed, count, consent, who, negative, steps, guidance,
         *chosen.inputs, *edits],
        outcome,
        name="portrait",
        description="Pictures of the person in the photos, with the similarity of each. `consent` must be "
        "true: it says that you have the right to use the photos.",
    )  # fmt: skip


def lay_out_people(callbacks: "Callbacks", chosen: "Chosen") -> None:
    """Two or three people beside each other, their pictures below."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES
    from idgen.page.parts import (
        connect,
        lay_out_buttons,
        lay_out_consent,
        lay_out_denoising,
        lay_out_outcome,
        lay_out_photos,
        lay_out_prompt,
    )
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
        steps, guidance = lay_out_denoising(callbacks, chosen, "people")
    consent = lay_out_consent("people")
    make, cancel = lay_out_buttons("people")
    with gr.Column(elem_classes="outcome"):
        outcome = lay_out_outcome(
            "people", "each person keeps their own face and their own prompt", columns=4
        )
    connect(
        make, cancel, callbacks.people,
        [*guests, strength, seed, count, consent, steps, guidance, *chosen.inputs], outcome,
        name="people",
        description="Pictures of two or three people, made in one batch: each shows one of them, by the "
        "prompt of this person. Of several faces in a photo the largest is taken.",
    )  # fmt: skip


def lay_out_blend(callbacks: "Callbacks", chosen: "Chosen") -> None:
    """Two people, real or new, and a slider between them."""
    import gradio as gr

    from idgen.page.making import MAX_PICTURES
    from idgen.page.parts import (
        connect,
        lay_out_buttons,
        lay_out_consent,
        lay_out_denoising,
        lay_out_outcome,
        lay_out_photos,
        lay_out_prompt,
    )

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
                steps, guidance = lay_out_denoising(callbacks, chosen, "blend")
            consent = lay_out_consent("blend")
            make, cancel = lay_out_buttons("blend")
        with gr.Column(scale=7, min_width=320, elem_classes="outcome"):
            outcome = lay_out_outcome(
                "blend", "without photos two people are drawn who do not exist; consent is for photos"
            )
    connect(
        make, cancel, callbacks.blend,
        [*sides, way, prompt, seed, count, consent, steps, guidance, *chosen.inputs], outcome,
        name="blend",
        description="Pictures of somebody between two people: of photos, or new ones who do not exist. Of "
        "several faces in a photo the largest is taken.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
