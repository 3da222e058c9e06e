"""Limits as text: units, factors on a reference, and an error for each way to get them wrong."""

import dataclasses
import itertools
from dataclasses import dataclass, replace

import pytest
from toys import Roofline, problem

from codesign.limits import parse_limits
from codesign.problem import Problem
from codesign.space import AbstractSpace, BitwidthSpace

TOY = problem(limit=None)
EIGHT = TOY.space.uniform(8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency_s=2e-3", {"latency_s": 2e-3}),
        ("latency_s=2ms", {"latency_s": 2 * 1e-3}),
        (" latency_s = 2.5 us ", {"latency_s": 2.5 * 1e-6}),
        ("latency_s=.5ns", {"latency_s": 0.5 * 1e-9}),
        ("latency_s=1s", {"latency_s": 1.0}),
        ("energy_j=40uJ", {"energy_j": 40 * 1e-6}),
        ("energy_j=1e2pJ", {"energy_j": 100 * 1e-12}),
        ("energy_j=3nJ", {"energy_j": 3 * 1e-9}),
        ("energy_j=1mJ", {"energy_j": 1e-3}),
        ("energy_j=1J", {"energy_j": 1.0}),
        ("weight_bytes=2KiB", {"weight_bytes": 2 * 1024}),
        ("weight_bytes=800bit", {"weight_bytes": 100}),
        ("bitops=1e9", {"bitops": 1e9}),
        ("frames_per_s=30", {"frames_per_s": 30}),
        ("energy_j=0.4x", {"energy_j": 0.4 * TOY.price(EIGHT).energy_j}),
        ("edp_js=1.5x", {"edp_js": 1.5 * TOY.price(EIGHT).edp_js}),
    ],
)
def test_a_limit_with_a_unit_or_a_factor_becomes_a_number_in_the_unit_of_its_name(text, expected):
    assert parse_limits([text], TOY, EIGHT) == expected


def test_several_limits_are_kept_in_order_and_make_a_problem():
    limits = parse_limits(["macs=1e9", "energy_j=0.5x"], TOY, EIGHT)
    assert list(limits) == ["macs", "energy_j"]
    assert dataclasses.replace(TOY, limits=limits).feasible(TOY.space.uniform(2))
    assert parse_limits([], TOY) == {}


def test_a_factor_refers_to_what_the_space_names_unless_told_otherwise():
    class Named(BitwidthSpace):
        reference = EIGHT

    named = Problem(Named(TOY.space.network), TOY.accuracy, TOY.hardware)
    assert parse_limits(["macs=2x"], named) == {"macs": 2 * TOY.price(EIGHT).metrics()["macs"]}
    two = parse_limits(["weight_bytes=1x"], named, TOY.space.uniform(2))
    assert two == {"weight_bytes": TOY.price(TOY.space.uniform(2)).workload.weight_bytes}


@pytest.mark.parametrize(("name", "best"), [("energy_j", min), ("frames_per_s", max)])
def test_a_percentage_is_the_share_of_the_way_from_the_cheapest_network_to_the_one_at_8_bits(name, best):
    archs = itertools.product(*map(range, TOY.space.option_counts))
    end = best(TOY.price(arch).metrics()[name] for arch in archs)
    whole = TOY.price(EIGHT).metrics()[name]
    for percent in (1, 60, 100):
        limits = parse_limits([f"{name}={percent}%"], TOY)
        assert limits == {name: pytest.approx(end + percent / 100 * (whole - end), rel=1e-12)}
        assert dataclasses.replace(TOY, limits=limits).witness
        assert dataclasses.replace(TOY, limits=limits).feasible(EIGHT) == (percent == 100)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["energy_j"], r"'energy_j': it must be metric=value"),
        (["=3"], r"it must be metric=value"),
        (["energy=3"], r"one that Roofline gives, got 'energy'; known are latency_s, .*Did you mean energy_j\?"),
        (["watts=3"], r"got 'watts'; known are latency_s, .*weight_bytes\."),
        (["macs=3", "macs=4"], r"'macs=4': a metric must have one limit"),
        (["energy_j="], r"the value must be a number, with a unit or x after it, got ''"),
        (["energy_j=much"], r"got 'much'"),
        (["energy_j=0.4x0"], r"the unit must be one of energy_j, got 'x0'"),
        (["energy_j=1,5"], r"got '1,5'"),
        (["energy_j=0"], r"must be a positive number, got 0"),
        (["energy_j=-2uJ"], r"must be a positive number, got -2"),
        (["energy_j=inf"], r"must be a positive number, got inf"),
        (["energy_j=1e999"], r"must be a positive number, got 1e999"),
        (["energy_j=nan"], r"must be a positive number, got nan"),
        (["latency_s=2mJ"], r"the unit must be one of latency_s, got 'mJ'; known are x, .*, s, ms, us, ns"),
        (["energy_j=40UJ"], r"got 'UJ'; known are x, .* uJ"),
        (["macs=3M"], r"the unit must be one of macs, got 'M'; known are x"),
    ],
)
def test_what_is_wrong_with_a_limit_is_said(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_limits(texts, TOY, EIGHT)


@dataclass(frozen=True)
class Nameless(AbstractSpace):
    """The toy's space without its reference."""

    whole: AbstractSpace

    @property
    def choices(self):
        return self.whole.choices

    def workload(self, arch):
        return self.whole.workload(arch)


def test_a_factor_refers_to_the_same_network_at_8_bits_unless_told_otherwise():
    assert parse_limits(["energy_j=0.4x"], TOY) == parse_limits(["energy_j=0.4x"], TOY, EIGHT)
    wider = replace(TOY, space=replace(TOY.space, bits=(4, 8, 16)))
    assert parse_limits(["energy_j=0.4x"], wider) == parse_limits(["energy_j=0.4x"], TOY)


def test_a_factor_without_a_reference_or_with_one_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Nameless names none; give a value"):
        parse_limits(["energy_j=0.4x"], replace(TOY, space=Nameless(TOY.space)))
    small = Problem(TOY.space, TOY.accuracy, Roofline(buffer_bits=4 * 24 * 24))
    with pytest.raises(ValueError, match=r"cannot .* do not fit"):
        parse_limits(["energy_j=0.4x"], small, EIGHT)
    with pytest.raises(ValueError, match="one index for each"):
        parse_limits(["energy_j=0.4x"], TOY, (0,))
