"""The authors' published deletion tables, one JSON file per checkpoint: data, read by `Recipe.published`.

Each table maps a nominal reduction ratio in percent to visual tokens deleted per layer at `reference_visual_tokens`.
A new checkpoint's table is a new file here and nothing else.

    python -c "from fitprune.recipe import Recipe; print(Recipe.published('llava-v1.5-7b', 0.6))"
"""
