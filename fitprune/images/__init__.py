"""Image files, and how many visual tokens an image takes: sizes and integers, no model.

reading.py    a file of the user's own;  lengths.py: tokens by a config and a call;  anyres.py: LLaVA-NeXT's grids

pytest tests/images
"""
