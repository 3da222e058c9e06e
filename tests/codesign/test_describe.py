import json
import subprocess
import sys
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pytest
import torch
from toys import Roofline, problem

from codesign.describe import describe, differences, digest, versions
from codesign.strategies import Random, Reinforce
from hwmodels import HARDWARE


def test_equal_configurations_have_equal_descriptions_and_others_not():
    assert describe(problem()) == describe(problem())
    assert describe(problem(limit=0.5)) != describe(problem(limit=0.6))
    assert describe(Reinforce()) != describe(Reinforce(entropy=0.02)) != describe(Random())
    assert describe(Roofline())["type"] == "toys.Roofline"


def test_a_description_goes_through_json_unchanged():
    everything = {
        "problem": problem(), "numbers": [1, 2.5, float("inf"), float("nan"), None, True, np.int64(3), np.float32(0.5)],
        "set": {"b", "a"}, "array": np.arange(3), "module": torch.nn.Linear(2, 2), "function": partial(len, "x"),
    }  # fmt: skip
    text = describe(everything)
    assert json.loads(json.dumps(text, allow_nan=False)) == text


def test_arrays_and_weights_are_told_apart_by_their_content():
    assert digest(np.arange(3)) != digest(np.arange(1, 4)) != digest(np.arange(1, 4).astype(float))
    assert digest(np.zeros((2, 3))) != digest(np.zeros((3, 2)))
    torch.manual_seed(0)
    assert describe(torch.nn.Linear(2, 2)) != describe(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", HARDWARE)
def test_every_chip_is_described_by_its_fields(name):
    chip = HARDWARE[name]() if callable(HARDWARE[name]) else HARDWARE[name]
    assert describe(chip) == {
        "type": f"{type(chip).__module__}.{type(chip).__qualname__}",
        **{field.name: describe(getattr(chip, field.name)) for field in fields(chip)},
    }


def test_a_value_may_describe_itself():
    @dataclass(frozen=True)
    class Own:
        hidden: object

        def describe(self):
            return {"n": 1}

    assert {k: v for k, v in describe(Own(object())).items() if k != "type"} == {"n": 1}


def test_differences_name_the_path_and_both_values():
    there, here = {"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "d": 1}
    assert list(differences(there, here)) == [
        "a.b[1]: 2 there, 3 here",
        "c: 1 there, None here",
        "d: None there, 1 here",
    ]


def test_versions_are_found_without_importing():
    assert versions("numpy", "no-such-package") == {
        "python": sys.version.split()[0], "numpy": np.__version__, "no-such-package": "not installed",
    }  # fmt: skip


def test_importing_the_package_and_its_search_loads_neither_torch_nor_plotting():
    code = """
import sys, codesign
loaded = {"torch", "matplotlib", "moocore", "sklearn", "numba"} & set(sys.modules)
assert not loaded, loaded
codesign.search, codesign.Reinforce, codesign.BitwidthSpace, codesign.load_trials
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
for name in codesign.__all__:
    getattr(codesign, name)
assert set(codesign.__all__) <= set(dir(codesign))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
