"""How a transformers decoder is entered and left while tokens disappear from it. A pruned layer, on the tokens still carried:

    normed   = norm(hidden)
    attended = attention(normed)                          # every carried token asks and is asked; the cache keeps all of them
    scores   = score(query, key)                          # scores.py: what each visual token received, in this layer
    survive  = all but the lowest `deletions[layer]`      # deletion.py; the cut: from here on only survivors are carried
    attended = projection(attended[survive])
    hidden   = hidden[survive] + attended
    hidden   = hidden + mlp(norm(hidden))                 # deleted tokens pay for neither, nor for any later layer
    next layer: mask and rotary embeddings [survive]      # state.py: original positions; decoding goes on on shorter caches

    attach.py          hooks and replacements, and how they are taken back;  model_hooks.py: those on the outer model
    upstream.py        what they rely on in transformers;  refusals.py: what must not be there
    visual_tokens.py   where the images are in a prompt
    state.py           what a forward carries, and one layer's way through
    layer.py           a layer's forward, as above;  block.py: how layers of any shape are cut there, attention.py: who listens
    deletion.py        what a recipe makes of a prefill
    cache.py           a KV cache whose layers hold different tokens
    graphs.py          a whole prefill as one CUDA graph

No family is known here: what sets models apart (how many tokens an image takes) is handed in.

    pytest tests/decoder
"""
