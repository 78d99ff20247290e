"""The authors' fitting script: `python llava/eval/statistical_analysis.py --reduction_ratio 0.6 …` (fitprune/cli/fit.py)."""

from fitprune.cli.fit import statistical_analysis

if __name__ == "__main__":
    raise SystemExit(statistical_analysis())
