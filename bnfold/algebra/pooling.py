"""Finds out whether a window of a pooling can see no data.

Output `p` of an axis looks at ``stride p - begin + dilation t`` for ``0 <= t < taps``. Where none of these is a
position of the data, the runtime makes a value up: minus infinity or the lowest number for a maximum, zero or NaN for a
mean.
"""

from __future__ import annotations

from dataclasses import dataclass

ENUMERATED = 1 << 10
"""The largest dilation up to which sizes are tried one by one."""

WHOLLY_PADDING = "a window of it can lie wholly in padding, where its largest value is none of the data's"


@dataclass(frozen=True)
class PoolAxis:
    """A pooling along one axis.

    Attributes:
        taps, stride, dilation: the parameters of its window.
        begin, end: the padding in front of and behind the data.
        rounds_up: whether positions that are left over get a last window (ceil_mode).
        is_strict: whether no window starts behind the data, and none is made where none fits, as in PyTorch. Some
            runtimes of ONNX break the former rule, and ONNX Runtime the latter.
    """

    taps: int
    stride: int
    dilation: int
    begin: int
    end: int
    rounds_up: bool = False
    is_strict: bool = False

    def can_miss(self, size: int | None) -> bool:
        """Whether a window can see none of the data of this size; None stands for any size of at least one.

        Two taps are as far apart as the dilation, so no window can step over data that is as long. It sees it if it
        starts in front of the data's end and ends behind its start, whatever the size. Shorter data is tried.
        """
        if size is not None:
            return self._misses(size)
        if self.begin > self._reach or self._overshoot() > 0 or self.dilation > ENUMERATED:
            return True
        return any(self._misses(short) for short in range(1, self.dilation))

    @property
    def _reach(self) -> int:
        """The distance from the first tap to the last."""
        return self.dilation * (self.taps - 1)

    def _overshoot(self) -> int:
        """How far behind the last position of the data a window can start, at any size."""
        left_over = (-1 if self.is_strict else self.stride - 1) if self.rounds_up else 0
        return self.end - self._reach + left_over

    def _misses(self, size: int) -> bool:
        count = self._outputs(size)
        if count < 1:
            return False
        if self.begin > self._reach or self.stride * (count - 1) - self.begin >= size:
            return True
        in_front = min(count, -(-self.begin // self.stride), self.dilation)  # behind that, the remainders repeat
        return any((self.stride * place - self.begin) % self.dilation >= size for place in range(in_front))

    def _outputs(self, size: int) -> int:
        left = size + self.begin + self.end - self._reach - 1
        count = (-(-left // self.stride) if self.rounds_up else left // self.stride) + 1
        if not self.is_strict:
            return max(1, count)
        return count - (self.rounds_up and self.stride * (count - 1) >= size + self.begin)
