"""The tabs Dataset and Evaluate, and the choice of a model, as they are laid out."""

from typing import TYPE_CHECKING

from idgen.page.dataset import MAX_EACH, MAX_PEOPLE, MAX_SET
from idgen.page.evaluate import JOINT, LAYOUT
from idgen.page.models import OWN
from idgen.page.parts import (
    PICTURES,
    Chosen,
    connect,
    lay_out_buttons,
    lay_out_denoising,
    lay_out_outcome,
)

if TYPE_CHECKING:
    import gradio as gr

    from idgen.page.callbacks import Callbacks

# Browsers send the files of a folder without its name: it becomes the first part of each name, PERSON__FILE.
FOLDERS = """() => {
  const isPicture = name => /\\.(png|jpe?g|webp|bmp|tiff?|hei[cf])$/i.test(name);
  const give = async (id, files) => {
    const box = document.getElementById(id), all = new DataTransfer();
    for (const [file, path] of files) {
      const parts = path.split('/').filter(part => part);
      if (!isPicture(file.name) || parts.some(part => part.startsWith('.'))) continue;
      const person = parts.length > 2 ? parts[parts.length - 2].replaceAll('JOINT', '_') + 'JOINT' : '';
      all.items.add(new File([file], person + file.name, { type: file.type }));
    }
    box.querySelector('button[aria-label="Clear"]')?.click();
    for (let i = 0; i < 50 && !box.querySelector('input[type=file]'); i++)
      await new Promise(done => setTimeout(done, 50));
    const input = box.querySelector('input[type=file]');
    input.files = all.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  };
  window.idgenFolder = id => {
    const asked = document.createElement('input');
    asked.type = 'file';
    asked.webkitdirectory = true;
    asked.onchange = () => give(id, [...asked.files].map(file => [file, file.webkitRelativePath]));
    asked.click();
  };
  const walk = async (entry, found) => {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      found.push([file, entry.fullPath]);
      return;
    }
    const reader = entry.createReader();
    for (;;) {  // at most 100 of them come at once
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return;
      for (const one of some) await walk(one, found);
    }
  };
  document.addEventListener('drop', async event => {
    const box = event.target.closest?.('.takes-folder');
    const entries = [...(event.dataTransfer?.items ?? [])].map(item => item.webkitGetAsEntry?.());
    if (!box || !entries.some(entry => entry?.isDirectory)) return;
    event.preventDefault();
    event.stopPropagation();
    const found = [];
    for (const entry of entries) if (entry) await walk(entry, found);
    give(box.id, found);
  }, true);
}""".replace("JOINT", JOINT)


# --- the model --------------------------------------------------------------------------------------------


def lay_out_models(callbacks: "Callbacks") -> Chosen:
    """What can be chosen; nothing is to be seen where there is one model with one adapter."""
    import gradio as gr

    shelf = callbacks.models.shelf if callbacks.models else None
    models = list(shelf.models) if shelf else [callbacks.shop.name]
    adapters = list(shelf.adapters) if shelf else [OWN]
    is_shown = len(models) > 1 or len(adapters) > 1
    with gr.Accordion("Model", open=False, visible=is_shown, elem_id="models"):
        with gr.Row(equal_height=True):
            model = gr.Dropdown(models, value=models[0], label="Model", elem_id="models-model", min_width=200)
            adapter = gr.Dropdown(
                adapters, value=adapters[0], label="Adapter", elem_id="models-adapter", min_width=200
            )
            button = gr.Button("Open", elem_id="models-open", min_width=110, scale=0)
        status = gr.HTML(label="what is open", elem_id="models-status", min_height=0)
    return Chosen(model, adapter, button, status)


def connect_models(callbacks: "Callbacks", chosen: Chosen) -> None:
    """Let the button open what is chosen; called when all tabs have their sliders."""
    import gradio as gr

    if callbacks.models is None:
        return
    steps, guidance = (gr.Number(visible=False, label=name) for name in ("steps", "guidance"))
    opening = chosen.button.click(
        callbacks.open, chosen.inputs, [chosen.status, steps, guidance], api_name="open",
        concurrency_id="model", show_progress="minimal", show_progress_on=chosen.status,
        api_description="Open a model with an adapter of this disk: a line that says so, and the steps and "
        "the guidance that the model likes best. Other endpoints open what they are asked for themselves.",
    )  # fmt: skip

    def follow(steps: float, guidance: float) -> list[float]:
        return [steps] * len(chosen.steps) + [guidance] * len(chosen.guidance)

    opening.success(
        follow, [steps, guidance], [*chosen.steps, *chosen.guidance], queue=False, api_visibility="private"
    )


