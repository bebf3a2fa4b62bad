"""Types of the C extension; one block per file of csrc/python/."""
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# module.c, ops.c
class FormatError(ValueError): ...

def layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, eps: float = 1e-7, n_threads: int = 0
) -> NDArray[np.float32]: ...
def set_cpu_isa(name: str | None, /) -> None: ...
def build_info() -> dict[str, Any]: ...

# json.c
def json_loads(data: bytes, *, name: str = "<bytes>") -> Any: ...
