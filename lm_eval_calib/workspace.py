"""Memory that is used again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


class Workspace:
    """Arrays that the blocks of one thread use again: fresh ones cost as much time as computing with them."""

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        """An uninitialised array; what was in the last one of this name is lost."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._memory or self._memory[name].size < size:
            self._memory[name] = np.empty(size, dtype=np.uint8)
        return self._memory[name][:size].view(dtype).reshape(shape)