# --- Dataset ----------------------------------------------------------------------------------------------


def lay_out_dataset(callbacks: "Callbacks", chosen: Chosen) -> None:
    """A few numbers on the left, the growing dataset on the right."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                people = gr.Slider(
                    1,
                    MAX_PEOPLE,
                    4,
                    step=1,
                    label="New people",
                    info="who do not exist",
                    elem_id="dataset-people",
                )
                pictures = gr.Slider(
                    1, MAX_EACH, 4, step=1, label="Pictures of each", elem_id="dataset-pictures",
                    info=f"{MAX_SET} in all at most",
                )  # fmt: skip
            with gr.Row():
                seed = gr.Number(
                    0,
                    label="Seed",
                    info="the same gives the same people",
                    precision=0,
                    elem_id="dataset-seed",
                )
                name = gr.Textbox(
                    "new", label="Name", info="begins the names of the people", max_length=60,
                    elem_id="dataset-name",
                )  # fmt: skip
            with gr.Accordion("More settings", open=False):
                steps, guidance = lay_out_denoising(callbacks, chosen, "dataset")
            make, cancel = lay_out_buttons("dataset", "Make the dataset")
            gr.Markdown(
                "People are drawn far apart from each other, from real people whom this page keeps away "
                "from, and from people who refused. Each picture is judged, and drawn again where it does "
                "not show its person, or not what was planned.",
                elem_classes="note",
            )
        with gr.Column(scale=7, min_width=320, elem_classes="outcome"):
            outcome = lay_out_outcome(
                "dataset", "a small labelled dataset of people who do not exist", columns=4,
                files="Everything as a zip",
            )  # fmt: skip
    connect(
        make, cancel, callbacks.dataset, [people, pictures, seed, name, steps, guidance, *chosen.inputs],
        outcome, name="dataset", line="dataset",
        description="A small labelled dataset of new people: the pictures that were kept with the similarity "
        "to their person, a zip with a folder for each person, manifest.parquet, datasheet, checksums and "
        f"report, and the findings. At most {MAX_SET} pictures; `idgen synthesize` makes larger ones.",
    )  # fmt: skip


# --- Evaluate ---------------------------------------------------------------------------------------------


def lay_out_evaluate(callbacks: "Callbacks", chosen: Chosen) -> None:
    """Two sets of pictures on the left, the report on the right."""
    import gradio as gr

    del chosen  # whoever drew the pictures, the same encoders look at them
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            pictures = _lay_out_set("Pictures: a folder or a zip", "evaluate-pictures")
            references = _lay_out_set("Photos of the same people, if any", "evaluate-photos")
            make, cancel = lay_out_buttons("evaluate", "Measure")
            gr.Markdown(LAYOUT, elem_classes="note")
        with gr.Column(scale=8, min_width=320, elem_classes="outcome"):
            outcome = lay_out_outcome(
                "evaluate", "add a folder or a zip: are a person's pictures alike, and far from others'?",
                shows_pictures=False, files="The report, and all of it as a zip",
            )  # fmt: skip
    connect(
        make, cancel, callbacks.evaluate, [pictures, references], outcome, name="evaluate", line="evaluate",
        description="Whether pictures keep their people, as `idgen evaluate consistency` measures it: the "
        "tables as HTML, report.html and a zip, and the numbers. `pictures` is one zip with a folder for "
        f"each person, or pictures whose names begin with the person: PERSON{JOINT}FILE. `references` is of "
        "the same kind, or nothing.",
    )  # fmt: skip


def _lay_out_set(label: str, elem_id: str) -> "gr.File":
    """A place for a zip, pictures or a folder."""
    import gradio as gr

    files = gr.File(
        label=label, file_count="multiple", file_types=[*PICTURES, ".zip"],
        height=150, elem_id=elem_id, elem_classes="takes-folder",
    )  # fmt: skip
    folder = gr.Button("Choose a folder", size="sm", elem_id=f"{elem_id}-folder", elem_classes="chip")
    folder.click(None, None, None, js=f"() => window.idgenFolder({elem_id!r})", api_visibility="private")
    return files
