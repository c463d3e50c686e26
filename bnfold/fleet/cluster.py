"""The workers of a fleet: processes of this machine, or those of a Dask scheduler that runs already."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from bnfold.errors import BnfoldError, MissingExtraError, one_line
from bnfold.fleet.sources import UsageError

RESOURCE = "memory"
"""The resource of a Dask worker that a model takes, in bytes."""

LEAST = 1 << 30
"""The memory that a worker has at least, where this machine is divided among workers."""

SHARE = 0.8
"""The part of the memory of this machine that its workers may have together."""

STARTS = 3
"""How often it is tried to start the workers of this machine."""

PATIENCE = 10.0
"""Seconds within which a scheduler has to answer, and to have a worker."""


class ClusterError(BnfoldError):
    """Workers that cannot be had: the scheduler is away, has none, or is of another version."""


@dataclass(frozen=True)
class Cluster:
    """Workers that are ready.

    Attributes:
        client: the client of Dask.
        slots: how many tasks run at a time.
        memory: the memory of the largest worker, in bytes.
        has_resource: whether the workers declare their memory as a resource.
    """

    client: Any
    slots: int
    memory: int
    has_resource: bool


def require() -> None:
    """Check that there can be workers.

    Raises:
        ClusterError: this system does not fork.
        MissingExtraError: Dask is not installed.
    """
    if not hasattr(os, "fork"):
        raise ClusterError("fleets need a system that forks, as Linux and macOS do")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("fleets need Dask: pip install 'bnfold[fleet]'") from error


def parse_bytes(text: str) -> int:
    """A size such as ``4GB``.

    Raises:
        UsageError: it is none.
    """
    from dask.utils import parse_bytes as parse

    try:
        size = int(parse(text))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{text!r} is no size such as 4GB") from error
    if size < 1:
        raise UsageError(f"{text!r} is no size such as 4GB")
    return size


def _imported(module: str) -> Any:
    """A module of Dask, which has no types."""
    return import_module(module)


@contextmanager
def workers(count: int | None, memory: str | None, scheduler: str | None) -> Iterator[Cluster]:
    """Workers, as many and as large as is asked for or as fits; those of this machine end with the context.

    Raises:
        MissingExtraError: Dask is not installed.
        UsageError: the sizes cannot be.
        ClusterError: they cannot be had.
    """
    require()
    dask, distributed = _imported("dask"), _imported("distributed")
    if scheduler is not None and (count is not None or memory is not None):
        raise UsageError("the workers of a running scheduler have the number and the memory that they were given")
    quiet = {"logging.distributed": "critical", "distributed.scheduler.allowed-failures": 0}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(quiet))
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if scheduler is None:
            size, each = _divide(count, memory)
            cluster = stack.enter_context(_start(size, each))
            client = stack.enter_context(distributed.Client(cluster))
        else:
            client = stack.enter_context(_connect(scheduler))
        yield _describe(client, scheduler)


def _divide(count: int | None, memory: str | None) -> tuple[int, int]:
    """How many workers this machine gets, and how many bytes each."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    room = int(SHARE * MEMORY_LIMIT)
    each = None if memory is None else parse_bytes(memory)
    count = count or max(1, min(int(CPU_COUNT), room // (each or LEAST)))
    each = each or room // count
    if count * each > MEMORY_LIMIT:
        wanted = f"{count} workers of {each / 1e9:.3g} GB"
        raise UsageError(f"{wanted} do not fit into the {MEMORY_LIMIT / 1e9:.3g} GB of this machine")
    return count, each


def _start(count: int, memory: int) -> Any:
    """Processes of this machine. Whoever kills one while it starts, stops all of them from starting.

    Raises:
        ClusterError: they do not start.
    """
    for _ in range(STARTS):
        try:
            return _imported("distributed").LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                memory_limit=memory,
                resources={RESOURCE: memory},
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                env={"DASK_LOGGING__DISTRIBUTED": "critical"},
            )
        except RuntimeError as error:
            problem = one_line(f"{error}: {error.__cause__}", 160)
    raise ClusterError(f"no workers start on this machine ({problem})")


def _connect(address: str) -> Any:
    try:
        return _imported("distributed").Client(address, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError, ImportError) as error:
        raise ClusterError(f"{address}: no scheduler of Dask answers there ({one_line(str(error), 160)})") from error


def _describe(client: Any, scheduler: str | None) -> Cluster:
    """The workers behind a client, which have to be of our kind.

    Raises:
        ClusterError: they are not, or there are none.
    """
    if scheduler is not None:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ClusterError(f"{scheduler}: the scheduler has no worker") from error
        _insist_on_versions(client, scheduler)
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    has_resource = all(RESOURCE in worker["resources"] for worker in found)
    if has_resource:
        memory = max(int(worker["resources"][RESOURCE]) for worker in found)
    else:
        memory = max(int(worker["memory_limit"] / max(1, worker["nthreads"])) for worker in found)
    return Cluster(client, sum(worker["nthreads"] for worker in found), memory, has_resource)


def versions() -> dict[str, str]:
    """What has to be the same here and on every worker."""
    return {
        "bnfold": version("bnfold"),
        "distributed": version("distributed"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def _insist_on_versions(client: Any, scheduler: str) -> None:
    mine = versions()
    theirs = client.get_versions()["scheduler"]["packages"]["distributed"]
    if theirs != mine["distributed"]:
        raise ClusterError(f"{scheduler}: the scheduler has distributed {theirs}, and here it is {mine['distributed']}")
    try:
        answers: dict[str, dict[str, str]] = client.run(versions)
    except Exception as error:  # whatever a worker without bnfold says about that
        problem = one_line(f"{type(error).__name__}: {error}", 160)
        raise ClusterError(f"{scheduler}: bnfold does not run on its workers ({problem})") from error
    for worker, found in answers.items():
        for library, known in found.items():
            if known != mine[library]:
                raise ClusterError(f"{worker}: the worker has {library} {known}, and here it is {mine[library]}")
