"""Watch where a few samples attend: one dense forward each, attention received per visual token and layer.

    stats = fitprune.observe(model, samples)
    stats.save("stats.safetensors")

Every layer that has attention is listened to (decoder/attention.py) and its received attention computed in row blocks
(kernels/), so no S×S map of all heads ever exists, and the model runs whatever attention implementation it has. The numbers
are those of the authors' first pass (`statistical_analysis.py`): means over queries of the maximum over heads, per visual token;
from one pass recipes for any list of ratios can be fitted (fit.py). The output layer is not run.

    fitprune fit --help
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .cost import CostModel
from .decoder.attach import Attachment, PrefillPolicy, find_decoder
from .decoder.model_hooks import ImageSpans
from .decoder.state import Prefill, PrefillState
from .decoder.upstream import STATE_KEY, attention_of, forbidden_layers, unwrapped
from .decoder.visual_tokens import ByTokenId, Located, positions_of, runs_of, tokens_of
from .errors import FitPruneError, UnsupportedError
from .images.lengths import ImageLengths
from .kernels import TEXT
from .kernels.select import ALIVE
from .scores import Attended
from .stats import AttentionStats


class ObservationState(PrefillState):
    """A dense prefill in which every layer with attention is listened to and nothing is deleted."""

    def __init__(self, policy: Observation, call: Prefill) -> None:
        super().__init__(call)
        policy.state = self
        self.watched = policy.watched
        self.received: list[tuple[Tensor, Tensor] | None] = [None] * len(policy.watched)

    def needs_scores(self, layer: int) -> bool:
        return self.watched[layer]

    def select_survivors(self, seen: Attended) -> None:
        self.received[seen.layer] = seen.received


class Observation:
    """The policy behind `observe`: keeps the state of the forward that just ran."""

    state: ObservationState | None = None

    def __init__(self, decoder: nn.Module) -> None:
        layers: Any = decoder.layers
        self.watched = [attention_of(layer) is not None for layer in layers]  # [L]

    def begin(self, call: Prefill) -> PrefillState:
        return ObservationState(self, call)


def per_image(state: ObservationState) -> list[tuple[Tensor, Tensor, int, int]]:
    """What a forward saw, image by image.

    Returns:
        Per image: cross [L, n] and intra [L, n] (means over their queries, float32, CPU), its number of visual tokens,
        and how many tokens of its row are not visual. Layers that were not watched have zeros.
    """
    none = torch.zeros(state.host_status.shape)  # [B, S]
    cross, intra = (
        torch.stack([none if received is None else received[part].float().cpu() for received in state.received]) for part in (0, 1)
    )  # [L, B, S]
    images = []
    for row, spans in enumerate(state.spans):
        group, alive = state.host_group[row], state.host_status[row] == ALIVE
        for image in spans:
            place, count = positions_of(image), tokens_of(image)
            text = int((group[image[-1][1] :] == TEXT).sum())
            if text == 0:
                raise FitPruneError(
                    "a sample has no text after its image, so no attention from text can be observed: ask a question after the image"
                )
            others = int((alive & (group <= 0)).sum())
            images.append((cross[:, row, place] / text, intra[:, row, place] / count, count, others))
    return images


class Observer:
    """A model with every layer that has attention watched, inside a `with` block: called with a sample, it gives that sample's statistics.

    Args:
        model: As for `prune`.
        name: Model name to write into statistics and recipes, default the config's.
    """

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        self.model = model = unwrapped(model)
        self.name = name or getattr(model.config, "_name_or_path", None) or type(model).__name__
        decoder = find_decoder(model)
        self.policy, forbidden = Observation(decoder), forbidden_layers(decoder)
        self.deletable = tuple(layer for layer in range(len(self.policy.watched)) if layer not in forbidden)
        if not self.deletable:
            raise UnsupportedError(
                f"no layer of {type(decoder).__name__} can delete visual tokens: each {' or '.join(set(forbidden.values()))}"
            )
        self.cost = CostModel.of(decoder).deleting_in(self.deletable)

    def __enter__(self) -> Observer:
        self._attachment = attach_policy(self.model, self.policy)
        self._was_training = self.model.training
        self.model.eval()
        return self

    def __exit__(self, *_: Any) -> None:
        self._attachment.detach()
        self.model.train(self._was_training)

    @torch.inference_mode()
    def __call__(self, sample: Mapping[str, Any]) -> AttentionStats:
        """Statistics of one dense forward, an entry per image; arguments and errors as `observe`, for one item of `samples`."""
        run_sample(self.model, sample)
        assert self.policy.state is not None
        images = per_image(self.policy.state)
        self.policy.state = None
        if not images:
            raise FitPruneError("a calibration sample has no image that is not padding: remove it, or correct its attention_mask")
        widest = max(count for *_, count, _ in images)

        def padded(part: int) -> Tensor:
            return torch.stack([torch.nn.functional.pad(image[part], (0, widest - image[2])) for image in images])  # type: ignore[arg-type]

        return AttentionStats(
            cross=padded(0),
            intra=padded(1),
            visual_tokens=torch.tensor([image[2] for image in images]),
            text_tokens=torch.tensor([image[3] for image in images]),
            model=self.name,
            fingerprint=_digest(sample).hex(),
            cost=self.cost,
            deletable=self.deletable,
        )


def observe(
    model: nn.Module,
    samples: Iterable[Any],
    *,
    name: str | None = None,
    total: int | None = None,
    progress: bool = True,
    prepare: Callable[[Any], Mapping[str, Any]] = lambda sample: sample,
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
        prepare: Makes an item of `samples` into model inputs, just before it is run.
    Returns:
        One entry per image: several images in a prompt count as several samples.
    Raises:
        FitPruneError: no samples, a sample without an image or without text after it.
    """
    if isinstance(samples, Mapping):
        raise FitPruneError("samples must be a list of model inputs, one mapping each: put this one in a list")
    count = total if total is not None else len(samples) if isinstance(samples, Sized) else None
    with Observer(model, name) as observer:
        shown = tqdm(samples, desc="observing", unit="batch", total=count, disable=not progress)
        return AttentionStats.concatenate([observer(prepare(sample)) for sample in shown])


def attach_policy(model: nn.Module, policy: PrefillPolicy) -> Attachment:
    """Attaches a policy whose samples `run_sample` runs: they bring their own spans, so no mask is ever asked."""
    return Attachment(model, policy, visual_mask=torch.zeros(1, 1, dtype=torch.bool))


def run_sample(model: nn.Module, sample: Mapping[str, Any]) -> None:
    """One forward of a calibration sample, without cache and without the output layer.

    Raises:
        FitPruneError: if a row of the sample has no image.
    """
    inputs = dict(sample)
    mask = inputs.pop("visual_mask", None)
    located = Located({"image": runs_of(mask)}) if mask is not None else ByTokenId(model.config, ImageLengths(model.config))(inputs)
    if not all(any(rows) for rows in zip(*located.runs.values(), strict=True)):
        raise FitPruneError("a calibration sample has no image: remove it, or check that its prompt contains the image token")
    model = unwrapped(model)
    base = getattr(model, "base_model", model)
    base(**inputs, **{STATE_KEY: ImageSpans(located)}, use_cache=False)


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
