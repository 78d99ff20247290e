"""Whole tokens that meet a budget: how many are alive after each layer. Numbers only, no model and no torch.

budget.py      from a curve to whole tokens;  merge.py: fewer steps within the same budget
ratio.py       0.6 and 60;  validation.py: what the fields of a recipe may be

pytest tests/schedule
"""
