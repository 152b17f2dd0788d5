"""Linear layers wired in any way compute, adapted, what the dense reference does; so do their gradients."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from bishare_dsl.rewrite.passes import OPTIMISATIONS
from tests.support.regions import can_train, check_region, regions


@settings(max_examples=3 * settings().max_examples // 2)
@given(regions())
def test_any_region_is_its_dense_reference(drawn):
    check_region(drawn)


@pytest.mark.long
def test_regions_are_of_all_kinds():
    seen = Counter()

    @settings(
        max_examples=150,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(regions())
    def look(drawn):
        region = drawn.model.layers[0]
        steps = region.steps
        calls = [name for what, name, _ in steps if what == "call" and "act" not in name]
        made = {place + 1 for place, (what, name, _) in enumerate(steps) if name in calls}
        read = [x for _, name, (x, *_) in steps if name in calls]
        kinds = {name if what == "call" else what for what, name, _ in steps}
        in_place = kinds & {"+=", "tanh_", "relu_", "halve", "act_in_place"}
        trains = can_train(drawn.model, torch.randn(2, 3, drawn.width, dtype=torch.float64))
        seen.update(
            {
                **dict.fromkeys(kinds & {"rest", "mode", "branch"} | in_place, True),
                "in place and it trains": bool(in_place) and trains,
                "in place and it does not train": bool(in_place) and not trains,
                "of two names": any(name.startswith("tied") for name in calls),
                "of two layers": len(drawn.model.layers) > 1
                and drawn.model.layers[0].a is drawn.model.layers[1].a,
                "not traced": not drawn.traced,
                "chain": any(x in made for x in read),
                "siblings": len(set(read)) < len(read),
                "twice": len(set(calls)) < len(calls),
                "returned and used": len(
                    set(region.returned) & {x for _, _, r in steps for x in r}
                ),
                "sums": any(what == "add" for what, _, _ in steps),
                "gates": any(what == "mul" for what, _, _ in steps),
                "no bias": any(region.get_submodule(name).bias is None for name in calls),
                "dropout": any(share.dropout for share in drawn.spec.shares),
                "training": drawn.training,
                "several layers": len(drawn.model.layers) > 1,
                "all passes": len(drawn.optimisations) == len(OPTIMISATIONS),
                "some passes": 0 < len(drawn.optimisations) < len(OPTIMISATIONS),
            }
        )

    look()
    assert len(seen) == 25
    assert not [kind for kind, count in seen.items() if count < 5], seen
