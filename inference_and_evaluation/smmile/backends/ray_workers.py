"""Workers of a Ray cluster as one back end: each holds a copy of a model, on this machine or on others.

This process hands out requests and gets the answers back; workers need neither the data set nor the results
folder. Ray is an optional extra.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import smmile
from smmile import compat
from smmile.backends.interface import (
    Answered,
    BackendInfo,
    ErrorInfo,
    Failure,
    Request,
    Response,
    installed_versions,
)
from smmile.errors import UsageError, one_line, pluralize
from smmile.prompting.conversation import Conversation, ImagePart, TextPart

# A chunk, what a worker gets at a time, has at most this many requests and bytes of images.
_LARGEST_CHUNK, _CHUNK_BYTES = 256, 1 << 28
# Chunks are at least this large, which is a usual batch, until fewer are left for each worker.
_BATCH = 16
# A chunk whose worker ended is divided into parts. A request fails when workers ended while it was alone.
_PARTS, _MOST_ENDS_ALONE = 8, 2
# The run stops when each worker and this many more ended with no answer between.
_MOST_ENDS = 8
# Seconds after which a run whose workers still load the model says so.
_PATIENCE = 120
# What workers take from this process's environment. No secrets: Ray stores it.
_ENVIRONMENT = ("OMP_NUM_THREADS", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")

# Loads a model, which has what `LocalModel` has, on a machine that so many workers share. Errors for the
# user are UsageErrors.
Load = Callable[[int], Any]


@dataclass(frozen=True)
class RaySettings:
    """How many workers there are, and where.

    `workers` None: as many as the cluster's GPUs allow, or 1. `gpus` is the number of each worker's GPUs;
    None: 1 if the cluster has any. `address` None: a cluster on this machine that ends with this process.
    """

    workers: int | None = None
    gpus: int | None = None
    address: str | None = None


class _Worker:
    """A worker's process."""

    def load(self, load: Load, workers: int, gpus: int, packages: Sequence[str]) -> BackendInfo:
        """Load the model; returns what it is."""
        try:
            self._model = load(_workers_here(workers, gpus))
        except UsageError as error:
            raise UsageError(f"worker on {socket.gethostname()}: {error}") from None
        info: BackendInfo = self._model.describe()
        return replace(info, software=installed_versions(packages), processes=workers)

    def answer(
        self, requests: Sequence[Request], sample: int, seed: int
    ) -> Iterator[list[tuple[str, Response | Failure]]]:
        """Yields each batch's answers, with the keys of their requests."""
        self._model.sample, self._model.seed = sample, seed
        for batch in self._model.answer(requests):
            yield [(request.key, outcome) for request, outcome in batch]


@dataclass(eq=False)
class _Handle:
    """A worker as this process sees it, with its unanswered requests.

    `task` refers to the result of `load`, or to the stream of those of `answer`; None while it is idle.
    """

    actor: Any = None
    task: Any = None
    has_model: bool = False
    left: dict[str, Request] = field(default_factory=dict)


