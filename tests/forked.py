"""Fork server of the tests' processes, which has imported the slow modules once.

It has opened nothing. A start takes milliseconds, so that a test can afford one for every call of a
capture, or a group of ranks for every case.
"""

import multiprocessing

context = multiprocessing.get_context("forkserver")
# Modules after the first are imported by it at first use. A process has one such server.
context.set_forkserver_preload(
    [
        *("tests.fault.captures", "pandas", "pyarrow.compute"),
        *("kdscale.store.obstore_backend", "s3fs", "pytest", "peft", "torch.distributed"),
        *(
            "deepspeed",
            "deepspeed.runtime.zero.muon.original_muon",
            "setuptools",
        ),
        *(
            "transformers.models.llama.modeling_llama",
            "transformers.models.llama.configuration_llama",
        ),
        *("kdscale.train.job", "kdscale.integrations.transformers"),
    ]
)
