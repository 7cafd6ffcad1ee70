"""What leaves a network's function unchanged: the group (`group`), the search for the element that
brings a network nearest to another (`alignment`), distances modulo the group (`nearest`)."""

from hyperjax.symmetry.group import (
    Transform,
    apply,
    compose,
    for_moments,
    identity,
    input_blocks,
    invert,
    random_transform,
    scale_symmetric,
    sign_symmetric,
)
