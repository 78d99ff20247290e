"""Prints the folder of the task that ships with FitPrune, for lmms-eval's `--include_path`.

python -m fitprune.lmms
"""

from . import TASKS

print(TASKS)
