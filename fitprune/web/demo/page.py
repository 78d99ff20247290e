"""The page: an image, a question, a ratio and a method go in; two answers, their figures and a slider over the layers come out.

What a user does wrong is said in a sentence on the page; what goes wrong here goes to the terminal, and no traceback leaves this
machine. Inputs arrive as the browser sent them (`preprocess=False`): Gradio would open the file before its size is known. The
layer slider runs in the browser.

    fitprune demo
"""

from __future__ import annotations

import shutil
import traceback
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ...embedded import MODELS, embedded
from ...errors import FitPruneError
from ...recipe import RECOMMENDED
from ..untrusted import MAX_BYTES, read_untrusted_image
from . import figures
from .engine import MAX_QUESTION, MAX_RATIO, Engine

MAX_WAITING = 16  # questions in the queue
MAX_SESSIONS = 32  # pages whose state is kept
MAX_NUMBER = 1000  # of a slider; whole numbers of any length can be sent
CSS = Path(__file__).with_name("page.css")

EXPLAINED = {
    "fitprune": "the paper's, attention of text × image",
    "cross": "attention of the text only",
    "self": "attention of the image only",
    "last": "attention of the last token",
    "spread": "recommended, relevant and unlike what is kept",
    "spread-last": "the same, relevant to the last token",
    "random": "no ranking, by lot",
    "uniform": "the same share in every layer",
    "fastv": "one cut, after two layers",
    "vtw": "everything, in one late layer",
    "pyramiddrop": "three cuts, evenly spread",
}  # of `methods.INSIDE`
EXAMPLES = {
    "5eed000000000000.jpg": "What number is written?",
    "5eed000000000008.jpg": "What word is written?",
    "5eed000000000006.jpg": "What color is the circle?",
    "5eed00000000000b.jpg": "How many shapes are there?",
    "5eed000000000002.jpg": "What is the second letter of the word?",
}  # embedded images, and questions about them

SHOW_LAYER = """(layer) => {
  for (const frame of document.querySelectorAll('.fitprune-frame')) frame.hidden = Number(frame.dataset.layer) !== layer;
}"""  # in the browser; the last frame that is there stays if the slider goes further


