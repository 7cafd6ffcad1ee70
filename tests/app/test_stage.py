"""When a training of the app is saved."""

import pytest

from hyperjax.app import stage
from hyperjax.app.stage import Stage


@pytest.mark.parametrize(
    ("seconds", "saving", "expected"),
    [
        (0.0, 1.0, [1, 2, 3, 4, 5, 6, 7, 8]),  # whenever it can be, but at the last step
        (3.0, 0.0, [3, 6]),  # no validation is waited for
        (3.0, 0.25, [3, 8]),  # at least twenty times as long apart as saving took
        (99.0, 0.0, []),
    ],
)
def test_checkpoints_wait_for_no_validation(monkeypatch, tmp_path, seconds, saving, expected):
    """Nine steps of a second each, none of which is validated."""
    now, saved = [0.0], []

    def save(folder, step, state):
        saved.append(step)
        now[0] += saving

    def steps(progress):
        for _ in range(9):
            now[0] += 1
            yield progress, 1, None

    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stage.checkpoint, "latest_step", lambda folder: None)
    monkeypatch.setattr(stage.checkpoint, "save", save)
    asked = Stage("one", "one", tmp_path, tmp_path / "checkpoints", 9, seconds)
    stage.train(asked, lambda: "state", lambda state: state, steps, lambda record: "")
    assert saved == expected
