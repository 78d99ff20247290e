"""Whole tokens that meet a budget: budgets, ratios, merged steps, and what the fields of a recipe may be. No torch."""
