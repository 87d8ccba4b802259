"""Train the teacher, or fetch the one that exists.

python jobs/teacher.py CONFIG [--set a.b=c ...] [--overwrite]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job("teacher")
