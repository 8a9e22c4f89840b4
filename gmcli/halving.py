"""Do in smaller pieces what a device has no memory for, and remember the size that fits."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

from gmcli.errors import ItemError
from gmcli.text import shorten
from gmcli.work import Work

log = logging.getLogger("gmcli.memory")

T = TypeVar("T")

# What is counted, by part of the model.
_UNITS = {
    "prefix": "video",
    "clip": "frame",
    "llm": "question",
    "sam_image_encoder": "frame",
    "sam_mask_decoder": "mask",
}


class Room:
    """Know how many rows of each part of the model fit a device's memory at once.

    most: by part, to begin with; 1 where nothing is said. It only shrinks, as long as the process lives: what did not fit
    once is not tried again. A part that was compiled for one batch size always computes that many rows, whatever it is
    given: there a smaller piece only leaves more room around it.
    """

    def __init__(self, most: Mapping[str, int], device: torch.device) -> None:
        self.most = dict(most)
        self._device = device

    def pieces(
        self, part: str, count: int, run: Callable[[slice], T], work: Work, *, most: int | None = None
    ) -> Iterator[T]:
        """Yield what `run` makes of rows 0 to `count`, in pieces that fit and of at most `most` rows.

        `run` is called again with fewer rows where memory was short, so it may leave nothing behind. Raises ItemError where
        one row alone does not fit.
        """
        start = 0
        while start < count:
            stop = min(count, start + min(self.most.get(part, 1), most or count))
            problem = None
            try:
                made = run(slice(start, stop))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error)
            if problem is not None:
                # Not in the handler: the exception holds what was being computed.
                self._halve(part, stop - start, problem, work)
                continue
            yield made
            del made
            start = stop

    def once(self, part: str, run: Callable[[], T], work: Work) -> T:
        """Run what has no parts. Raises ItemError where it does not fit."""
        return next(self.pieces(part, 1, lambda _: run(), work))

    def _halve(self, part: str, rows: int, problem: str, work: Work) -> None:
        work.out_of_memory += 1
        _release(self._device)
        unit, where = _UNITS[part], "GPU" if self._device.type == "cuda" else "memory"
        if rows == 1:
            said = shorten(" ".join(problem.split()), 150)
            raise ItemError(
                f"the {where} has no room for one {unit} in the {part} ({said})",
                "Use --dtype bf16, or see that nobody else uses the device.",
            )
        self.most[part] = rows // 2
        log.warning(
            "the %s has no room for %d %ss at once in the %s: from now on %d; the last digits, and masks with them, may differ",
            where,
            rows,
            unit,
            part,
            self.most[part],
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory was short, on a GPU or, where torch has its own words for it, on a CPU."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _release(device: torch.device) -> None:
    """Give back what torch keeps for later: it may lie in pieces too small for anything."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
