"""What is measured beyond one benchmark.

methods.py          comparison methods at equal cost: method = schedule × score
before.py           those that shrink images before the decoder;  diverse.py: which tokens;  masked.py: as if there were no others;
                    downsample.py: smaller pictures
sweep.py            methods × ratios × benchmarks;  sweep_table.py, sweep_plot.py: what is written and drawn
ablate.py           FitPrune with one choice varied at a time
against_dense.py    pruned beside dense on the same questions;  drift.py: how far apart;  report.py: in a table
replay.py           the released code's fit;  conventions.py: how four papers count FLOPs

pytest tests/studies
"""
