"""The authors' fitting script: `python llava_hr/eval/statistical_analysis.py --reduction_ratio 0.6 …` (fitprune/fit_command.py)."""

from fitprune.fit_command import statistical_analysis

if __name__ == "__main__":
    raise SystemExit(statistical_analysis(model="embedded-hr"))
