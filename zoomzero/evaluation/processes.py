"""The processes of one launch that share an evaluation. They talk through the run's folder and meet at barriers."""

from __future__ import annotations

import dataclasses
import datetime
import os

# The slowest process may be hours behind; a dead one is the launcher's to notice, which ends the others.
BARRIER_TIMEOUT = datetime.timedelta(days=30)


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that share the questions."""

    rank: int = 0
    """Which one this is, from 0."""
    count: int = 1
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def device(self) -> str | None:
        """The GPU of this process where several share a machine that has GPUs; None to choose as one alone would."""
        import torch

        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            import torch

            torch.distributed.barrier()


def join_launch() -> Processes:
    """The processes that `accelerate launch` or torchrun started this one with; one alone without them.

    Starts torch.distributed (gloo, which needs no GPU) where the launcher has set its addresses and nobody has yet.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    import torch

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
