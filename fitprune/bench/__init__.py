"""`fitprune bench`: how long things take, dense and pruned in the same run, beside what FLOPs promise.

No weights are needed: decoder, vision tower and prompt are random, at a named shape. The time of pruning includes all that it costs
(hooks, scores, selection, gathering), it runs the same attention as plain dense, and speed-ups are told against the fastest dense
variant of the run as well. The recommended method (two steps, score `spread`) runs beside the paper's, each with an ideal and a bare run of
its own.

    shapes.py      named sizes, and for each the paper's recipe and the recommended one
    models.py      random weights and a prompt
    variants.py    the prefills that are compared: dense, flash, compiled, pruned, bare, the authors' way (eager_maps.py)
    clock.py       alternating rounds, medians and quartiles, peak memory
    breakdown.py   vision tower, scoring and selection, decoding, the cache's bytes
    scoring.py     one layer's scoring alone, against its bytes and FLOPs
    break_even.py  from which length on pruning pays
    measure.py     one run, as plain numbers
    report.py, plot.py, machine.py     tables, plot, what it was measured on
    serving.py, serving_shape.py, serving_plot.py     vLLM's server under load, a command of its own

    fitprune bench --repeats 5
"""

DENSE = ("dense", "flash", "compiled")  # ways of running the whole model
EAGER_MAPS = "eager-maps"  # the authors' way of pruning, with whole attention maps
PAPER, RECOMMENDED = "paper", "recommended"
METHODS = (PAPER, RECOMMENDED)  # what is pruned by: the paper's recipes and score, the recommended method (shapes.py)
BASELINES = (*DENSE, EAGER_MAPS)  # what pruning is compared with
BREAKDOWN = ("memory", "overhead", "decode", "vision")  # measured besides the prefill's times; --skip leaves them out
