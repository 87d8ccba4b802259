"""Corpora to tokenizer and rows.

python jobs/prepare.py CONFIG [--set a.b=c ...] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job("prepare")
