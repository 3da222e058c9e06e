"""A run's specification is written, read back, and compared with the one that goes on with it."""

import dataclasses

import pytest
import yaml

from codesign.run import load_run
from codesign.run_directory import RunDirectoryError
from codesign.run_spec import SPEC_NAME, RunSpec, open_run
from codesign.strategies import STRATEGIES
from codesign.trial import LOG_NAME, Trial

SPEC = RunSpec(
    preset="tiny",
    space_settings={"width": 0.5},
    hardware_settings={"rows": 8},
    hardware_choices={"cols": (8, 16)},
    limits=("energy_j=0.4x", "latency_s=2e-3"),
    strategy="reinforce",
    strategy_settings={"learning_rate": 1.0},
    seed=3,
)


def write_log(folder, *errors):
    trials = [Trial((i,), {"error": error, "energy_j": 1.0}, {}, i) for i, error in enumerate(errors)]
    (folder / LOG_NAME).write_text("".join(f"{trial.to_json()}\n" for trial in trials))


def test_a_specification_is_read_back_as_it_was_written(tmp_path):
    SPEC.write(tmp_path)
    assert RunSpec.read(tmp_path) == SPEC
    assert RunSpec.read(tmp_path / SPEC_NAME) == SPEC


def test_the_chips_file_is_kept_with_the_run(tmp_path):
    chip = tmp_path / "mine.yaml"
    chip.write_text("preset: bitfusion\nrows: 4\n")
    run = tmp_path / "run"
    run.mkdir()
    dataclasses.replace(SPEC, hardware=str(chip), hardware_settings={}).write(run)
    chip.unlink()
    assert RunSpec.read(run).hardware_model().rows == 4
    assert yaml.safe_load((run / SPEC_NAME).read_text())["hardware"] == "chip.yaml"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"famly": "mobilenetv2"}, "near 'family'"),
        ({"network": "resnet20"}, "a network and its weights are for --space bits"),
        ({"search_from": "val"}, "search_from must be train or test"),
        ({"family": "vgg"}, "must be one of mobilenetv2"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"seed": "many"}, "seed: input should be a valid integer"),
        ({"hardware_settings": {"rows": 8}, "hardware_choices": {"rows": [8, 16]}}, "either set or chosen"),
        ({"hardware_choices": {"rows": []}}, "values to choose from"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RunSpec.from_fields(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "huge"}, "preset must be one of"),
        ({"space_settings": {"with": 0.5}}, "near 'width'"),
        ({"space_settings": {"width": -1}}, "width must be positive"),
    ],
)
def test_a_space_that_cannot_be_made_says_why(fields, message):
    with pytest.raises(ValueError, match=message):
        RunSpec.from_fields(fields).space()


def test_strategies_and_their_hyperparameters_are_checked():
    assert dataclasses.replace(SPEC).search_strategy().learning_rate == 1.0
    with pytest.raises(ValueError, match=r"must be one of .*random"):
        RunSpec(strategy="luck").search_strategy()
    with pytest.raises(ValueError, match="near 'learning_rate'"):
        RunSpec(strategy="reinforce", strategy_settings={"learning_rat": 1}).search_strategy()


def test_a_space_takes_fields_as_yaml_gives_them():
    space = RunSpec(preset="cifar", space_settings={"width": 0.25, "bits": [4, 8], "stages": [[8, 1, 1]]}).space()
    assert space.width == 0.25 and space.bits == (4, 8) and space.stages[0].channels == 8


def test_the_preset_follows_the_data():
    assert RunSpec().space().input_size == 8
    assert RunSpec(dataset="cifar10").space().input_size == 32


def test_files_that_are_no_specification_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be readable"):
        RunSpec.read(tmp_path)
    for text, message in (("- a", "lines of the form"), ("a: [", "valid YAML")):
        (tmp_path / SPEC_NAME).write_text(text)
        with pytest.raises(ValueError, match=message):
            RunSpec.read(tmp_path)


def test_a_directory_is_gone_on_with_only_as_the_same_run_and_only_when_asked(tmp_path):
    with open_run(tmp_path, SPEC, resume=False), pytest.raises(RunDirectoryError, match="is writing"):
        open_run(tmp_path, SPEC, resume=True).__enter__()
    with pytest.raises(RunDirectoryError, match="give --resume"), open_run(tmp_path, SPEC, resume=False):
        pass
    other = dataclasses.replace(SPEC, seed=4, strategy_settings={"learning_rate": 2.0})
    with (
        pytest.raises(RunDirectoryError, match=r"learning_rate: 1.0 there, 2.0 here; seed: 3 there, 4 here"),
        open_run(tmp_path, other, resume=True),
    ):
        pass
    more = dataclasses.replace(SPEC, trials=SPEC.trials + 1, data_dir="elsewhere")
    with open_run(tmp_path, more, resume=True):
        pass
    assert RunSpec.read(tmp_path) == more


def test_trials_without_a_specification_are_not_written_over(tmp_path):
    write_log(tmp_path, 0.5)
    with pytest.raises(RunDirectoryError, match=r"holds trials\.jsonl but no run\.yaml"):
        open_run(tmp_path, SPEC, resume=True).__enter__()


def test_a_run_gives_its_best_trial_and_any_by_its_number(tmp_path):
    SPEC.write(tmp_path)
    assert load_run(tmp_path).trials == ()
    with pytest.raises(ValueError, match="none of 0 does"):
        load_run(tmp_path).trial()
    write_log(tmp_path, 0.5, 0.1, 0.3)
    run = load_run(tmp_path)
    assert run.spec == SPEC
    assert run.trial().number == 1 and run.trial("2").number == 2 and run.trial(0).number == 0
    for which in ("3", "first", -1):
        with pytest.raises(ValueError, match="best or a number from 0 to 2"):
            run.trial(which)


def test_a_folder_without_a_run_names_the_runs_below(tmp_path):
    (tmp_path / "a").mkdir()
    SPEC.write(tmp_path / "a")
    with pytest.raises(ValueError, match=r"there are runs in .*a\."):
        load_run(tmp_path)


@pytest.mark.parametrize("strategy", ["haq", "cursor", "dnas", "fine_grained"])
def test_the_preset_of_a_paper_can_be_asked_for_and_changed_in_part(strategy):
    spec = RunSpec(family="bits", network="resnet20", weights="w", strategy=strategy,
                   strategy_settings={"preset": "paper"})  # fmt: skip
    paper = STRATEGIES[strategy].paper()
    assert spec.search_strategy() == paper
    assert RunSpec.from_fields(yaml.safe_load(spec.completed().to_yaml())) == spec.completed()
    name = next(name for name, value in dataclasses.asdict(paper).items() if type(value) is int)
    changed = dataclasses.replace(spec, strategy_settings={"preset": "paper", name: getattr(paper, name) + 1})
    assert changed.search_strategy() == dataclasses.replace(paper, **{name: getattr(paper, name) + 1})