class RayBackend:
    """Workers that share requests; a back end. `sample` and `seed` are as for `LocalModel`."""

    sample = 1
    seed = 0

    def __init__(self, load: Load, settings: RaySettings, packages: Sequence[str] = ()) -> None:
        """Connect to the cluster, where `answer` starts workers that `load` a model.

        The workers' versions of `packages` are recorded. Raises UsageError if there is no Ray, no such
        cluster, or too few GPUs.
        """
        self._ray = ray = connect(settings.address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = settings.gpus
        if gpus is None:
            gpus = int(any(node.get("GPU") for node in nodes))
        most = sum(int(node.get("GPU", 0) // gpus) for node in nodes) if gpus else None
        number = settings.workers or most or 1
        if most is not None and number > most:
            raise UsageError(
                f"the cluster has GPUs for {pluralize(most, 'worker')} with {gpus} each, not for {number}; "
                "lower --workers or --gpus-per-worker, or add machines to the cluster"
            )
        # A whole CPU each would limit the workers' number; with none, Ray does not spread them.
        options = {"num_cpus": 0.01, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(_Worker).options(**options)
        self._loading = (load, number, gpus, packages)
        self._workers = [_Handle() for _ in range(number)]
        self._ends, self._ends_alone = 0, Counter[str]()
        self._info = BackendInfo()

    def describe(self) -> BackendInfo:
        """What all workers are that have loaded the model so far."""
        return self._info

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Yield batches of all workers as they arrive; the longest requests are handed out first.

        The unanswered requests of a worker that ended are sent again, in smaller chunks.
        """
        # In this order, requests with the same images in another order are neighbours.
        waiting = deque(sorted(requests, key=lambda request: _size(request.conversation), reverse=True))
        again: deque[list[Request]] = deque()
        patience: int | None = _PATIENCE
        workers = self._workers[: len(requests)]
        try:
            while waiting or again or any(worker.left for worker in workers):
                for worker in workers:
                    if worker.actor is None:
                        worker.actor = self._actor.remote()
                        worker.task = worker.actor.load.remote(*self._loading)
                    if worker.task is None and (again or waiting):
                        self._send(worker, again.popleft() if again else self._next_chunk(waiting))
                tasks = {worker.task: worker for worker in workers if worker.task is not None}
                ready, _ = self._ray.wait(list(tasks), timeout=patience)
                if ready:
                    if batch := self._received(tasks[ready[0]], again):
                        yield batch
                elif not any(worker.has_model for worker in workers):
                    patience = None
                    print(
                        "no worker has loaded the model yet; `ray status` shows what the cluster lacks",
                        file=sys.stderr,
                    )
        finally:
            for worker in self._workers:
                if worker.left:  # after an error: the next run must not wait for it
                    self._stop(worker)

    def _stop(self, worker: _Handle) -> None:
        self._ray.kill(worker.actor)
        worker.actor, worker.task, worker.has_model, worker.left = None, None, False, {}

    def _next_chunk(self, waiting: deque[Request]) -> list[Request]:
        """The next requests for one worker: fewer and fewer, so that all end at about the same time."""
        workers = len(self._workers)
        number = max(len(waiting) // (2 * workers), min(_BATCH, -(-len(waiting) // workers)))
        chunk, size = [waiting.popleft()], 0
        while waiting and len(chunk) < min(number, _LARGEST_CHUNK) and size < _CHUNK_BYTES:
            chunk.append(waiting.popleft())
            size += _size(chunk[-1].conversation)[1]
        return chunk

    def _send(self, worker: _Handle, chunk: Sequence[Request]) -> None:
        worker.left = {request.key: request for request in chunk}
        answer = worker.actor.answer.options(num_returns="streaming")
        worker.task = answer.remote(_with_bytes(chunk), self.sample, self.seed)

    def _received(self, worker: _Handle, again: deque[list[Request]]) -> list[Answered]:
        """What a worker has ready: answers, or none if it has loaded the model, is idle, or has ended.

        If it has ended, its requests are added to `again`. Raises UsageError.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            found = self._ray.get(next(worker.task) if worker.has_model else worker.task)
        except StopIteration:
            worker.task, worker.left = None, {}
            return []
        except RayTaskError as error:
            if isinstance(error.cause, UsageError):
                raise error.cause from None
            why = one_line(f"{type(error.cause).__name__}: {error.cause}")
            raise UsageError(f"a worker has failed ({why}); check its environment") from error
        except RayError as error:
            why = " ".join(str(error).rpartition("exit detail: ")[2].partition(" Some common")[0].split())
            return self._ended(worker, again, one_line(why, 120))
        if isinstance(found, BackendInfo):
            if set(found.devices) - set(self._info.devices):
                print(f"workers on {one_line(', '.join(found.devices))}", file=sys.stderr, flush=True)
            self._info = self._info.merged(found)
            worker.has_model, worker.task = True, None
            return []
        self._ends = 0
        return [(worker.left.pop(key), outcome) for key, outcome in found]

    def _ended(self, worker: _Handle, again: deque[list[Request]], why: str) -> list[Answered]:
        """Add the requests of a worker that has ended to `again`; one that was alone too often fails."""
        left = list(worker.left.values())
        self._stop(worker)
        self._ends += 1
        if self._ends >= len(self._workers) + _MOST_ENDS:
            raise UsageError(
                f"{self._ends} workers have ended one after the other without an answer ({why}); check the "
                "memory of their machines, or lower --workers, and repeat the command to continue"
            )
        print(
            f"warning: a worker has ended ({why}); another takes its place"
            + (f" and {pluralize(len(left), 'unanswered request')}" if left else ""),
            file=sys.stderr,
        )
        if len(left) == 1:
            [request] = left
            self._ends_alone[request.key] += 1
            if self._ends_alone[request.key] >= _MOST_ENDS_ALONE:
                return [(request, Failure(ErrorInfo("internal", f"it ends the model's process: {why}")))]
        size = max(1, len(left) // _PARTS)
        again.extend(left[start : start + size] for start in range(0, len(left), size))
        return []


def connect(address: str | None) -> Any:
    """The module ray, connected to the cluster at `address`, else to a new one on this machine.

    Nothing of its own output reaches the terminal. Workers get this package. Raises UsageError.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # other users have no access
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(
            "--engine ray needs the package ray: pip install '.[ray]' in the suite's folder"
        ) from error
    if ray.is_initialized():  # by an earlier run of this process
        return ray
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, "auto"):  # Ray would wait for minutes, and print its attempts
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(
            address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"py_modules": [str(Path(smmile.__file__).parent)], "env_vars": environment},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{f'--address {address}' if address else '--engine ray'}: Ray cannot be reached or started "
            f"({one_line(error, 200)}); check `ray status`, that all machines have the same versions of "
            "Python and Ray, and RAY_AUTH_MODE=token if the cluster wants a token"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaces it
    compat.silence_ray(ray)
    return ray


def _workers_here(workers: int, gpus: int) -> int:
    """In a worker: how many of all `workers` may be on this machine."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if not gpus:
        return -(-workers // len(nodes))
    here = nodes[ray.get_runtime_context().get_node_id()]
    return min(workers, int(here.get("GPU", gpus) // gpus))


def _size(conversation: Conversation) -> tuple[int, int, int]:
    """What decides how long an answer takes: the number of images, their bytes, and the letters."""
    images = conversation.images
    return len(images), sum(image.size for image in images), sum(map(len, conversation.texts))


def _with_bytes(requests: Iterable[Request]) -> list[Request]:
    """The same with their images in memory; equal images are one object, which pickle writes once."""
    images: dict[str, ImagePart] = {}

    def read(part: TextPart | ImagePart) -> TextPart | ImagePart:
        if isinstance(part, TextPart):
            return part
        image = part.image
        if image.sha256 not in images:
            images[image.sha256] = ImagePart(replace(image, stored=image.read()))
        return images[image.sha256]

    def whole(conversation: Conversation) -> Conversation:
        turns = conversation.turns
        return Conversation(tuple(replace(turn, content=tuple(map(read, turn.content))) for turn in turns))

    return [Request(request.key, whole(request.conversation)) for request in requests]
