"""Objects by key, on a local disk or any store that fsspec reaches. No other room knows fsspec.

`store` is the contract, `local` and `remote` keep it, `retry` is the one retry policy, `check`
finds out early whether a store can be used, `folders` moves whole folders, `redact` hides
credentials.
"""

from kdscale.store.folders import download_folder, upload_folder
from kdscale.store.open import open_store
from kdscale.store.store import Store

__all__ = ["Store", "download_folder", "open_store", "upload_folder"]
