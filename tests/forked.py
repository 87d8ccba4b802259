"""Where the tests' processes are forked from: a server that has imported what takes long, once, and
opened nothing. A start takes milliseconds, so that a test can afford one for every call of a
capture, or a group of ranks for every case.
"""

import multiprocessing

context = multiprocessing.get_context("forkserver")
# The rest is what these import when they are first used. A process has one such server.
context.set_forkserver_preload(
    [
        *(
            "tests.fault.captures",
            "pandas",
            "pyarrow.compute",
            "kdscale.store.obstore_backend",
            "s3fs",
        ),
        *("torch.distributed", "deepspeed", "transformers.models.llama", "kdscale.train.job"),
    ]
)
