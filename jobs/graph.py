"""The jobs of a graph, each started when those before it are done: what `submit --student` starts.

python jobs/graph.py GRAPH [--backend ray]
"""

from kdscale.cli.entry import run_job

if __name__ == "__main__":
    run_job(command="run-graph")
