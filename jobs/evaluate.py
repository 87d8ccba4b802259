"""Measure teacher, student and baseline on the evaluation sets.

python jobs/evaluate.py CONFIG [--set a.b=c ...] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job("evaluate")
