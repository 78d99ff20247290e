"""Processes that share one run: who started them, who does what, how results and heads come together."""
