"""Progress bars with ETA, and plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 15.0

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(steps, note)`. `done` steps were made by an earlier run.

    In a log file (no terminal) it prints a line now and then instead.
    """
    if not console.is_terminal:
        yield _lines(title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield lambda steps, note="": progress.update(task, advance=steps, note=note)


def _lines(title: str, total: int, done: int) -> Callable[[int, str], None]:
    start, first, last = time.monotonic(), done, time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            eta = (now - start) / max(done - first, 1) * (total - done)
            console.print(f"{title}: {done}/{total}, {now - start:.0f} s, ETA {eta:.0f} s. {note}")

    return advance
