"""Where latents lie, by their norms, angles and pictures in the plane (paper appendix D).

The paper finds that latents fill sections of a shell of a high-dimensional sphere, and that most
points of the cube are far from them.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax.samplers.neigh import import_umap
from hyperjax.symmetry.alignment import blocks
from hyperjax.types import Array

_NEIGHBORS = 15
_BLOCK_BYTES = 2**26  # of cosines that are computed at a time


class Cloud(NamedTuple):
    """N latents."""

    norms: np.ndarray  # float64[N]
    cosines: np.ndarray  # float32[pairs], of all pairs of different members' latents
    nearest: np.ndarray  # float64[N]: largest cosine with a latent of a (train: another) member


class Expected(NamedTuple):
    """Of a distribution in closed form."""

    norm: float  # mean
    norm_std: float
    cosine_std: float  # of two independent points; the mean is 0


class Geometry(NamedTuple):
    """Of latents."""

    clouds: dict[str, Cloud]  # the first are the train latents
    expected: dict[str, Expected]
    quality: np.ndarray  # float[N], of the train latents that are shown
    pca: dict[str, np.ndarray]  # float64[N, 2], the train latents' principal components
    explained: np.ndarray  # float64[2], share of the train latents' variance
    umap: dict[str, np.ndarray]  # float32[N, 2], embedded together


TRAIN = "train members"


def geometry(
    train: Array, others: Mapping[str, Array], quality: Array, *, seed: int, shown: int = 1000
) -> Geometry:
    """Geometry of latents: of T train members with E snapshots each, float32[T, E, Z], with
    accuracy f[T, E], and of others: float32[N, Z], or of members too float32[M, E, Z].

    Clouds and pictures have the first `shown` train members, but the nearest latent is looked for
    among all. The plane of PCA is that of the train latents alone. UMAP embeds all latents
    together: mapped onto an embedding of the train latents, all others would have to lie among
    them.
    """
    from sklearn.decomposition import PCA

    members, snapshots, size = np.shape(train)
    every = np.reshape(train, (-1, size))
    flat = every[: shown * snapshots].astype(np.float64)
    everything = {TRAIN: flat}
    everything |= {
        name: np.asarray(latents, np.float64).reshape(-1, size) for name, latents in others.items()
    }
    owners = np.repeat(np.arange(members), snapshots)
    clouds = {TRAIN: cloud(flat, every, owners[: len(flat)], owners)}
    for name, latents in others.items():
        each = 1 if np.ndim(latents) == 2 else np.shape(latents)[1]
        clouds[name] = cloud(everything[name], every, np.arange(len(everything[name])) // each)
    plane = PCA(2, svd_solver="full").fit(flat)
    return Geometry(
        clouds=clouds,
        expected=expected(flat),
        quality=np.asarray(quality).reshape(-1)[: len(flat)],
        pca={name: plane.transform(z) for name, z in everything.items()},
        explained=plane.explained_variance_ratio_,
        umap=embed(everything, seed),
    )  # fmt: skip


def cloud(
    latents: Array, train: Array, members: Array | None = None, of_train: Array | None = None
) -> Cloud:
    """Norms and angles of latents [N, Z], and their angles to train latents [T, Z].

    Snapshots of one member point nearly the same way, which says nothing of how members lie: with
    `members` int[N], that the latents are of, pairs of the same one do not count; and with
    `of_train` int[T], where they are among the train members, nor does a train latent of their own.
    """
    units, to = _directions(latents), _directions(train)
    cosines, nearest = [np.zeros(0, np.float32)], np.empty(len(units))
    for rows in blocks(len(units), max(1, _BLOCK_BYTES // (8 * len(to)))):
        to_train = units[rows] @ to.T
        if of_train is not None:
            to_train[members[rows, None] == of_train[None, :]] = -np.inf
        nearest[rows] = to_train.max(axis=1)
    for rows in blocks(len(units), max(1, _BLOCK_BYTES // (8 * len(units) + 1))):
        counted = np.arange(len(units))[None, :] > np.arange(rows.start, rows.stop)[:, None]
        if members is not None:
            counted &= members[None, :] != members[rows, None]
        cosines.append((units[rows] @ units.T)[counted].astype(np.float32))
    norms = np.linalg.norm(np.asarray(latents, np.float64), axis=1)
    return Cloud(norms, np.concatenate(cosines), nearest)


def _directions(latents: Array) -> np.ndarray:
    latents = np.asarray(latents, np.float64)
    return latents / np.maximum(np.linalg.norm(latents, axis=1, keepdims=True), 1e-12)


def effective_dimension(cosines: Array) -> float:
    """In how many dimensions directions spread evenly would have such angles: 1 / E[cos²].

    Of independent directions in Z dimensions, E[cos²] is 1 / Z.
    """
    if not len(cosines):
        return float("nan")
    return float(1 / np.mean(np.square(cosines), dtype=np.float64))


def expected(train: Array) -> dict[str, Expected]:
    """What points spread evenly over the cube (-1, 1)^Z would give, and a Gaussian with the train
    latents' mean square but no preferred direction.

    Angles: with independent signs in each dimension, E[cos²] is 1 / Z exactly. The norm of the
    Gaussian has the chi distribution; that of the cube is expanded in 1 / Z, from the mean 1 / 3
    and the variance 4 / 45 of the square of one coordinate.
    """
    size = train.shape[1]
    mean, variance = size / 3, size * 4 / 45  # of the squared norm in the cube
    spread = math.sqrt(np.mean(np.square(train)))
    chi = math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))
    cosine = 1 / math.sqrt(size)
    return {
        "uniform cube": Expected(
            math.sqrt(mean) * (1 - variance / (8 * mean**2)),
            math.sqrt(variance / (4 * mean)),
            cosine,
        ),
        "Gaussian": Expected(spread * chi, spread * math.sqrt(max(size - chi**2, 0.0)), cosine),
    }


def embed(latents: Mapping[str, Array], seed: int) -> dict[str, np.ndarray]:
    """UMAP of all latents [N, Z] together, in two dimensions, float32[N, 2] each."""
    together = np.concatenate(list(latents.values()))
    places = (
        import_umap()
        .UMAP(
            n_neighbors=min(_NEIGHBORS, len(together) - 1),
            random_state=seed,
            n_jobs=1,  # what a seed means anyway, but with a warning
        )
        .fit_transform(together)
    )
    ends = np.cumsum([len(z) for z in latents.values()])[:-1]
    return dict(zip(latents, np.split(places, ends), strict=True))
