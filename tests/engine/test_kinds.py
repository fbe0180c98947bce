"""Kinds of functions: a table of rules that knows one spelling knows all."""

import pytest
import torch
from torch import nn

import saliency
from saliency import rules
from saliency.engine import kinds
from tests.cases import Net

TABLES = {"excitation": rules.EXCITATION, "cp": rules.cp(), "attn_lrp": rules.attn_lrp(), "deep_lift": rules.DEEP_LIFT}
MADE_OF_KINDS = ("NORMALISATIONS", "SQUASHING")
KINDS = [name for name, value in vars(kinds).items() if isinstance(value, tuple) and name not in MADE_OF_KINDS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_knows_all_spellings_of_a_kind_or_none(table, kind):
    """Of one that it forgets, the plain gradient comes back, and the map is wrong without a word."""
    functions = getattr(kinds, kind)
    known = [function in TABLES[table] for function in functions]
    assert all(known) or not any(known), [f for f, is_known in zip(functions, known, strict=True) if not is_known]


@pytest.mark.parametrize("product", [torch.mul, torch.multiply, torch.Tensor.multiply, torch.Tensor.multiply_])
def test_relevance_is_conserved_by_a_product_however_it_is_spelled(product):
    net = Net(lambda s, x: s.fc(product(s.a(x), s.b(x))), a=nn.Linear(3, 4), b=nn.Linear(3, 4), fc=nn.Linear(4, 2))
    parts = saliency.completeness(net.double(), torch.rand(2, 3).double(), 1, rules=rules.cp(0))
    assert abs(parts.score) > 1e-3
    assert abs(parts.rest) < 1e-9
