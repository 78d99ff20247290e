"""The pruned Llama decoder of LLaVA-1.5. Nothing is copied: transformers' own classes, attached to while pruning.

Modifications, against transformers' LlamaModel (5.0 to 5.23), while `prune(model, recipe)` is in force:

- `LlamaDecoderLayer.forward`, in layers whose recipe entry is not zero: visual tokens are ranked by the product of the
  attention they receive from the text and from the image; the lowest are cut from the residual and the attention
  output before the output projection (fitprune/decoder/layer.py, fitprune/scores.py, fitprune/kernels/select.py).
- Its last layer carries on only the positions whose logits were asked for.
- Every later layer gets the rows of mask and rotary embedding that belong to its tokens (fitprune/decoder/state.py).
- `LlamaAttention`: its implementation (sdpa, eager, flash) also shows query and key to the score (fitprune/decoder/attention.py).
- Cache layers know which tokens they hold (fitprune/decoder/cache.py).

Against the authors' modeling_llama.py: the image is found in the inputs instead of at 35 … 610; batches, padding, beams,
several images and any attention implementation work; ties go by position; recipes are data (fitprune/recipes/).

    python -c "from llava.model.language_model.modeling_llama import LlamaModel, prune; help(prune)"
"""

from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from fitprune import Recipe, attach, detach, prune

__all__ = ["LlamaDecoderLayer", "LlamaForCausalLM", "LlamaModel", "Recipe", "attach", "detach", "prune"]
