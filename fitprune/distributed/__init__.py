"""Processes that share one run.

launch.py     who started them, and how they meet;  workers.py: who does what, and how results come together in order
heads.py      attention heads that lie on several devices (tensor parallelism)

pytest tests/distributed
"""
