"""Whether a store can be used, asked before a job starts rather than an hour into it."""

import uuid

from kdscale.errors import KdscaleError, StoreError
from kdscale.store.store import Store


def check(store: Store) -> None:
    """Write, read and delete a marker. KdscaleError names the URL, the cause and the fix."""
    key = f"kdscale-check-{uuid.uuid4().hex}"
    data = uuid.uuid4().bytes
    try:
        written = store.put_if_absent(key, data)
        found = store.get(key)
        store.delete(key)
    except StoreError as error:
        raise KdscaleError(f"The store {store} cannot be used: {error.what}.", error.fix) from error
    if not written or found != data:
        raise KdscaleError(
            f"The store {store} does not give back what was written to it.",
            "Use a store with read-after-write consistency.",
        )
