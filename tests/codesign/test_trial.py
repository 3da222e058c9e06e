import json
import math
import resource

import pytest

from codesign.trial import LOG_NAME, BrokenLog, Trial, TrialLog, best_trial, load_trials


def trial(number, **metrics):
    return Trial((0, number % 3), {"error": 0.1 / (number + 1), **metrics}, {}, number, 7)


def write(path, n=4):
    with TrialLog(path) as log:
        for number in range(n):
            log.append(trial(number))


def test_a_trial_read_back_is_the_trial_written_to_the_last_bit():
    there = Trial((1, 2), {"error": 0.1 + 0.2, "energy_j": 1 / 3e7}, {"latency_s": 1e-300}, 5, 9)
    assert Trial.from_json(there.to_json()) == there


def test_nan_and_infinities_are_kept_in_json_that_any_reader_takes():
    line = Trial((0,), {"a": math.nan, "b": math.inf, "c": -math.inf}).to_json()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = Trial.from_json(line).metrics
    assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


def test_a_log_gives_back_its_trials(tmp_path):
    write(tmp_path / LOG_NAME)
    assert load_trials(tmp_path) == [trial(number) for number in range(4)]
    assert load_trials(tmp_path / LOG_NAME) == load_trials(tmp_path)


def test_wherever_a_kill_tears_the_last_line_the_trials_before_it_are_kept_and_the_log_goes_on(tmp_path):
    write(tmp_path / "whole", 3)
    whole = (tmp_path / "whole").read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    for end in range(start_of_last, len(whole)):
        path = tmp_path / LOG_NAME
        path.write_bytes(whole[:end])
        assert load_trials(path) == [trial(0), trial(1)]
        with TrialLog(path) as log:
            log.append(trial(2))
        assert path.read_bytes() == whole


def test_zeros_that_a_crash_left_at_the_end_are_cut_off(tmp_path):
    path = tmp_path / LOG_NAME
    write(path, 2)
    path.write_bytes(path.read_bytes() + b"\0" * 300)
    assert len(load_trials(path)) == 2


def test_damage_before_whole_lines_is_an_error_that_leaves_the_file_alone(tmp_path):
    path = tmp_path / LOG_NAME
    write(path, 3)
    damaged = path.read_bytes().replace(b'"number": 1', b'"numb', 1)
    path.write_bytes(damaged)
    with pytest.raises(BrokenLog, match="line 2 of 3"):
        TrialLog(path)
    assert path.read_bytes() == damaged


def test_a_missing_trial_is_noticed(tmp_path):
    path = tmp_path / LOG_NAME
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(BrokenLog, match="got number 2 in line 2"):
        load_trials(path)


def test_a_full_disk_loses_no_finished_trial(tmp_path):
    path = tmp_path / LOG_NAME
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrialLog(path) as log:
        log.append(trial(0))
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))  # as a full disk does: takes some, then refuses
        try:
            with pytest.raises(OSError, match="the 1 trials before it are safe"):
                log.append(trial(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size
        log.append(trial(1))
    assert load_trials(path) == [trial(0), trial(1)]


def test_a_directory_without_trials_says_where_there_are_some(tmp_path):
    (tmp_path / "random").mkdir()
    write(tmp_path / "random" / LOG_NAME)
    with pytest.raises(FileNotFoundError, match=r"there are runs in .*random"):
        load_trials(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such run"):
        load_trials(tmp_path / "nowhere")


def test_the_best_trial_is_feasible_and_ties_go_to_less_energy_then_to_the_earlier():
    trials = [
        Trial((0,), {"error": 0.1, "energy_j": 2.0}, {}, 0),
        Trial((1,), {"error": 0.1, "energy_j": 1.0}, {}, 1),
        Trial((2,), {"error": 0.1, "energy_j": 1.0}, {}, 2),
        Trial((3,), {"error": 0.0, "energy_j": 9.0}, {"energy_j": 0.5}, 3),
        Trial((4,), {"error": math.nan, "energy_j": 0.1}, {}, 4),
    ]
    assert best_trial(trials).number == 1
    assert best_trial(trials[3:]) is None
