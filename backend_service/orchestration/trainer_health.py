"""What the backend knows of one trainer at one instant."""

from __future__ import annotations

from dataclasses import dataclass

from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerHealth:
    """A trainer as the last look at it found it.

    Attributes:
        address: host:port it is reached at.
        is_healthy: It answered SERVING within the limit, can train, and its version works with the backend's.
        message: One sentence for people.
        latency_s: Round trip of the health check.
        info: What the trainer is and has; None if it has not said yet.
        trainer_id: Stable identity; "" if it has not said yet, or has none.
        is_draining: It gets no new sessions: the backend or the trainer itself says so.
        is_registered: It announced itself.
        is_lost: It has been silent for longer than a lease lasts.
        silence_s: Time since it was last heard of; None if it never was.
        num_sessions: Sessions of this backend's trainings on it.
        num_free_slots: Slots that are free: what it last told, less what has begun and plus what has ended there since.
    """

    address: str
    is_healthy: bool
    message: str
    latency_s: float = 0.0
    info: TrainerInfo | None = None
    trainer_id: str = ""
    is_draining: bool = False
    is_registered: bool = False
    is_lost: bool = False
    silence_s: float | None = None
    num_sessions: int = 0
    num_free_slots: int = 0

    @property
    def takes_sessions(self) -> bool:
        """Whether it may get new sessions, if it has a free slot."""
        return self.is_healthy and not self.is_draining

    @property
    def num_gpus(self) -> int:
        return sum(device.device_type != "cpu" for device in self.info.devices) if self.info else 0

    @property
    def num_slots(self) -> int:
        return self.info.num_slots if self.info else 0

    @property
    def gpu_memory_gb(self) -> float | None:
        """Memory free on all its GPUs together, GiB; None if it is not known of one of them, or there is none."""
        gpus = [device for device in self.info.devices if device.device_type != "cpu"] if self.info else []
        if not gpus or not all(gpu.HasField("memory_available_gb") for gpu in gpus):
            return None
        return sum(gpu.memory_available_gb for gpu in gpus)
