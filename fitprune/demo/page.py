"""The page: a picture, a question, a ratio and a method go in; two answers, their figures and a slider over the layers come out.

Whatever a user does wrong is said in a sentence on the page, and what goes wrong here goes to the terminal: no traceback
leaves this machine. Inputs arrive as the browser sent them (`preprocess=False`): Gradio would open the file before its size
is known. The layer slider runs in the browser.

    fitprune demo
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from ..embedded import MODELS, embedded
from ..errors import FitPruneError
from . import figures
from .engine import MAX_QUESTION, MAX_RATIO, Engine
from .upload import FORMATS, MAX_BYTES, read_upload

QUEUE = 16  # questions that may wait
CLEANED, KEPT = 600, 3600  # seconds: how often uploads are looked through, how old they may become
SESSIONS = 32  # pages whose state is kept
CSS = Path(__file__).with_name("page.css")

EXPLAINED = {
    "fitprune": "fitted schedule; keeps what text and picture attend to (the paper's)",
    "cross": "fitted schedule; keeps what the text attends to",
    "self": "fitted schedule; keeps what the picture itself attends to",
    "last": "fitted schedule; keeps what the last token attends to (FastV's ranking)",
    "random": "fitted schedule; deletes at random: the control",
    "uniform": "the same share in every layer, the paper's ranking: the other control",
    "fastv": "FastV: deletes once, after the second layer, by the last token's attention",
    "vtw": "VTW: deletes everything in one late layer",
    "pyramiddrop": "PyramidDrop: deletes in three steps, by the last token's attention",
}
EXAMPLES = (  # embedded pictures, and questions about them
    ("5eed000000000000", "What number is written?"),
    ("5eed000000000000", "What word is written?"),
)

SHOW_LAYER = """(layer) => {
  for (const frame of document.querySelectorAll('.fitprune-frame')) frame.hidden = Number(frame.dataset.layer) !== layer;
}"""  # in the browser; the last frame that is there stays if the slider goes further


def build(gradio: Any, engine: Engine, uploads: Path) -> Any:
    """The page as Gradio's Blocks, not served yet.

    Args:
        gradio: The module, imported with its calls home switched off (server.py).
        uploads: The folder where uploaded files arrive; no other file is ever read for a user.
    """
    loaded, gr = engine.loaded, gradio
    layers = loaded.cost.layers

    def check(picture: Any) -> tuple[Any, str]:
        """Looks at a picture as soon as it is there; one that cannot be used is taken away again."""
        try:
            if picture:
                _picture(picture, uploads)
            return gr.skip(), ""
        except Exception as error:
            return None, _problem(error)

    def answer(picture: Any, question: Any, percent: Any, method: Any, layer: Any) -> tuple[str, str, str, str, str]:
        try:
            if not picture:
                raise FitPruneError("There is no picture: choose an example or upload one.")
            ratio, shown = _number(percent, "ratio") / 100, int(_number(layer, "layer"))
            made = engine.compare(_picture(picture, uploads), question, ratio, str(method))
            return "", made.dense.text, made.pruned.text, figures.table(made), figures.frames(made, shown)
        except Exception as error:
            return _problem(error), "", "", "", ""

    with gr.Blocks(title="FitPrune", analytics_enabled=False, delete_cache=(CLEANED, KEPT)) as page:
        gr.HTML(
            "<h1>FitPrune</h1><p>One question, answered with all visual tokens and with most of them pruned.</p>",
            elem_id="fitprune-title",
        )
        gr.HTML(f"<div class='fitprune-note'>{about(engine)}</div>")
        with gr.Row():
            with gr.Column(min_width=280):
                picture = gr.Image(
                    label=f"Picture ({', '.join(FORMATS)}; at most {MAX_BYTES // 2**20} MB)", type="filepath",
                    sources=["upload", "clipboard"], buttons=[], height=300, elem_id="fitprune-picture",
                )  # fmt: skip
            with gr.Column(min_width=280):
                question = gr.Textbox(
                    label="Question", lines=2, max_length=MAX_QUESTION, elem_id="fitprune-question",
                    placeholder="What number is written?",
                )  # fmt: skip
                ratio = gr.Slider(
                    0, round(100 * MAX_RATIO), value=60, step=5, label="Visual compute to save, %",
                    elem_id="fitprune-ratio",
                )  # fmt: skip
                method = gr.Dropdown(
                    [(f"{name}: {said}", name) for name, said in EXPLAINED.items()], value="fitprune",
                    label="Method", filterable=False, elem_id="fitprune-method",
                )  # fmt: skip
                ask = gr.Button("Ask", variant="primary", elem_id="fitprune-ask")
        message = gr.HTML("", elem_id="fitprune-message")
        with gr.Row():
            dense = gr.Textbox(label="Dense: every visual token", interactive=False, elem_id="fitprune-dense")
            pruned = gr.Textbox(label="Pruned", interactive=False, elem_id="fitprune-pruned")
        with gr.Row():
            table = gr.HTML("", elem_id="fitprune-table", min_width=280)
            with gr.Column(min_width=280):
                layer = gr.Slider(
                    0, layers, value=layers, step=1, label="Layers passed (0: before the first)",
                    elem_id="fitprune-layer",
                )  # fmt: skip
                shown = gr.HTML("", elem_id="fitprune-frames")
        gr.Examples(
            [[str(embedded().images / f"{name}.jpg"), text] for name, text in EXAMPLES],
            [picture, question],
            label="Examples: drawn pictures that the embedded model was not trained on",
            api_name="example",
            api_visibility="private",
        )
        closed: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
        picture.input(check, [picture], [picture, message], concurrency_limit=4, show_progress="hidden", **closed)
        given, results = [picture, question, ratio, method, layer], [message, dense, pruned, table, shown]
        gr.on([ask.click, question.submit], answer, given, results, concurrency_limit=1, **closed)
        layer.input(None, [layer], [], js=SHOW_LAYER)
    page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    page.state_session_capacity = SESSIONS
    return page


def about(engine: Engine) -> str:
    """What answers here, and what it cannot do, as HTML."""
    loaded = engine.loaded
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = f"{parameters / 1e6:.1f} million" if parameters < 1e9 else f"{parameters / 1e9:.1f} billion"
    said = f"<b>{escape(loaded.name)}</b>, {size} parameters, {loaded.cost.layers} layers, on {escape(str(loaded.device))}."
    if loaded.name in MODELS:
        said += (
            " It was trained on drawn pictures of coloured shapes, numbers and words and reads nothing else: about a "
            "photograph it answers something, but knows nothing. It is too small for its times to mean much; tokens and "
            "memory are what they are."
        )
    return said


def _picture(sent: Any, uploads: Path) -> Any:
    """The picture that a browser names: one that was uploaded here, no other file."""
    path = Path(str(sent.get("path") if isinstance(sent, dict) else sent)).resolve()
    if uploads.resolve() not in path.parents or not path.is_file():
        raise FitPruneError("This picture is no longer here: upload it again.")
    return read_upload(path)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise FitPruneError(f"The {what} must be a number.")
    return value


def _problem(error: Exception) -> str:
    """What is said on the page; a fault of ours goes to the terminal."""
    said = str(error)
    if not isinstance(error, FitPruneError):
        traceback.print_exception(error)
        said = "Something went wrong here, and the terminal says what. Try another picture or question."
    return f"<div class='fitprune-problem' role='alert'>{escape(said)}</div>"


Show = Callable[[int], None]
