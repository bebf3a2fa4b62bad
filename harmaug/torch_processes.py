"""The processes that torchrun starts: one that leads, and others that train what it tells them."""
from __future__ import annotations

import atexit
import datetime
import functools
import gc
import os
from typing import Any, TypeVar

_T = TypeVar("_T")
_NOTHING: Any = None
_WAIT = datetime.timedelta(days=1)      # the others wait while the first one reads, scores or writes


@functools.cache
def accelerator() -> Any:
    """accelerate's Accelerator of this process; an ImportError names the extra to install."""
    try:
        import accelerate
        import safetensors  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the torch engine needs {error.name}: pip install 'harmaug[torch]'") from None
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        import torch.distributed.nn  # before there is a group: its functions' defaults would keep it for ever
    wait = accelerate.utils.InitProcessGroupKwargs(timeout=_WAIT)
    made = accelerate.Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available(), kwargs_handlers=[wait])
    if made.num_processes != processes:
        raise RuntimeError(f"torchrun started {processes} processes, accelerate knows {made.num_processes}")
    if processes > 1 and torch.distributed.get_backend() == "gloo":
        atexit.register(_leave)
    return made


def _leave() -> None:
    """Leave the group. Gloo's threads end with the last reference to it; one that outlives the interpreter aborts the process."""
    accelerator().end_training()
    gc.collect()


def share(value: _T) -> _T:
    """Return the first process's value; all processes must call it."""
    if accelerator().num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


def help_first() -> None:
    """In a process beside the first: take part in each `Distiller.fit` of the first, until it calls `dismiss`."""
    from harmaug.distill import Distiller

    while (job := share(_NOTHING)) is not None:
        Distiller(job[0]).fit_job(*job, progress=False)
    accelerator().end_training()


def dismiss() -> None:
    """In the first process: let the helpers end."""
    share(None)
    accelerator().end_training()
