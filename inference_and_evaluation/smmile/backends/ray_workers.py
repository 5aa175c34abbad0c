"""Workers of a Ray cluster as one back end: each holds a copy of a model, on this machine or on others.

This process hands out requests and gets the answers back; workers need neither the data set nor the results
folder. Ray is an optional extra.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import smmile
from smmile import compat
from smmile.backends.interface import (
    Answered,
    Backend,
    BackendInfo,
    ErrorInfo,
    Failure,
    Request,
    Response,
    installed_versions,
)
from smmile.backends.local.templates import shape_of
from smmile.data.images import StoredImage
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


@dataclass(frozen=True)
class RaySettings:
    """How many workers there are, and where.

    `workers` None: as many as the cluster's GPUs allow, or 1. `gpus` is the number of each worker's GPUs;
    None: 1 if the cluster has any. `address` None: a cluster on this machine that ends with this process.
    """

    workers: int | None = None
    gpus: int | None = None
    address: str | None = None


class Model(Backend, Protocol):
    """A back end in a worker; `sample` and `seed` select one of several responses."""

    sample: int
    seed: int


class Source(Protocol):
    """What loads a model; it is sent to workers by pickle."""

    def load(self, conversations: Iterable[Conversation], processes: int) -> Model:
        """A model that takes `conversations`, on a machine that `processes` workers share.

        Raises UsageError.
        """
        ...


class _Worker:
    """A worker's process. It returns a UsageError, around which Ray would put a traceback."""

    def __init__(self) -> None:
        self._printed = sys.stderr = io.StringIO()

    def load(
        self,
        source: Source,
        examples: Sequence[Conversation],
        workers: int,
        gpus: int,
        packages: Sequence[str],
    ) -> tuple[BackendInfo | UsageError, str]:
        """Load the model; returns what it is, and what was printed meanwhile."""
        try:
            self._model = source.load(examples, _workers_here(workers, gpus))
        except UsageError as error:
            return UsageError(f"worker on {socket.gethostname()}: {error}"), ""
        return replace(self._model.describe(), software=installed_versions(packages)), self._new_lines()

    def answer(
        self, requests: Sequence[Request], sample: int, seed: int
    ) -> Iterator[tuple[list[tuple[str, Response | Failure]] | UsageError, str]]:
        """Yields each batch's answers, with the keys of their requests, and what was printed meanwhile."""
        self._model.sample, self._model.seed = sample, seed
        try:
            for batch in self._model.answer(requests):
                yield [(request.key, outcome) for request, outcome in batch], self._new_lines()
        except UsageError as error:
            yield error, ""

    def _new_lines(self) -> str:
        printed = self._printed.getvalue()
        self._printed.seek(0)
        self._printed.truncate()
        return printed


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

    def __init__(
        self,
        source: Source,
        settings: RaySettings,
        conversations: Iterable[Conversation] = (),
        packages: Sequence[str] = (),
    ) -> None:
        """Connect to the cluster, and start workers that load the model of `source`.

        It must take `conversations`. The workers' versions of `packages` are recorded. Raises UsageError if
        there is no Ray, no such cluster, or too few GPUs.
        """
        self._ray = ray = connect(settings.address)
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        self._gpus: int = int(has_gpus) if settings.gpus is None else settings.gpus
        most = self._most_workers()
        number = settings.workers or most or 1
        if most is not None and number > most:
            raise UsageError(
                f"the cluster has GPUs for {pluralize(most, 'worker')} with {self._gpus} each, not for "
                f"{number}; lower --workers or --gpus-per-worker, or add machines to the cluster"
            )
        examples: dict[object, Conversation] = {}  # the largest of each shape
        for conversation in conversations:
            shape = shape_of(conversation)
            if shape not in examples or _size(conversation) > _size(examples[shape]):
                examples[shape] = conversation
        given = ray.put(_with_bytes(examples.values()))
        self._loading = (source, given, number, self._gpus, packages)
        self._workers = [_Handle() for _ in range(number)]
        self._ends, self._ends_alone = 0, Counter[str]()
        self._shown: set[str] = set()
        self._info = BackendInfo()
        for worker in self._workers:
            self._start(worker)

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
        try:
            while waiting or again or any(worker.left for worker in self._workers):
                for worker in self._workers:
                    if worker.actor is None:
                        self._start(worker)
                    if worker.task is None and (again or waiting):
                        self._send(worker, again.popleft() if again else self._next_chunk(waiting))
                tasks = [worker.task for worker in self._workers if worker.task is not None]
                ready, _ = self._ray.wait(tasks, timeout=_PATIENCE)
                if ready:
                    batch = self._received(
                        next(one for one in self._workers if one.task == ready[0]), again
                    )
                    if batch:
                        yield batch
                elif not any(worker.has_model for worker in self._workers):
                    self._show(
                        "no worker has loaded the model yet; `ray status` shows what the cluster lacks"
                    )
        except KeyboardInterrupt:
            arrived: list[Answered] = []
            with suppress(Exception):
                arrived = self._arrived()
            yield arrived
            raise
        finally:
            for worker in self._workers:
                if worker.left:  # after an error: the next run must not wait for it
                    self._stop(worker)

    def _show(self, line: str) -> None:
        """Print a line, once for all workers."""
        if line not in self._shown:
            self._shown.add(line)
            print(one_line(line, 2000), file=sys.stderr, flush=True)

    def _most_workers(self) -> int | None:
        """How many workers the cluster's machines have GPUs for; None without GPUs."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(int(node.get("GPU", 0) // self._gpus) for node in alive) if self._gpus else None

    def _start(self, worker: _Handle) -> None:
        # A whole CPU each would limit their number; with none, Ray does not spread them.
        options = {"num_cpus": 0.01, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
        worker.actor = self._ray.remote(_Worker).options(**options).remote()
        worker.task = worker.actor.load.remote(*self._loading)

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
        conversations = _with_bytes(request.conversation for request in chunk)
        sent = [Request(one.key, own) for one, own in zip(chunk, conversations, strict=True)]
        worker.left = {request.key: request for request in chunk}
        worker.task = worker.actor.answer.options(num_returns="streaming").remote(
            sent, self.sample, self.seed
        )

    def _received(self, worker: _Handle, again: deque[list[Request]]) -> list[Answered]:
        """What a worker has ready: answers, or none if it has loaded the model, is idle, or has ended.

        If it has ended, its requests are added to `again`. Raises UsageError.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            found, printed = self._ray.get(next(worker.task) if worker.has_model else worker.task)
        except StopIteration:
            worker.task, worker.left = None, {}
            return []
        except RayTaskError as error:
            if worker.has_model:
                raise error.cause from None
            why = one_line(f"{type(error.cause).__name__}: {error.cause}")
            raise UsageError(
                f"worker on {error.ip}: it cannot load the model ({why}); check the environment there"
            ) from error
        except RayError as error:
            why = " ".join(str(error).rpartition("exit detail: ")[2].partition(" Some common")[0].split())
            return self._ended(worker, again, one_line(why, 120))
        for line in printed.splitlines():
            self._show(line)
        if isinstance(found, UsageError):
            raise found
        if isinstance(found, BackendInfo):
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

    def _arrived(self) -> list[Answered]:
        """The answers that are here already."""
        found: list[Answered] = []
        while tasks := [worker.task for worker in self._workers if worker.left]:
            ready, _ = self._ray.wait(tasks, timeout=0)
            if not ready:
                break
            found += self._received(next(one for one in self._workers if one.task == ready[0]), deque())
        return found


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
        where = f"--address {address}" if address else "--engine ray"
        raise UsageError(
            f"{where}: Ray cannot be reached or started ({one_line(error, 200)}); "
            "check `ray status`, that all machines have the same versions of Python and Ray, and "
            "RAY_AUTH_MODE=token if the cluster wants a token"
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


def _with_bytes(conversations: Iterable[Conversation]) -> list[Conversation]:
    """The same with their images in memory; equal images are one object, which pickle writes once."""
    images: dict[str, StoredImage] = {}

    def read(part: TextPart | ImagePart) -> TextPart | ImagePart:
        if isinstance(part, TextPart):
            return part
        if part.image.sha256 not in images:
            images[part.image.sha256] = replace(part.image, stored=part.image.read())
        return ImagePart(images[part.image.sha256])

    return [
        Conversation(tuple(replace(turn, content=tuple(map(read, turn.content))) for turn in one.turns))
        for one in conversations
    ]
