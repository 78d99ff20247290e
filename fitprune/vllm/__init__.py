"""FitPrune inside vLLM: requests with images lose visual tokens layer by layer while vLLM batches, pages and samples as ever.

    vllm serve CHECKPOINT --additional-config '{"fitprune": {"recipe": "r60.recipe.json"}}'

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). Without a recipe that is all that happens. With one:

    settings.py     what a user may say, and the recipe as plain data that travels to every process
    config.py       vLLM's configuration: what is switched off, what is refused, by name and with the reason
    interfaces.py   the private names of vLLM that are touched, and the versions that this ran with
    requests.py     where a request's images are, and how many tokens each layer deletes: known before anything runs
    batch.py        one step: which requests bring their images now, and how many tokens each has lost
    backend.py      attention of a *stage*, the layers between two deletions: lengths and cache slots of what is left there
    decoder.py      the parts of vLLM's decoder that a deletion needs, found in the model or refused
    step.py         the forward that deletes: scores, the cut between attention and output projection, full length again at the end
    worker.py       the worker of vLLM's own choice, with all this attached to its model
    cache.py        a cache group per stage, so that what is deleted takes no memory; scheduler.py tells it about requests

A request's counts follow from its images and the recipe alone, so decode steps and every process know them without a word from
the model. Which tokens survive only the step that prefills knows; it packs them at the front of each stage's cache.

Left out: prompts in pieces, prefix caching, pipeline and context parallelism, LoRA, KV connectors, Model Runner V2 (each refused by
name). Importing this package imports neither vLLM nor torch.
"""

from __future__ import annotations

KEY = "fitprune"  # in vLLM's additional_config


def register() -> None:
    """What vLLM calls in each of its processes; a second call does nothing."""
    from .config import install

    install()