def build(gr: Any, engine: Engine, uploads: Path) -> Any:
    """The page as Gradio's (`gr`) Blocks, not served yet; no file outside the folder `uploads` is ever read for a user."""
    samples = [[str(shutil.copy(embedded().images / name, uploads)), text] for name, text in EXAMPLES.items()]

    def check(image: Any) -> tuple[Any, Any]:
        """Looks at an image as soon as it is there; one that cannot be used is taken away again."""
        try:
            if image:
                _read(image, uploads)
            return gr.skip(), gr.skip()  # a message that is there by now may be of a question
        except Exception as error:
            return None, _problem(error)

    def answer(image: Any, question: Any, percent: Any, method: Any, layer: Any) -> tuple[str, str, str, str, str]:
        try:
            if not image:
                raise FitPruneError("There is no image: choose an example or upload one.")
            ratio, shown = _number(percent, "ratio") / 100, int(_number(layer, "layer"))
            made = engine.compare(_read(image, uploads), question, ratio, str(method))
            return "", made.dense.text, made.pruned.text, figures.table(made), figures.frames(made, shown)
        except Exception as error:
            return _problem(error), "", "", "", ""

    def choose(index: Any) -> tuple[Any, Any]:
        return tuple(samples[index]) if index in range(len(samples)) else (gr.skip(), gr.skip())

    with gr.Blocks(title="FitPrune", analytics_enabled=False, fill_width=True) as page:
        title = "<h1>FitPrune</h1><p>One question, answered with all visual tokens and with most of them pruned.</p>"
        gr.HTML(title, elem_id="fitprune-title")
        gr.HTML(f"<div class='fitprune-note'>{about(engine)}</div>")
        with gr.Row():
            with gr.Column(min_width=280):
                image = gr.Image(
                    label=f"Image, at most {MAX_BYTES // 2**20} MB", type="filepath", sources=["upload", "clipboard"], buttons=[],
                    height=280, elem_id="fitprune-image",
                )  # fmt: skip
                examples = gr.Dataset(
                    components=[image], samples=[[path] for path, _ in samples], type="index", layout="gallery",
                    label="Examples, each with a question (none was used in training)", samples_per_page=len(samples),
                    elem_id="fitprune-examples",
                )  # fmt: skip
            with gr.Column(min_width=280):
                question = gr.Textbox(
                    label="Question", lines=2, max_length=MAX_QUESTION, placeholder="What number is written?",
                    elem_id="fitprune-question",
                )  # fmt: skip
                most = round(100 * MAX_RATIO)
                ratio = gr.Slider(0, most, value=60, step=5, label="Visual compute to save, %", elem_id="fitprune-ratio")
                method = gr.Dropdown(
                    [(f"{name}: {said}", name) for name, said in EXPLAINED.items()], value=RECOMMENDED, label="Method",
                    info="Those down to random delete on the fitted schedule, each by its own ranking; the rest have other schedules.",
                    filterable=False, elem_id="fitprune-method",
                )  # fmt: skip
                ask = gr.Button("Ask", variant="primary", elem_id="fitprune-ask")
        message = gr.HTML("", elem_id="fitprune-message")
        with gr.Row():
            dense = gr.Textbox(label="Dense", interactive=False, elem_id="fitprune-dense")
            pruned = gr.Textbox(label="Pruned", interactive=False, elem_id="fitprune-pruned")
        with gr.Row():
            with gr.Column(min_width=280):
                table = gr.HTML("", elem_id="fitprune-figures", apply_default_css=False)
            with gr.Column(min_width=280):
                last, label = engine.vlm.cost.layers, "Layers passed (0: before the first)"
                layer = gr.Slider(0, last, value=last, step=1, label=label, elem_id="fitprune-layer")
                shown = gr.HTML("", elem_id="fitprune-frames")
        closed: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
        image.input(None, [], [message], js="() => ''")
        image.input(check, [image], [image, message], concurrency_limit=1, show_progress="hidden", **closed)
        examples.click(choose, examples, [image, question], show_progress="hidden", **closed)
        given, results = [image, question, ratio, method, layer], [message, dense, pruned, table, shown]
        gr.on([ask.click, question.submit], answer, given, results, concurrency_limit=1, **closed)
        layer.input(None, [layer], [], js=SHOW_LAYER, trigger_mode="multiple")  # else fast moves are lost
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    page.state_session_capacity = MAX_SESSIONS
    return page


def about(engine: Engine) -> str:
    """What answers here, and what it cannot do, as HTML."""
    vlm = engine.vlm
    parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    size = f"{parameters / 1e6:.1f} million" if parameters < 1e9 else f"{parameters / 1e9:.1f} billion"
    said = f"<b>{escape(vlm.name)}</b>, {size} parameters, {vlm.cost.layers} layers, on {escape(str(vlm.device))}."
    if vlm.name in MODELS:
        said += (
            " It was trained on drawn pictures of coloured shapes, numbers and words and reads nothing else: about a "
            "photograph it answers something, but knows nothing. It is too small for its times to mean much."
        )
    return said


def _read(sent: Any, uploads: Path) -> Image.Image:
    """The image that a browser names: one that was uploaded here, no other file."""
    path = Path(str(sent.get("path") if isinstance(sent, dict) else sent)).resolve()
    if uploads.resolve() not in path.parents or not path.is_file():
        raise FitPruneError("This image is no longer here: upload it again.")
    return read_untrusted_image(path)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:  # nor NaN
        raise FitPruneError(f"The {what} must be a number, and not one of more than {MAX_NUMBER}.")
    return value


def _problem(error: Exception) -> str:
    """What is said on the page; a fault of ours goes to the terminal."""
    said = str(error)
    if not isinstance(error, FitPruneError):
        traceback.print_exception(error)
        said = "Something went wrong here, and the terminal says what. Try another image or question."
    return f"<div class='fitprune-problem' role='alert'>{escape(said)}</div>"
