"""Train the student from the cache, and its baseline from the labels.

python jobs/distill.py CONFIG [--set a.b=c ...] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job("distill")
