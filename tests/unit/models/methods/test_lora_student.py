"""A generator that is a LoRA on the frozen base that the critic holds too."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.types import Batch, Method

LORA = {"kind": "lora", "rank": 2}


def built(**changes: Any) -> Method:
    cls = METHODS.get("magic-gt")
    assert cls is not None
    values = {"name": "magic-gt", "student": LORA, "sampler": {"num_steps": 2}} | changes
    torch.manual_seed(0)
    return cls.model_validate(values).build(ModelConfig(preset="nano"), WHOLE)


def batch() -> Batch:
    torch.manual_seed(1)
    x0 = torch.randn(2, 16, 2, 4, 4)
    null = Conditions.null(x0[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    return Batch(x0, null, (0, 1), null)


def with_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def open_branches(module: nn.Module) -> None:
    """Let the LoRA act, whose second matrix is zero at the start."""
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)


@torch.no_grad()
def velocity(module: nn.Module) -> Tensor:
    given = batch()
    return module(given.x0, torch.tensor([0.3, 0.8]), given.conditions)


def test_a_lora_student_is_its_teacher_at_first_and_shares_every_weight_of_it() -> None:
    method = built()
    generator, critic = method.modules["generator"], method.modules["critic"]
    score: Any = critic.score
    assert torch.equal(velocity(generator), velocity(score))
    frozen = {p for p in generator.parameters() if not p.requires_grad}
    assert frozen == {p for p in score.parameters() if not p.requires_grad}
    assert trained(generator) and all("lora_" in name for name in trained(generator))
    assert sum(p.numel() for p in generator.parameters()) > 20 * sum(
        p.numel() for p in generator.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("role", ["generator", "critic"])
def test_a_lora_students_update_trains_its_own_branch_alone(role: str) -> None:
    method = built()
    modules = method.modules
    for module in modules.values():
        open_branches(module)
    expected = {name: trained(module) for name, module in modules.items()}
    with method.prepared_for(role):
        loss = method.loss(role, modules, batch(), Rng(0, 0, 0, (0, 1), "cpu"))
        loss.total.backward()
    for name, module in modules.items():
        assert with_gradient(module) == (expected[name] if name == role else set()), name


def test_the_branches_of_a_lora_student_and_of_its_critic_have_strengths_of_their_own() -> None:
    modules = built().modules
    generator, score = modules["generator"], getattr(modules["critic"], "score")  # noqa: B009
    plain = velocity(generator)
    open_branches(generator)
    moved = velocity(generator)
    assert (moved - plain).abs().max() > 0.01
    assert torch.equal(velocity(score), plain)
    open_branches(score)
    assert torch.equal(velocity(generator), moved)
    with lora_strength(score, torch.tensor([0.0, 1.0])):
        first, second = velocity(score)
        assert torch.allclose(first, plain[0], atol=1e-6)
        assert (second - plain[1]).abs().max() > 0.01
        assert torch.equal(velocity(generator), moved)


def test_a_lora_student_cannot_learn_the_guidance_input() -> None:
    with pytest.raises(ValueError, match=r"give student\.kind full, or leave cfg_distillation out"):
        built(cfg_distillation={})


def test_a_lora_students_rank_and_linears_are_checked_like_the_critics() -> None:
    cls = METHODS.get("dmd")
    assert cls is not None
    student = {"kind": "lora", "rank": 500, "targets": ["nothing"]}
    method = cls.model_validate({"name": "dmd", "student": student})
    teacher, rank, targets = method.problems(ModelConfig(preset="nano"), 10)
    assert teacher.startswith("student.kind lora: model.teacher is null")
    assert rank == "student.rank 500: the network is 96 wide; give at most that"
    assert targets.startswith("student.targets 'nothing': names no linear of the network")
