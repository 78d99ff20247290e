"""Checkpoints in their authors' layout (liuhaotian/llava-v1.5-7b, favor123/llava-hr-7b-sft-1024, …), read directly.

`source` finds files, `weights` reads tensors, `names` renames them, `lora` merges an adapter, `tower` finds CLIP, `tokenizer` adds
`<image>` to the vocabulary and `tokenize` reads prompts with it, `original` puts a checkpoint together, `fill` loads it into an
empty model on one device or several. What differs between families is in their modules (fitprune/families/).

    fitprune convert liuhaotian/llava-v1.5-7b /tmp/llava-1.5-7b-hf
"""
