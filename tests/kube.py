"""An API server of Kubernetes as far as `kubectl` needs it for RayJobs, for the real kubectl.

What it stores it checks first against KubeRay's schemas. There is no operator: a test plays its
part by `set_status` and `add_head`. A command that is executed in a pod runs on this machine.
"""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from jsonschema import ValidationError

from tests import crd

_RAY = "/apis/ray.io/v1"
_POD = "/api/v1/namespaces/{namespace}/pods"
_VERBS = ["create", "delete", "get", "list", "patch"]
_OUT, _ERROR, _STATUS = b"\x01", b"\x02", b"\x03"  # channels of an executed command


class Kubernetes:
    """The server as a context manager; `folder` gets its kubeconfig.

    operator: whether KubeRay is installed.
    """

    def __init__(self, folder: Path, namespaces: tuple[str, ...], operator: bool = True) -> None:
        self.namespaces = namespaces
        self.kubeconfig = folder / "kubeconfig"
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self._kinds = {"rayjobs": "RayJob", "rayclusters": "RayCluster"} if operator else {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        named = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "here"}
        config |= {"clusters": [named], "contexts": [context], "users": [{"name": "me"}]}
        self.kubeconfig.write_text(json.dumps(config))
        return self

    def __exit__(self, *details: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def set_status(self, name: str, namespace: str, **status: Any) -> None:
        """What the operator has to say of a RayJob."""
        self.objects["rayjobs", namespace, name].setdefault("status", {}).update(status)

    def add_head(self, cluster: str, namespace: str) -> None:
        """A running head of the cluster."""
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": "head"}
        name = f"{cluster}-head"
        self.pods[namespace, name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "ray-head"}]},
            "status": {"phase": "Running"},
        }

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_get("/version", _answer({"major": "1", "minor": "32"}))
        app.router.add_get("/api", _answer({"kind": "APIVersions", "versions": ["v1"]}))
        app.router.add_get("/api/v1", _answer(_resources("v1", {"pods": "Pod"})))
        app.router.add_get("/apis", _answer(_groups(bool(self._kinds))))
        app.router.add_get("/api/v1/namespaces/{namespace}", self._get_namespace)
        app.router.add_get(_POD, self._list_pods)
        app.router.add_get(f"{_POD}/{{name}}", self._get_pod)
        app.router.add_get(f"{_POD}/{{name}}/exec", self._execute)
        if self._kinds:
            app.router.add_get(_RAY, _answer(_resources("ray.io/v1", self._kinds)))
            app.router.add_get("/openapi/v3", _answer(_OPENAPI_ROOT))
            app.router.add_get("/openapi/v3/ray", _answer(_openapi(self._kinds)))
            path = f"{_RAY}/namespaces/{{namespace}}/{{kind}}"
            app.router.add_post(path, self._create)
            app.router.add_get(path, self._list)
            app.router.add_get(f"{path}/{{name}}", self._get)
            app.router.add_delete(f"{path}/{{name}}", self._delete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _get_namespace(self, request: web.Request) -> web.Response:
        name = request.match_info["namespace"]
        if name not in self.namespaces:
            return _status(404, "NotFound", ("namespaces", name))
        return web.json_response({"apiVersion": "v1", "kind": "Namespace"})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        kind, namespace = request.match_info["kind"], request.match_info["namespace"]
        key = (kind, namespace, body["metadata"]["name"])
        if namespace not in self.namespaces:
            return _status(404, "NotFound", ("namespaces", namespace))
        if key in self.objects:
            return _status(409, "AlreadyExists", key)
        try:
            crd.check(body)
        except ValidationError as error:
            return _status(400, "BadRequest", key, error.message)
        # Later ones first in a listing, as the order of names has nothing to do with age.
        body["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{len(self.objects):02}Z"
        self.objects = {key: body} | self.objects
        return web.json_response(body, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        key = tuple(request.match_info[name] for name in ("kind", "namespace", "name"))
        found = self.objects.get(key)  # type: ignore[call-overload]
        return _status(404, "NotFound", key) if found is None else web.json_response(found)

    async def _delete(self, request: web.Request) -> web.Response:
        key = tuple(request.match_info[name] for name in ("kind", "namespace", "name"))
        if self.objects.pop(key, None) is None:  # type: ignore[call-overload]
            return _status(404, "NotFound", key)
        return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    async def _list(self, request: web.Request) -> web.Response:
        place = (request.match_info["kind"], request.match_info["namespace"])
        found = [item for key, item in self.objects.items() if key[:2] == place]
        return _items(request, self._kinds[place[0]], "ray.io/v1", found)

    async def _list_pods(self, request: web.Request) -> web.Response:
        namespace = request.match_info["namespace"]
        found = [item for key, item in self.pods.items() if key[0] == namespace]
        return _items(request, "Pod", "v1", found)

    async def _get_pod(self, request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        found = self.pods.get(key)
        return _status(404, "NotFound", key) if found is None else web.json_response(found)

    async def _execute(self, request: web.Request) -> web.WebSocketResponse:
        """A command by the protocol v5.channel.k8s.io: a byte names the stream that follows."""
        socket = web.WebSocketResponse(protocols=["v5.channel.k8s.io"])
        await socket.prepare(request)
        process = await asyncio.create_subprocess_exec(
            *request.query.getall("command"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await process.communicate()
        for channel, data in ((_OUT, out), (_ERROR, error)):
            for start in range(0, len(data), 30_000):
                await socket.send_bytes(channel + data[start : start + 30_000])
        status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if process.returncode:
            causes = [{"reason": "ExitCode", "message": str(process.returncode)}]
            status |= {"status": "Failure", "reason": "NonZeroExitCode"}
            status |= {"message": "command terminated", "details": {"causes": causes}}
        await socket.send_bytes(_STATUS + json.dumps(status).encode())
        await socket.close()
        return socket


def _answer(body: dict[str, Any]) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body)

    return handler


def _status(code: int, reason: str, key: tuple[str, ...], why: str = "") -> web.Response:
    plural, name = key[0], key[-1]
    text = {"AlreadyExists": "already exists", "NotFound": "not found"}.get(reason, why)
    group = "ray.io" if plural.startswith("ray") else ""
    what = f'{plural}{"." if group else ""}{group} "{name}" {text}'
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": what}
    body |= {"reason": reason, "code": code}
    return web.json_response(
        body | {"details": {"name": name, "group": group, "kind": plural}}, status=code
    )


def _items(
    request: web.Request, kind: str, version: str, items: list[dict[str, Any]]
) -> web.Response:
    """A list, as far as its selectors let pass."""
    wanted = dict(p.split("=") for p in request.query.get("labelSelector", "").split(",") if p)
    phase = request.query.get("fieldSelector", "").partition("status.phase=")[2]
    kept = [
        item
        for item in items
        if wanted.items() <= item["metadata"].get("labels", {}).items()
        and (not phase or item["status"]["phase"] == phase)
    ]
    return web.json_response({"apiVersion": version, "kind": f"{kind}List", "items": kept})


def _resources(version: str, kinds: dict[str, str]) -> dict[str, Any]:
    resources = [
        {
            "name": name,
            "singularName": name[:-1],
            "kind": kind,
            "namespaced": True,
            "verbs": _VERBS,
        }
        for name, kind in kinds.items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _groups(has_ray: bool) -> dict[str, Any]:
    version = {"groupVersion": "ray.io/v1", "version": "v1"}
    group = {"name": "ray.io", "versions": [version], "preferredVersion": version}
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group] if has_ray else []}


# Enough for kubectl to learn that this server checks fields by itself.
_OPENAPI_ROOT = {"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/ray"}}}


def _openapi(kinds: dict[str, str]) -> dict[str, Any]:
    def patch(kind: str) -> dict[str, Any]:
        named = {"group": "ray.io", "version": "v1", "kind": kind}
        parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        return {"parameters": parameters, "x-kubernetes-group-version-kind": named}

    paths = {
        f"{_RAY}/namespaces/{{namespace}}/{name}/{{name}}": {"patch": patch(kind)}
        for name, kind in kinds.items()
    }
    return {"openapi": "3.0.0", "info": {"title": "k", "version": "1"}, "paths": paths}
