"""Objects by key, on a local disk or any store that obstore or fsspec reaches. No other room knows
either.

`store` is the contract, `local` and `remote` keep it. Below `remote`, `connection` opens a client
for each process: `native` (obstore, made by `clients`) or `fsspec_backend`; `backend` says what
they have in common, `aws` where S3 is. `retry` is the one retry policy, `errors` the one wording of
what goes wrong. `check` finds out early whether a store can be used, `probe` whether its
conditional put decides between writers, `committer` does without one, `lease` keeps other writers
out. `folders` moves whole folders, `redact` hides credentials.
"""

from kdscale.store.errors import explain, explained
from kdscale.store.folders import download_folder, upload_folder
from kdscale.store.lease import Fence, HeldLease, Lease, LeaseConfig, PutIfAbsent, read_lease
from kdscale.store.open import file_at, open_store
from kdscale.store.probe import Verdict, conditional_put, probe
from kdscale.store.single_committer import SingleCommitter
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
    "upload_folder",
]
