"""Process groups: exchanges in which every rank learns what became of all ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from soda_compile.errors import DistributedError, OptionError

T = TypeVar("T")
Floats = npt.NDArray[np.float64]


class Reduction(Protocol):
    """Joins what the ranks that share a generation have of one number."""

    def sum(self, values: Floats) -> Floats:
        """Return the sums over the ranks, the same on each."""

    def largest(self, number: int) -> int:
        """Return the largest number of a rank."""


class Alone:
    """One process."""

    def sum(self, values: Floats) -> Floats:
        """Return the values."""
        return values

    def largest(self, number: int) -> int:
        """Return the number."""
        return number


@dataclass(frozen=True)
class _Failure:
    """What a rank tells the others where it has no result."""

    text: str


@dataclass(frozen=True, eq=False)
class Group:
    """A process group that this process is in.

    Attributes:
        handle: The group of ``torch.distributed``.
        ranks: The global ranks, in the order of the group's own.
        rank: Which of them this process is, by the group's own count.
    """

    handle: Any
    ranks: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, handle: Any, argument: str) -> "Group":
        """Take a group that the user named.

        Args:
            handle: The group.
            argument: Name of the argument, for messages.

        Raises:
            OptionError: There are no process groups here, it is none, or this process is not in it.
        """
        if not dist.is_available():
            raise OptionError(f"{argument} is given, but this build of torch has no torch.distributed")
        if not dist.is_initialized():
            raise OptionError(
                f"{argument} is given, but torch.distributed is not initialised; start the processes with torchrun, "
                "and call torch.distributed.init_process_group() first"
            )
        if handle is dist.GroupMember.NON_GROUP_MEMBER:
            raise OptionError(f"{argument}: rank {dist.get_rank()} is not in that process group")
        if not isinstance(handle, dist.ProcessGroup):
            raise OptionError(
                f"{argument} is a {type(handle).__name__}; pass a process group, such as torch.distributed.group.WORLD "
                "or mesh.get_group()"
            )
        return cls(handle, tuple(dist.get_process_group_ranks(handle)), dist.get_rank(handle))

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return len(self.ranks)

    def share(self, make: Callable[[], T], doing: str) -> list[T]:
        """Run ``make`` on each rank, and return the results of all on each.

        Args:
            make: Makes the result of this rank; results are pickled.
            doing: What it does, for messages.

        Raises:
            DistributedError: It failed on another rank, or a rank has ended or gave no answer in time.
            Exception: What ``make`` raised on this rank; the others are told before.
        """
        error, outcome = _attempt(make)
        outcomes: list[Any] = [None] * self.size
        with self._answers(doing):
            if dist.get_backend(self.handle) == "gloo":
                dist.monitored_barrier(self.handle, wait_all_ranks=True)  # which says who is missing
            dist.all_gather_object(outcomes, outcome, group=self.handle)
        if error is not None:
            raise error
        self._require(dict(zip(self.ranks, outcomes, strict=True)), doing)
        return outcomes

    def from_first(self, make: Callable[[], T], doing: str) -> T:
        """Run ``make`` on the first rank alone, and return its result on each; see ``share``."""
        error, outcome = _attempt(make) if self.rank == 0 else (None, None)
        sent = [outcome]
        with self._answers(doing):
            dist.broadcast_object_list(sent, group=self.handle, group_src=0)
        if error is not None:
            raise error
        self._require({self.ranks[0]: sent[0]}, doing)
        result: T = sent[0]  # type: ignore[assignment]
        return result

    def require_same(self, values: Mapping[str, Any], what: str) -> None:
        """Check that all ranks were given the same.

        Raises:
            DistributedError: Naming what differs, with the value of each rank.
        """
        given = self.share(lambda: {name: repr(value) for name, value in values.items()}, what)
        for name in values:
            if len({each[name] for each in given}) > 1:
                listed = ", ".join(f"{each[name]} on rank {rank}" for rank, each in zip(self.ranks, given, strict=True))
                raise DistributedError(f"{what}: {name} must be the same on all ranks, but is {listed}")

    def sum(self, values: Floats) -> Floats:
        """Return the sums over the ranks, the same on each.

        Raises:
            DistributedError: A rank has ended or gave no answer in time.
        """
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, number: int) -> int:
        """Return the largest number of a rank; see ``sum``."""
        return int(self._reduced(np.array([number], dtype=np.float64), dist.ReduceOp.MAX)[0])

    def _reduced(self, values: Floats, how: Any) -> Floats:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        with self._answers("adding up what the ranks measured"):
            dist.all_reduce(tensor, how, group=self.handle)
        return tensor.cpu().numpy()

    @property
    def _device(self) -> torch.device:
        """Return a device whose tensors the group can send; the host where it can."""
        devices = [entry.partition(":")[0] for entry in dist.get_backend_config(self.handle).split(",")]
        return torch.device("cpu" if "cpu" in devices else devices[0])

    def _require(self, outcomes: Mapping[int, Any], doing: str) -> None:
        failed = {rank: outcome.text for rank, outcome in outcomes.items() if isinstance(outcome, _Failure)}
        if failed:
            raise DistributedError(f"{doing} failed on " + "; ".join(f"rank {rank}: {failed[rank]}" for rank in failed))

    @contextmanager
    def _answers(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise DistributedError(
                f"{doing}: a rank of {list(self.ranks)} has ended, or gave no answer within the timeout of "
                f"init_process_group: {error}"
            ) from error


def _attempt(make: Callable[[], T]) -> tuple[Exception | None, T | _Failure]:
    try:
        return None, make()
    except Exception as error:  # whatever it is, the other ranks are waiting to hear of it
        return error, _Failure(f"{type(error).__name__}: {error}")
