"""Populations of networks in lock step: one member, mapped (`engine`); any number of members on the
images of a task (`evaluation`); trained epoch by epoch (`lockstep`); with their neurons' moments
repaired (`repair`), or their batch normalisation's statistics measured again (`batch_norm`)."""

from hyperjax.population.engine import (
    Engine,
    Evaluation,
    Hyper,
    Members,
    evaluate,
    hyper,
    init,
    logits,
    make_engine,
    padded,
    place_images,
    place_members,
    start,
    train_epoch,
)
from hyperjax.population.repair import (  # `population.repair` itself is the module
    Moments,
    Repair,
    fit_repair,
    gaussian_inputs,
    image_inputs,
    image_moments,
    repair_member,
)
