"""All stages of a config: what a submitted job starts.

python jobs/run.py CONFIG [--set a.b=c ...] [--only STAGE] [--from STAGE] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job()
