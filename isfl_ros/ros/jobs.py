"""What travels from the subscriptions to the worker: a message with its ticket, and what is to be made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from isfl_ros.ros.accounting import Ticket
from isfl_ros.ros.sync import Pair

Message = TypeVar("Message")


@dataclass(frozen=True)
class Frame(Generic[Message]):
    """A message that was looked over but not decoded."""

    ticket: Ticket
    message: Message
    arrived_ns: int
    """Monotonic clock."""


@dataclass(frozen=True)
class PairJob(Generic[Message]):
    """A pair that is to be fused."""

    pair: Pair[Frame[Message]]
    ready_ns: int
    """When it was handed over; monotonic clock."""
    epoch: int = 0
    """Grows when time jumps: stamps are compared within one epoch only."""

    @property
    def frames(self) -> dict[str, Frame[Message]]:
        """By stream."""
        return {"thermal": self.pair.thermal, "rgb": self.pair.rgb}

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """Of both messages."""
        return self.pair.thermal.ticket, self.pair.rgb.ticket


@dataclass(frozen=True)
class SingleJob(Generic[Message]):
    """A message that is to be fused alone, because the other camera is dead."""

    stream: str
    frame: Frame[Message]
    ready_ns: int
    """When it was handed over; monotonic clock."""
    epoch: int = 0
    """Grows when time jumps: stamps are compared within one epoch only."""

    @property
    def frames(self) -> dict[str, Frame[Message]]:
        """By stream."""
        return {self.stream: self.frame}

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """Of the message."""
        return (self.frame.ticket,)


@dataclass(frozen=True)
class HoldJob:
    """The last fused picture is to be published again; the message that triggered it was dropped as `held`."""

    tickets: tuple[()] = ()


Job = PairJob[Message] | SingleJob[Message] | HoldJob
