"""Run the teacher over the rows and commit what it knows to the logit cache.

python jobs/cache.py CONFIG [--set a.b=c ...] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job("cache")
