"""The hyper-representation: an autoencoder of weights, trained on a zoo alone (paper section 3)."""

from hyperjax.hyperrep.fit import fit_hyperrep, validate
from hyperjax.hyperrep.linear import principal_components
from hyperjax.hyperrep.model import (
    Bound,
    HyperRep,
    Statistics,
    align,
    align_zoo,
    bound,
    decode,
    encode,
    posterior,
    reconstruct,
    statistics,
)
from hyperjax.hyperrep.training import (
    Trainer,
    TrainState,
    batches,
    init,
    make_trainer,
    train_steps,
)
