"""What a prefill costs, layer by layer: multiply-accumulates, FLOPs and cache bytes.

There are two conventions, and a number means nothing without its name:

- `visual_*` is the paper's. Only visual tokens are counted, in multiply-accumulates, as if the image were the whole
  prompt. A *reduction ratio* is always `visual_reduction`: the budget that recipes are asked for and report.
- `prefill_*` is what a machine does: every token of the prompt, in FLOPs (two per multiply-accumulate). From it come
  the ideal speed-up, to be compared with a stop-watch, and its reduction, which is smaller than the visual one.

Deleting follows attention, so a token that is deleted in a layer still pays for that layer's projections and attention
and stays in its cache, but not for the output projection, the MLP or any later layer. Attention is counted as the full
square, which is what the paper does and what an eager forward multiplies; a causal kernel may do half of it, and one that knows
of sliding windows or chunks less. Norms, softmax and rotary embedding are left out (well under 1%), and so is what comes before
the first layer. Integers in, exact integers out.

layer.py      what one layer costs, in six numbers
total.py      what a decoder of such layers costs
reading.py    a transformers config → its layers, counted from the weights of a model that has none
parts.py      what a part of a layer is, told by its forward

    python -c "from fitprune.cost import VICUNA_7B; print(sum(VICUNA_7B.visual_macs([576] * 32, 576)))"
"""

from .layer import LayerCost
from .total import VICUNA_7B, CostModel, alive_after, deletions_of

__all__ = ["VICUNA_7B", "CostModel", "LayerCost", "alive_after", "deletions_of"]
