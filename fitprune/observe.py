"""Watch where a few samples attend: one dense forward each, attention received per visual token and layer.

    stats = fitprune.observe(model, samples)
    stats.save("stats.safetensors")

Every layer is listened to (attention.py) and its received attention computed in row blocks (kernels/), so no S×S map
of all heads ever exists, and the model runs whatever attention implementation it has. The numbers are those of the
authors' first pass (`statistical_analysis.py`): means over queries of the maximum over heads, per visual token; from
one pass recipes for any list of ratios can be fitted (fit.py). The output layer is not run.

    fitprune fit --help
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from .attach import Arriving, Attachment, Prefill, Session, find_decoder
from .cost import CostModel
from .errors import FitPruneError
from .frame import Frame
from .kernels import TEXT
from .locate import ByTokenId, find_spans
from .ranks import ALONE, Ranks
from .scores import Attended
from .stats import AttentionStats
from .upstream import STATE


class ObserveFrame(Frame):
    """A dense prefill in which every layer is listened to and nothing is deleted."""

    def __init__(self, session: Observation, *args: Any) -> None:
        super().__init__(*args)
        self.session = session
        session.frame = self
        self.received: list[tuple[Tensor, Tensor]] = []

    def listens(self, layer: int) -> bool:
        return True

    def choose(self, seen: Attended) -> None:
        self.received.append(seen.received)


class Observation:
    """The session behind `observe`: keeps the frame of the forward that just ran."""

    frame: ObserveFrame | None = None

    def begin(self, call: Prefill) -> Frame:
        return ObserveFrame(self, *call.parts)


def per_image(frame: ObserveFrame) -> list[tuple[Tensor, Tensor, int, int]]:
    """What a forward saw, image by image.

    Returns:
        Per image: cross [L, n] and intra [L, n] (means over their queries, float32, CPU), its number of visual tokens,
        and how many tokens of its row are not visual.
    """
    cross = torch.stack([c for c, _ in frame.received]).cpu()  # [L, B, S]
    intra = torch.stack([i for _, i in frame.received]).cpu()
    images = []
    for row, spans in enumerate(frame.spans):
        for start, end in spans:
            text = int((frame.host_group[row, end:] == TEXT).sum())
            if text == 0:
                raise FitPruneError(
                    "a sample has no text after its image, so no attention from text can be observed: ask a question after the image"
                )
            others = int((frame.host_group[row] == TEXT).sum())
            images.append(
                (cross[:, row, start:end] / text, intra[:, row, start:end] / (end - start), end - start, others)
            )
    return images


def observe(
    model: nn.Module,
    samples: Iterable[Any],
    *,
    name: str | None = None,
    total: int | None = None,
    progress: bool = True,
    prepare: Callable[[Any], Mapping[str, Any]] | None = None,
    ranks: Ranks = ALONE,
) -> AttentionStats:
    """Runs the model densely on samples and keeps the attention that each visual token received in each layer.

    Args:
        model: As for `prune`.
        samples: Model inputs as a processor makes them (`input_ids` [B, S], `attention_mask`, `pixel_values`, …), one
            or several samples per item (batches of any size give the same statistics). For a bare decoder give
            `inputs_embeds` and `visual_mask` (bool [B, S]).
        name: Model name to write into statistics and recipes, default the config's.
        total: Number of items, for the progress bar, if `samples` has no length.
        progress: Whether to show the bar (on stderr).
        prepare: Makes an item of `samples` into model inputs, just before it is run; None where they are that already.
        ranks: The processes that share the items, which then have to be a sequence; each gets the whole statistics.
    Returns:
        One entry per image: several images in a prompt count as several samples.
    Raises:
        FitPruneError: no samples, a sample without an image or without text after it.
    """
    decoder = find_decoder(model)
    if isinstance(samples, Mapping):
        raise FitPruneError("samples must be a list of model inputs, one mapping each: put this one in a list")
    session, digest = Observation(), hashlib.sha256()
    seen: list[tuple[Tensor, Tensor, int, int]] = []

    def run(sample: Mapping[str, Any]) -> Observed:
        run_sample(model, sample)
        assert session.frame is not None
        found = per_image(session.frame)
        session.frame = None
        return found, _digest(sample)

    attachment = attach_session(model, session)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            count = total if total is not None else len(samples) if isinstance(samples, Sized) else None
            results = _in_order(samples, prepare or (lambda sample: sample), run, ranks)
            shown = progress and ranks.leads
            for found, of_sample in tqdm(results, desc="observing", unit="batch", total=count, disable=not shown):
                seen += found
                digest.update(of_sample)
    finally:
        attachment.detach()
        model.train(was_training)
    if not seen:
        raise FitPruneError("nothing to observe: give at least one sample with an image")
    widest = max(count for *_, count, _ in seen)

    def padded(part: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(entry[part], (0, widest - entry[2])) for entry in seen])  # type: ignore[arg-type]

    return AttentionStats(
        cross=padded(0),
        intra=padded(1),
        visual_tokens=torch.tensor([entry[2] for entry in seen]),
        text_tokens=torch.tensor([entry[3] for entry in seen]),
        model=name or getattr(model.config, "_name_or_path", None) or type(model).__name__,
        fingerprint=digest.hexdigest(),
        cost=CostModel.from_config(decoder.config),
    )


def attach_session(model: nn.Module, session: Session) -> Attachment:
    """Attaches a session whose samples `run_sample` runs: they bring their own spans, so no mask is ever asked."""
    return Attachment(model, session, visual_mask=torch.zeros(1, 1, dtype=torch.bool))


def run_sample(model: nn.Module, sample: Mapping[str, Any]) -> None:
    """One forward of a calibration sample, without cache and without the output layer.

    Raises:
        FitPruneError: if a row of the sample has no image.
    """
    inputs = dict(sample)
    mask = inputs.pop("visual_mask", None)
    spans = find_spans(mask) if mask is not None else ByTokenId(model.config)(inputs)
    if not all(spans):
        raise FitPruneError(
            "a calibration sample has no image: remove it, or check that its prompt contains the image token"
        )
    base = getattr(model, "base_model", model)
    base(**inputs, **{STATE: Arriving(spans)}, use_cache=False)


Observed = tuple[list[tuple[Tensor, Tensor, int, int]], bytes]  # per image as `per_image`; a digest of the inputs


def _in_order(
    samples: Iterable[Any], prepare: Callable[[Any], Any], run: Callable[[Any], Observed], ranks: Ranks
) -> Iterator[Observed]:
    """What every sample shows, in order, whoever ran it."""
    if ranks.size == 1:
        return (run(prepare(sample)) for sample in samples)
    items: Sequence[Any] = samples if isinstance(samples, Sequence) else list(samples)
    return ranks.in_order(items, prepare, run, _packed, _unpacked)


def _packed(observed: Observed) -> bytes:
    images, digest = observed
    tensors = {
        f"{part} {at}": tensor.contiguous() for at, image in enumerate(images) for part, tensor in enumerate(image[:2])
    }
    counts = torch.tensor([image[2:] for image in images])  # [image, 2]
    return save({**tensors, "counts": counts, "digest": torch.frombuffer(bytearray(digest), dtype=torch.uint8)})


def _unpacked(data: bytes) -> Observed:
    found = load(data)
    images = [
        (found[f"0 {at}"], found[f"1 {at}"], int(n), int(others)) for at, (n, others) in enumerate(found["counts"])
    ]
    return images, found["digest"].numpy().tobytes()


def _digest(inputs: Mapping[str, Any]) -> bytes:
    """A sample's part in the fingerprint of the calibration set."""
    digest = hashlib.sha256()
    for key in sorted(inputs):
        value = inputs[key]
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.view(torch.uint8).numpy().tobytes() if value.ndim else str(value.item()).encode())
    return digest.digest()
