"""The stages of a config as a job of a cluster: what `kdscale submit` starts.

python jobs/run.py CONFIG [--set a.b=c ...] [--only STAGE] [--from STAGE] [--overwrite]
python jobs/run.py run-graph GRAPH
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job()
