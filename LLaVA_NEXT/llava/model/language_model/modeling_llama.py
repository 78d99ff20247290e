"""The pruned Llama decoder of LLaVA-NeXT. Nothing is copied: transformers' own classes, attached to while pruning.

Modifications, against transformers' LlamaModel (5.0 to 5.23), while `prune(model, recipe)` is in force: those that
LLaVA_1.5/llava/model/language_model/modeling_llama.py lists. What is peculiar here is what the decoder is given:

- The number n of visual tokens differs from picture to picture. It is read from the input, and a recipe answers for any
  n: a published table, made at 2880 tokens, deletes `int(count · n / 2880)` in each layer (fitprune/recipe.py).
- The whole picture and its tiles are one run of visual tokens, ranked together; any of them may go, from any tile.
- Row ends (`image_newline`) stand inside that run: visual tokens like the others, scored and deleted as they are.
- In a batch of pictures of different n every row deletes by its own n; mask, positions and cache follow each row.

Mistral and Qwen2 decoders (`llava-v1.6-mistral-7b`) have the same layers and are pruned by the same code.

    python -c "from llava.model.language_model.modeling_llama import LlamaModel, prune; help(prune)"
"""

from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from fitprune import Recipe, attach, detach, prune

__all__ = ["LlamaDecoderLayer", "LlamaForCausalLM", "LlamaModel", "Recipe", "attach", "detach", "prune"]
