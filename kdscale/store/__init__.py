"""Object store: keys to bytes, on a local disk or any store that obstore or fsspec reaches.

`store` is the contract, `local` and `remote` keep it. Below `remote`, `connection` opens a client
for each process: `obstore_backend` (S3, GCS, Azure) or `fsspec_backend` (every other protocol);
`aws` finds endpoint and credentials of S3. `retry` is the one retry policy, `errors` words what
goes wrong. `probe` tests whether a store's conditional put decides between writers,
`single_committer` replaces it where it does not, `lease` keeps other writers out. `folders` copies
whole folders, `redact` hides credentials.
"""

from kdscale.store.errors import explain, explained
from kdscale.store.folders import download_folder, upload_folder
from kdscale.store.lease import Fence, HeldLease, Lease, LeaseConfig, PutIfAbsent, read_lease
from kdscale.store.open import file_at, open_store
from kdscale.store.probe import Verdict, conditional_put, probe
from kdscale.store.single_committer import SingleCommitter, single_commits
from kdscale.store.store import Entry, Store

__all__ = [
    "Entry",
    "Fence",
    "HeldLease",
    "Lease",
    "LeaseConfig",
    "PutIfAbsent",
    "SingleCommitter",
    "Store",
    "Verdict",
    "conditional_put",
    "download_folder",
    "explain",
    "explained",
    "file_at",
    "open_store",
    "probe",
    "read_lease",
    "single_commits",
    "upload_folder",
]
