"""One process of a group: `python worker.py RANK WORLD MODULE BACKEND`, in the group's folder.

Runs every check of MODULE.CHECKS and saves what it gives as NAME.RANK.pt, or the traceback as text.
Its place in the group comes by files in that folder, so that no port has to be free.
"""

import datetime
import importlib
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(seconds=60)


def main(rank: int, world: int, module: str, backend: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    checks = importlib.import_module(module).CHECKS
    store = f"file://{Path('rendezvous').resolve()}"
    dist.init_process_group(
        backend, init_method=store, rank=rank, world_size=world, timeout=TIMEOUT
    )
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            result = check(rank, world)
        except Exception:
            result = traceback.format_exc()
        torch.save(result, f"{name}.{rank}.pt")
        # After an error the other rank may be inside a collective call that will never be matched.
        if isinstance(result, str):
            sys.exit(f"rank {rank} failed in {name}:\n{result}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
