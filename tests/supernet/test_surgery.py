from __future__ import annotations

import pytest
import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.supernet import execution_order, flatten_feature, gated, match_blocks


class Toy(nn.Module):
    """Two branches, called in the order b, a."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        self.tail = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.blocks["a"](self.blocks["b"](x)))


def fingerprint(module: nn.Module) -> list[object]:
    """Everything that surgery could leave behind, of every submodule."""
    return [
        (
            name,
            sorted(part.__dict__),
            getattr(part.forward, "__func__", None),
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
        )
        for name, part in module.named_modules()
    ]


def test_the_model_is_as_before_on_exit_and_after_an_error() -> None:
    model, x = Toy(), torch.randn(2, 3)
    before, state, plain = fingerprint(model), {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    with gated(model, ["blocks.a", "blocks.b"], lambda _, forward, args, kwargs: forward(*args, **kwargs)):
        assert torch.equal(model(x), plain)
        assert fingerprint(model) != before
    assert fingerprint(model) == before and torch.equal(model(x), plain)
    with pytest.raises(RuntimeError, match="in a block"), gated(model, ["blocks.a"], fail):
        model(x)
    assert fingerprint(model) == before
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def fail(*_: object) -> None:
    raise RuntimeError("in a block")


def test_surgery_inside_surgery_unwinds_in_order() -> None:
    model, x = Toy(), torch.ones(1, 3)
    plain = model(x)
    with gated(model, ["blocks.a"], lambda _, forward, args, kwargs: forward(*args, **kwargs) + 1):
        once = model(x)
        with gated(model, ["blocks.a"], lambda _, forward, args, kwargs: forward(*args, **kwargs) * 0):
            model(x)
        assert torch.equal(model(x), once)
    assert torch.equal(model(x), plain)


def test_a_gate_replaces_a_block_without_calling_it() -> None:
    model = Toy()
    stored = torch.full((1, 3), 2.0)
    with gated(model, ["blocks.a"], lambda name, *_: stored if name == "blocks.a" else None):
        assert torch.equal(model(torch.randn(1, 3)), model.tail(stored))


def test_patterns_match_whole_components_and_do_not_nest() -> None:
    model = Toy()
    assert match_blocks(model, ["blocks.*", "tail"]) == ["blocks.a", "blocks.b", "tail"]
    with pytest.raises(UsageError, match=r"'block\.\*' matches no submodule of Toy: its children are blocks, tail"):
        match_blocks(model, ["block.*"])
    assert match_blocks(model, ["block.*"], strict=False) == []
    with pytest.raises(UsageError, match=r"tail\.0 lies inside block tail"):
        match_blocks(model, ["tail", "tail.*"])


def test_execution_order_is_that_of_the_forward() -> None:
    model, x = Toy(), torch.randn(1, 3)
    assert execution_order(model, ["blocks.a", "blocks.b"], lambda: model(x)) == ["blocks.b", "blocks.a"]
    with pytest.raises(InputError, match="runs more than once"):
        execution_order(model, ["tail"], lambda: model.tail(model(x)))


def test_features_hold_each_tensor_once_and_come_back_as_they_were() -> None:
    hidden, skip = torch.ones(1), torch.zeros(1)
    tensors, template = flatten_feature((hidden, (skip, hidden), {"scale": 3}))
    assert [id(t) for t in tensors] == [id(hidden), id(skip)]
    rebuilt = template.rebuild([torch.full((1,), 5.0), torch.full((1,), 7.0)])
    assert rebuilt[0] is rebuilt[1][1] and float(rebuilt[0]) == 5 and float(rebuilt[1][0]) == 7
    assert rebuilt[2] == {"scale": 3}
