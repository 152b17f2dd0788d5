"""Transforms: one protocol, one file for each, loaded by name."""

from bishare_dsl.transforms.apply import (
    GAIN_OUT,
    GAIN_RANK,
    effective_pair,
    effective_pairs,
    stack_or_share,
    term_factors,
    update_of,
    vmap_factors,
)
from bishare_dsl.transforms.protocol import check_term, guard, shape_of
from bishare_dsl.transforms.registry import (
    PLAIN,
    load_transform,
    package_of,
    register,
    transform_error,
    transform_kind,
    transform_names,
)
from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width, one_width
