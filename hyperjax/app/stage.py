"""A training of the app: a progress bar, checkpoints, and a line of metrics a validation."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hyperjax.app import progress, stop
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep.training import Progress
from hyperjax.store import checkpoint, workdir

_BETWEEN = 20  # times as long as writing a checkpoint took is no other one written


class Stage(NamedTuple):
    """What is trained, and where its traces go."""

    name: str  # in metrics.jsonl
    title: str  # of the progress bar
    folder: Path  # the workdir
    checkpoints: Path
    steps: int
    checkpoint_seconds: float


def train(
    stage: Stage,
    begin: Callable[[], Progress],
    start: Callable[[Progress], Progress],
    steps: Callable[[Progress], Iterator[tuple[Progress, int, dict[str, float] | None]]],
    note: Callable[[dict[str, float]], str],
) -> Progress:
    """Train to the last step, going on from the last checkpoint where there is one.

    Args:
      begin: the progress before the first step, whose shapes a checkpoint must have.
      start: what a training that begins anew does to it.
      steps: `hyperrep.training.run`, given where to begin.
      note: what the progress bar says of a validation.
    """
    current, done, text = begin(), 0, ""
    step = checkpoint.latest_step(stage.checkpoints)
    if step is None:
        current = start(current)
    else:
        current, done = checkpoint.restore(stage.checkpoints, step, current), step
    workdir.forget_metrics(stage.folder, stage.name, done if done else -1)
    saved, pause = time.monotonic(), stage.checkpoint_seconds
    with progress.bar(stage.title, stage.steps, done) as advance, stop.deferred():
        try:
            for current, count, record in steps(current):  # noqa: B020 a generator, made once
                if record is not None:
                    workdir.log_metrics(stage.folder, {"stage": stage.name, **record})
                    text = note(record)
                advance(count, text)
                done += count
                now = time.monotonic()
                if done and stop.requested(now - saved >= pause and done < stage.steps):
                    checkpoint.save(stage.checkpoints, done, current)
                    saved = time.monotonic()
                    if pause:  # 0: whenever it can be
                        pause = max(stage.checkpoint_seconds, _BETWEEN * (saved - now))
                    stop.leave()
        except HyperJaxError as error:
            raise HyperJaxError(f"{stage.name}: {error}") from error
    return current
