"""Anchors as no zoo should have them, and as some have: every sampler draws from them, or says in
one sentence why it cannot."""

import numpy as np
import pytest
from sampler_cases import ALL, D, fit_draw, make, some_anchors

from hyperjax.errors import HyperJaxError

SOME = some_anchors(12)
CASES = {
    "all equal": np.tile(SOME[:1], (12, 1)),
    "all zero": np.zeros((12, D), np.float32),
    "a constant latent": np.where(np.arange(D) == 3, np.float32(0.5), SOME),
    "a constant layer": np.where(np.arange(D) < 10, np.float32(0), SOME),
    "one": SOME[:1],
    "two": SOME[:2],
    "two equal": SOME[[0, 0]],
    "huge": SOME * np.float32(1e25),  # whose squares overflow
    "tiny": SOME * np.float32(1e-30),  # whose squares vanish
    "one far off": np.concatenate([SOME, SOME[:1] * np.float32(1e6)]),
}
# A denoiser computes squares. Networks that are not finite are counted as such in every report.
OVERFLOWING = ("refine:kde", "refine:repair:pca", "polish:kde")
BROKEN = {"NaN": np.nan, "infinity": np.inf}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALL)
def test_degenerate_anchors(name, case):
    sampler = make(name)
    reason, samples = "", None
    try:
        samples = fit_draw(sampler, CASES[case], 3)
    except HyperJaxError as error:
        reason = str(error)
    if samples is None:
        assert reason.startswith("sampler ")
        assert "\n" not in reason
        assert len(reason) > len(f"sampler {name}: ") + 10
    else:
        assert samples.shape == (3, D)
        assert np.isfinite(samples).all() or (case == "huge" and name in OVERFLOWING)


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", ALL)
def test_anchors_that_are_not_finite_are_refused(name, case):
    anchors = SOME.copy()
    anchors[4, 7] = BROKEN[case]
    with pytest.raises(HyperJaxError, match="1 of 12 anchors hold NaN or infinite values"):
        fit_draw(make(name), anchors, 3)
