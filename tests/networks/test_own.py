"""Networks of the user's own, imported by name."""

import sys
import textwrap

import pytest
import torch

from saliency.networks.models import Preprocessing
from saliency.networks.own import import_network

SOURCE = """
    from torch import nn
    from saliency.networks.models import Preprocessing

    class Nets:
        @staticmethod
        def build():
            return nn.Identity()

    def alone():
        return nn.Sequential(nn.Flatten(), nn.Dropout())

    def both():
        return nn.ReLU(), Preprocessing(64, 32, True, (0.5,) * 3, (0.25,) * 3, ("cat", "dog"), multi_label=True)

    def number():
        return 3

    def wrong_pair():
        return nn.ReLU(), 224

    def failing():
        raise OSError("my weights are gone")

    five = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "needs_more.py").write_text("import a_module_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    for name in ("my_nets", "needs_more"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("module")
class TestImport:
    def test_a_network_alone(self):
        network, preprocessing = import_network("my_nets:alone")
        assert not any(part.training for part in network.modules())
        assert network(torch.ones(2, 3, 2, 2)).shape == (2, 12)
        assert preprocessing == Preprocessing(224, 1, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ())

    def test_with_a_preprocessing(self):
        network, preprocessing = import_network("my_nets:both")
        assert not network.training
        assert preprocessing.classes == ("cat", "dog")
        assert preprocessing.multi_label

    def test_in_a_class(self):
        assert isinstance(import_network("my_nets:Nets.build")[0], torch.nn.Identity)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("my_nets", "does not name a function of a module; expected 'my_module:build'"),
            (":alone", "does not name a function of a module"),
            ("my_nets:", "does not name a function of a module"),
            ("my nets:alone", "does not name a function of a module"),
            ("my_netz:alone", "cannot be imported .*No module named 'my_netz'.* expected a module"),
            ("needs_more:alone", "cannot be imported .*No module named 'a_module_that_nobody_has'"),
            ("my_nets:alon", "is not in my_nets: it has no 'alon'; .* expected a function of it"),
            ("my_nets:five", "is of type int; expected a function that returns a network"),
            ("my_nets:number", "returned an object of type int; expected"),
            ("my_nets:wrong_pair", "returned an object of type tuple"),
        ],
    )
    def test_what_is_no_network(self, name, message):
        with pytest.raises(ValueError, match=f"import='{name}' {message}"):
            import_network(name)

    def test_errors_of_the_function_are_its_own(self):
        with pytest.raises(OSError, match="my weights are gone"):
            import_network("my_nets:failing")
