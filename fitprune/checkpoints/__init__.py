"""Checkpoints in their authors' layout (liuhaotian/llava-v1.5-7b, favor123/llava-hr-7b-sft-1024, …), read directly.

`source` finds files, `weights` reads tensors, `names` renames them, `lora` merges an adapter, `tower` finds CLIP, `tokens` adds
`<image>` to the vocabulary, `original` puts a checkpoint together, `fill` loads it into an empty model, `places` spreads it
over devices, `convert` writes the transformers layout once. What differs between families is in their modules (fitprune/families/).

    fitprune convert liuhaotian/llava-v1.5-7b /tmp/llava-1.5-7b-hf
"""
