"""Candidates that are tuned before they are scored."""

import dataclasses

import pytest
import torch
from small_task import problem, task

from codesign.describe import describe
from codesign.search import search
from codesign.strategies import Random
from codesign.tuned_accuracy import TunedAccuracy


def test_a_candidate_of_few_bits_is_better_after_its_tuning_and_worth_the_same_each_time():
    whole = task(n_train=512, epochs=30)
    before = {name: value.clone() for name, value in whole.network.state_dict().items()}
    arch = whole.space.uniform(2)
    tuned = TunedAccuracy(whole.network, whole.space, whole.data, 512, batch_size=32)
    found = tuned(arch)
    assert found["loss"] < whole.accuracy()(arch)["loss"]
    other = TunedAccuracy(whole.network, whole.space, whole.data, 512, batch_size=32)
    other(whole.space.uniform(8))  # what came before does not matter
    assert other(arch) == found == tuned(arch) and describe(tuned) == describe(other)
    assert all(torch.equal(value, before[name]) for name, value in whole.network.state_dict().items())


def test_a_search_scores_with_it_where_it_is_asked_for_and_its_passes_are_counted():
    bare = problem({"energy_j": 0.7})
    tuning = dataclasses.replace(bare.supernet, tune_images=64)
    assert tuning.evaluation_passes == 3 * 64 + 64 + len(tuning.data.search.labels)
    asked = dataclasses.replace(bare, accuracy=tuning.accuracy(), supernet=tuning)
    trials = search(asked, Random(), 3, batch_size=3)
    assert [trial.metrics["loss"] for trial in trials] == [tuning.accuracy()(trial.arch)["loss"] for trial in trials]
    assert describe(tuning) != describe(bare.supernet)


def test_too_few_images_are_refused():
    whole = task()
    with pytest.raises(ValueError, match="n_images must be from a batch of 64 to the 128 training images, got 32"):
        TunedAccuracy(whole.network, whole.space, whole.data, 32)
