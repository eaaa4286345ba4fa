"""Rates, decay, schedules, averaged weights, and the recipes made of them."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from iact.config import PAPER, RECIPES, TrainConfig
from iact.model import create_model
from iact.training.optimise import AveragedModel, build_optimiser, learning_rate, restore_optimiser, set_learning_rate

COSINE = TrainConfig(learning_rate=0.1, warmup_steps=20)
STEPS = TrainConfig(learning_rate=0.1, schedule="step")


def test_the_warm_up_rises_evenly_to_the_full_rate():
    rates = [learning_rate(COSINE, step, 1000) for step in range(21)]
    assert rates[:20] == pytest.approx([0.1 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(0.1)


def test_a_short_run_warms_up_for_a_tenth_at_most():
    rates = [learning_rate(COSINE, step, 50) for step in range(50)]
    assert rates.index(max(rates)) in (4, 5) and max(rates) == pytest.approx(0.1)
    assert learning_rate(COSINE, 0, 1) == pytest.approx(0.1)  # no step to spare


def test_the_cosine_falls_to_one_percent():
    rates = [learning_rate(COSINE, step, 1000) for step in range(20, 1000)]
    assert all(earlier > later for earlier, later in zip(rates, rates[1:], strict=False))
    assert rates[-1] == pytest.approx(0.001, rel=1e-2)
    assert learning_rate(COSINE, 1000, 1000) == pytest.approx(0.001)
    assert learning_rate(COSINE, 510, 1000) == pytest.approx(0.1 * (0.01 + 0.99 / 2))  # half-way after the warm-up


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 196, 467])
def test_the_papers_steps_fall_after_a_third_and_two_thirds(steps_per_epoch):
    total = 120 * steps_per_epoch
    rates = [learning_rate(STEPS, step, total) for step in range(total)]
    first, second = 40 * steps_per_epoch, 80 * steps_per_epoch
    assert set(rates[:first]) == {0.1}
    assert len(set(rates[first:second])) == 1 and rates[first] == pytest.approx(0.02)
    assert len(set(rates[second:])) == 1 and rates[second] == pytest.approx(0.004)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create_model("iact_t", 29)


def _group_of(optimiser: torch.optim.Optimizer, parameter: nn.Parameter) -> dict:
    (group,) = [group for group in optimiser.param_groups if any(p is parameter for p in group["params"])]
    return group


def test_offsets_move_at_a_tenth_of_the_rate(model):
    optimiser = build_optimiser(model, COSINE)
    set_learning_rate(optimiser, 0.05)
    slow = {n for n, p in model.named_parameters() if _group_of(optimiser, p)["lr"] == pytest.approx(0.005)}
    fast = {n for n, p in model.named_parameters() if _group_of(optimiser, p)["lr"] == pytest.approx(0.05)}
    assert slow | fast == {name for name, _ in model.named_parameters()}
    predicting_offsets = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == 3 * 18
        for kind in ("weight", "bias")
    }
    assert slow == predicting_offsets and len(slow) == 2 * 6


def test_only_matrices_and_kernels_decay(model):
    optimiser = build_optimiser(model, replace(COSINE, weight_decay=0.03))
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    of_norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, norms) for p, _ in m.named_parameters()}
    decays = {name: _group_of(optimiser, p)["weight_decay"] for name, p in model.named_parameters()}
    assert of_norms and {decays[name] for name in of_norms} == {0.0}
    assert {decay for name, decay in decays.items() if name.endswith("bias")} == {0.0}
    others = {decay for name, decay in decays.items() if name not in of_norms and name.endswith("weight")}
    assert others == {0.03}


def test_the_first_group_has_the_full_rate_which_is_the_one_logged(model):
    assert build_optimiser(model, COSINE).param_groups[0]["rate"] == 1.0


def _constant(value: float) -> nn.Module:
    return _fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), value)


@torch.no_grad()
def _fill(model: nn.Module, value: float) -> nn.Module:
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


def _average(start: float, now: float, half_life_faces: float) -> tuple[AveragedModel, nn.Module]:
    """The average of a model that was `start` all over, and the model, which has become `now`."""
    model = _constant(start)
    averaged = AveragedModel(model, half_life_faces, batch_size=8)
    return averaged, _fill(model, now)


def test_the_average_is_half_way_after_its_half_life():
    averaged, _ = _average(0.0, 8.0, 160)
    for step in range(20):  # 160 faces
        averaged.update(step + 1000)
    state = averaged.module.state_dict()
    assert {"1.running_mean", "1.running_var", "0.weight"} < state.keys()
    for name, tensor in state.items():
        expected = 8 if name == "1.num_batches_tracked" else 4
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), msg=name)


def test_the_average_forgets_the_start_soon():
    averaged, _ = _average(0.0, 1.0, 1e6)
    for step in range(20):
        averaged.update(step)
    expected = 1 - math.prod((1 + step) / (10 + step) for step in range(20))
    assert float(averaged.module[0].weight[0, 0].detach()) == pytest.approx(expected, rel=1e-5) and expected > 0.99


def test_without_a_half_life_the_average_is_the_model():
    averaged, target = _average(0.0, 0.3, 0)
    averaged.update(1000)
    for name, tensor in averaged.module.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_the_average_is_its_own_and_takes_no_gradient():
    model = _constant(1.0)
    averaged = AveragedModel(model, half_life_faces=100, batch_size=8)
    assert not averaged.module.training and not any(p.requires_grad for p in averaged.module.parameters())
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    assert float(averaged.module[0].weight[0, 0]) == 1.0


def test_a_rate_is_set_in_place_where_it_is_a_tensor():
    optimiser = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(2))], "rate": 0.1}], lr=1.0)
    rate = optimiser.param_groups[0]["lr"] = torch.tensor(1.0)
    set_learning_rate(optimiser, 0.5)
    assert float(rate) == pytest.approx(0.05) and optimiser.param_groups[0]["lr"] is rate
    other = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(2))], "rate": 0.1}], lr=1.0, capturable=True)
    restore_optimiser(optimiser, other.state_dict())
    assert optimiser.param_groups[0]["lr"] is rate and not optimiser.param_groups[0]["capturable"]


@pytest.mark.parametrize("ruin", [math.nan, math.inf])
def test_the_average_tells_when_weights_are_no_numbers(ruin):
    averaged, target = _average(0.0, 1.0, 100)
    averaged.update(1000)
    assert averaged.is_finite()
    with torch.no_grad():
        target[1].running_var[2] = ruin
    averaged.update(1001)
    assert not averaged.is_finite()


def test_the_paper_recipe_is_the_papers():
    """Section 3.3: Adam, 5e-4, 120 epochs, x0.2 at 40 and 80, 256 px, flip 50 %, masking 30 %, colour 30 %."""
    assert RECIPES["paper"] is PAPER and RECIPES["default"] == TrainConfig()
    assert (PAPER.model, PAPER.epochs, PAPER.learning_rate, PAPER.schedule) == ("iact", 120, 5e-4, "step")
    assert (PAPER.loss, PAPER.block, PAPER.offsets) == ("smooth_wing", "spatial", "separate")
    assert PAPER.feature_attention and PAPER.channel_attention
    absent = (PAPER.weight_decay, PAPER.clip, PAPER.ema_faces, PAPER.map_factor, PAPER.coordinate_weight)
    assert absent == (0, 0, 0, 0, 0)
    strengths = PAPER.augmentation
    assert (strengths.flip, strengths.mask, strengths.colour) == (0.5, 0.3, 0.3)
    assert 2.8 * strengths.rotation == pytest.approx(30, abs=0.1)  # where the draws are cut
    assert {getattr(strengths, name) for name in ("shift", "aspect", "grey", "blur", "noise")} == {0.0}
    rates = [learning_rate(PAPER, epoch * 100, 12000) for epoch in (0, 39, 40, 79, 80, 119)]
    assert rates == pytest.approx([5e-4, 5e-4, 1e-4, 1e-4, 2e-5, 2e-5])


def test_adamw_without_decay_is_the_papers_adam(model):
    optimiser = build_optimiser(model, PAPER)
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0.0}
    assert {group["betas"] for group in optimiser.param_groups} == {(0.9, 0.999)}


def test_a_config_tells_json_all_its_fields():
    told = replace(PAPER, seed=5).to_json()
    assert told.keys() == asdict(PAPER).keys() and told["seed"] == 5 and told["augmentation"]["mask"] == 0.3
