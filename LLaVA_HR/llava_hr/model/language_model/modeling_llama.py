"""The pruned Llama decoder of LLaVA-HR. Nothing is copied: transformers' own classes, attached to while pruning.

Modifications, against transformers' LlamaModel (5.0 to 5.23), while `prune(model, recipe)` is in force: those that
LLaVA_1.5/llava/model/language_model/modeling_llama.py lists. What is peculiar here is what the decoder is given:

- Every picture is the same number of visual tokens, which the checkpoint's input size S fixes: (S / 32)² from S = 768
  on. Published tables are made for S = 1024, which is 1024 tokens, and scale in proportion to other numbers.
- CLIP's and ConvNeXt's maps are one run of tokens before the decoder sees them (fitprune/llava_hr/): pruning touches
  neither tower and saves nothing of what they cost.

    python -c "from llava_hr.model.language_model.modeling_llama import LlamaModel, prune; help(prune)"
"""

from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from fitprune import Recipe, attach, detach, prune

__all__ = ["LlamaDecoderLayer", "LlamaForCausalLM", "LlamaModel", "Recipe", "attach", "detach", "prune"]
