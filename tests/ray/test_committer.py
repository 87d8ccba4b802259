"""Commits of many workers: through one actor where the store decides no race, else directly."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from kdscale.store import open_store
from kdscale.workers.commit_actor import open_committer
from kdscale.workers.ray_session import ray_session
from tests.proxy import UnconditionalProxy
from tests.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.mark.s3
def test_workers_commit_through_one_actor_where_the_store_does_not_decide(
    s3_env: S3Server,
) -> None:
    with UnconditionalProxy(s3_env.env) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        store = open_store(f"{s3_env.url}/unconditional")
        with ray_session(), open_committer(store) as put:

            @ray.remote(num_cpus=0)
            def attempt(number: int) -> bool:
                return put("commits/000000.json", b"%d" % number)

            won = ray.get([attempt.remote(number) for number in range(6)])
            assert sum(won) == 1
            assert store.get("commits/000000.json") == b"%d" % won.index(True)
            assert json.loads(store.get("store-probe.json"))["conditional_put"] is False
        # Its lease is given back: the next run starts at once.
        with ray_session(), open_committer(store) as put:
            assert not put("commits/000000.json", b"later")


def test_workers_commit_by_themselves_where_it_does(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with open_committer(store) as put, ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: put("key", b"%d" % number), range(8)))
    assert sum(won) == 1
    assert not store.exists("committer.json")
