"""Training to the end: recipes, killed and gone on with, and stopped where numbers are no longer finite."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from codesign.accuracy import evaluate
from codesign.augment import crop_and_flip
from codesign.data import Images, load_data
from codesign.precision import Precision
from codesign.quant import calibrate, quantize
from codesign.run_directory import RunDirectoryError
from codesign.state_file import unpack_state
from codesign.train import PICTURES, Recipe, train

SMALL = Recipe(batch_size=32)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", n_train=256, n_search=200).train


def small_net(seed=0):
    """A convolution, BatchNorm and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


def weights(network):
    return [tensor.numpy().copy() for tensor in network.state_dict().values()]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize(
    ("recipe", "rate"),
    [
        (Recipe(batch_size=32), 0.01),
        (Recipe("sgd", "cosine", batch_size=32, warmup=0.2, clip_norm=1.0, label_smoothing=0.1), 0.1),
        (Recipe("sgd", "one-cycle", batch_size=32, augment="none", channels_last=True), 0.1),
        (Recipe("adamw", "cosine", batch_size=32, precision=Precision("bfloat16")), 0.01),
        (Recipe(batch_size=32, precision=Precision("float16", first_scale=2.0**26)), 0.02),
    ],
    ids=["adamw", "sgd", "one-cycle sgd", "bfloat16", "float16"],
)
def test_every_recipe_learns_repeatably_and_goes_on_from_its_state_as_if_never_stopped(data, recipe, rate, tmp_path):
    whole, stopped = small_net(), small_net()
    history = train(whole, data, 4, rate, 1, recipe)
    assert evaluate(whole, data)["error"] < 0.5 and history[-1]["loss"] < history[0]["loss"]  # chance is 0.9
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]

    class Interrupt(Exception):
        pass

    def interrupt(metrics):
        if metrics["epoch"] == 1:
            raise Interrupt

    path = tmp_path / "state.safetensors"
    with pytest.raises(Interrupt):
        train(stopped, data, 4, rate, 1, recipe, checkpoint=path, metrics=interrupt)
    resumed, seen = small_net(), []
    second = train(resumed, data, 4, rate, 1, recipe, checkpoint=path, metrics=seen.append)
    assert equal(whole, resumed) and seen == second

    def timeless(entries):
        return [{name: value for name, value in entry.items() if name != "train_s"} for entry in entries]

    assert timeless(second) == timeless(history)
    if recipe.precision.dtype == "float16":
        assert history[-1]["skipped_steps"] > 3  # 2^26 is far too much


@pytest.mark.parametrize("statistics", ["batch", "kept"])
def test_kept_statistics_are_what_is_normalised_by_and_stay(data, statistics):
    network, seen = small_net(), []
    norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean += 0.5
    norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    before, weights = norm.running_mean.clone(), norm.weight.detach().clone()
    train(network, data, 1, 0.01, 0, Recipe(batch_size=32, statistics=statistics))
    first, output = seen[0]
    if statistics == "kept":
        scaled = (first - before[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        assert torch.allclose(output, scaled * weights[:, None, None], atol=1e-5)  # the bias is 0 at first
    assert torch.equal(norm.running_mean, before) == (statistics == "kept")
    assert not torch.equal(norm.weight, weights) and norm.training == network.training


def test_a_finished_training_is_read_back_without_a_step(data, tmp_path):
    first, again = small_net(), small_net()
    train(first, data, 2, 0.01, 0, SMALL, checkpoint=tmp_path / "state.safetensors")
    again.forward = None  # it would fail
    train(again, data, 2, 0.01, 0, SMALL, checkpoint=tmp_path / "state.safetensors")
    assert equal(first, again)


def test_a_state_of_another_training_is_refused(data, tmp_path):
    path = tmp_path / "state.safetensors"
    train(small_net(), data, 1, 0.01, 0, SMALL, checkpoint=path)
    before = path.read_bytes()
    for changes, named in (
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"recipe": Recipe(batch_size=16)}, "recipe.batch_size: 32 there, 16 here"),
        ({"network": small_net(1)}, "network"),
        ({"data": Images(data.images[:64], data.labels[:64])}, "data"),
    ):
        arguments = {"network": small_net(), "data": data, "seed": 0, "recipe": SMALL, **changes}
        with pytest.raises(RunDirectoryError, match=named):
            train(**arguments, epochs=1, learning_rate=0.01, checkpoint=path)
    assert path.read_bytes() == before


_TRAIN = textwrap.dedent("""
    import os, random, signal, sys, time
    import numpy as np, torch
    from codesign.data import Images, load_data
    from codesign.quant import calibrate, quantize
    from codesign.train import Recipe, train
    from torch import nn

    torch.set_num_threads(1)
    data = load_data("digits", n_train=128, n_search=100).train
    folder = sys.argv[1]

    def job(path, out):
        torch.manual_seed(0)
        body = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(0.1), nn.Flatten()
        network = quantize(nn.Sequential(*body, nn.Linear(128, 10)), 4, (2, 4))
        calibrate(network, data.images)
        train(network, data, 12, 0.01, 0, Recipe(batch_size=32), lambda rng: int(rng.choice([2, 4])), path)
        np.savez(out, *(t.numpy() for t in network.state_dict().values()))

    def child(*arguments):
        pid = os.fork()
        if pid == 0:
            try:
                job(*arguments)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        return pid

    job(folder + "/warm.safetensors", folder + "/warm.npz")
    begun = time.monotonic()
    assert os.waitpid(child(folder + "/whole.safetensors", folder + "/whole.npz"), 0)[1] == 0
    took = time.monotonic() - begun
    random.seed(int(sys.argv[2]))
    kills = 0
    while kills < 200:
        pid = child(folder + "/killed.safetensors", folder + "/killed.npz")
        time.sleep(random.uniform(0.1, 0.8) * took)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and status == 0:
            break
        assert not done, status
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    print(kills)
""")


def killed_and_gone_on_with(folder, seed):
    """Train twice, once killed again and again; how often, and whether the weights and states are equal."""
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, folder, str(seed)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, killed = (np.load(folder / f"{name}.npz") for name in ("whole", "killed"))
    assert all(np.array_equal(whole[name], killed[name]) for name in whole.files)
    states = [unpack_state((folder / f"{name}.safetensors").read_bytes()) for name in ("whole", "killed")]
    for state in states:
        for entry in state["history"]:
            del entry["train_s"]
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(value, states[1][name]) for name, value in states[0].items())
    return int(done.stdout)


def test_killed_at_random_moments_and_begun_again_it_ends_in_the_same_weights(tmp_path):
    assert killed_and_gone_on_with(tmp_path, 3) >= 1


@pytest.mark.slow
def test_killed_at_many_random_moments_it_ends_in_the_same_weights(tmp_path):
    kills = 0
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        kills += killed_and_gone_on_with(tmp_path / str(seed), seed)
    assert kills >= 12


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights_and_names_epoch_step_and_options(data, tmp_path):
    class Bursting(nn.Module):
        """Gives nan from its 20th training step on."""

        def __init__(self):
            super().__init__()
            self.body, self.steps = small_net(), 0

        def forward(self, x):
            self.steps += self.training
            return self.body(x) * (math.nan if self.steps >= 20 and self.training else 1.0)

    good = small_net()
    kept = {}
    train(good, data, 4, 0.01, 0, SMALL, metrics=lambda m: kept.setdefault(m["epoch"], weights(good)))
    network, path = Bursting(), tmp_path / "state.safetensors"
    with pytest.raises(FloatingPointError) as error:
        train(network, data, 4, 0.01, 0, SMALL, checkpoint=path)
    # 8 steps an epoch: the 20th is step 3 of epoch 2
    for part in ("the loss", "is nan in epoch 2, step 3 of 8", "learning rate", "float32", "end of epoch 1"):
        assert part in str(error.value)
    assert all(np.array_equal(x, y) for x, y in zip(weights(network.body), kept[1], strict=True))
    assert len(unpack_state(path.read_bytes())["history"]) == 2


def test_weights_that_the_last_step_made_nan_are_not_kept(data):
    network = small_net()
    before = weights(network)
    poisoned = network[4].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match=r"the weights must stay finite.* not in .*that it began with"):
        train(network, Images(data.images[:32], data.labels[:32]), 1, 0.01, 0, SMALL)
    poisoned.remove()
    assert all(np.array_equal(x, y) for x, y in zip(weights(network), before, strict=True))


def test_steps_without_finite_gradients_are_skipped_and_counted_in_float16_alone(data):
    def spoil(network):
        calls = []
        network[4].weight.register_hook(lambda g: calls.append(1) or (g * math.inf if len(calls) == 3 else g))
        return network

    recipe = Recipe(batch_size=32, precision=Precision("float16", first_scale=1024.0))
    history = train(spoil(small_net()), data, 2, 0.01, 0, recipe)
    assert [entry["skipped_steps"] for entry in history] == [1, 1]
    with pytest.raises(FloatingPointError, match="step 2 of 8"):
        train(spoil(small_net()), data, 2, 0.01, 0, Recipe(batch_size=32, clip_norm=1.0))


def test_only_matrices_and_kernels_decay(data):
    network = small_net()
    for parameter in network.parameters():
        parameter.register_hook(torch.zeros_like)  # without gradients only the decay moves weights
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train(network, data, 1, 0.01, 0, Recipe("sgd", "cosine", batch_size=32, weight_decay=0.1))
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name]) == (p.ndim == 1), name


def test_the_cosine_rises_over_the_warm_up_and_falls_to_zero(data):
    rates = []
    steps = Images(data.images[:32], data.labels[:32])
    train(small_net(), steps, 10, 0.5, 0, Recipe("sgd", "cosine", batch_size=32, warmup=0.2),
          metrics=lambda m: rates.append(m["learning_rate"]))  # fmt: skip
    expected = [0.5 * 2 / 2] + [0.25 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]  # at the end of each step
    assert rates == pytest.approx(expected)


def test_label_smoothing_and_clipping_change_what_they_should(data):
    """One step of plain descent on a linear classifier that starts at zero: p = 1 / K for every class."""
    images, labels = data.images[:32], data.labels[:32]

    def step(**changes):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
        nn.init.zeros_(network[1].weight)
        recipe = Recipe("sgd", "cosine", 32, 0.0, momentum=0.0, augment="none", **changes)
        train(network, Images(images, labels), 1, 1.0, 0, recipe)
        return network[1].weight.detach()

    target = nn.functional.one_hot(labels, 10).float()
    for smoothing in (0.0, 0.2):
        aim = (1 - smoothing) * target + smoothing / 10
        expected = (aim - 0.1).T @ images.flatten(1) / 32
        assert step(label_smoothing=smoothing).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    free = step()
    clipped = step(clip_norm=0.25 * float(free.norm()))
    assert clipped.numpy() == pytest.approx(0.25 * free.numpy(), rel=1e-3, abs=1e-7)


def test_crops_and_flips_are_drawn_for_each_image(data):
    images = torch.arange(2 * 64 * 3 * 64, dtype=torch.float32).reshape(128, 3, 8, 8) + 1
    moved = crop_and_flip(images, np.random.default_rng(0))
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for image, wide in zip(moved, padded, strict=True):
        crops = {(i, j): wide[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)}
        found = [(*place, False) for place, crop in crops.items() if torch.equal(image, crop)]
        found += [(*place, True) for place, crop in crops.items() if torch.equal(image, crop.flip(2))]
        assert found
        seen.update(found[:1])
    assert len(seen) > 60 and {flip for *_, flip in seen} == {False, True}


def test_pictures_of_three_channels_are_trained_with_their_recipe():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 64))
    images = torch.from_numpy(rng.normal(size=(64, 3, 32, 32)).astype(np.float32)) + labels[:, None, None, None]
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(4, 2))  # fmt: skip
    train(network, Images(images, labels), 10, 0.1, 0, PICTURES)
    assert evaluate(network, Images(images, labels))["error"] < 0.1


def test_a_set_is_evaluated_in_batches_of_any_size_alike(data):
    network = small_net()
    whole = evaluate(network, data, batch_size=len(data.labels))
    for size in (1, 7, 100):
        found = evaluate(network, data, batch_size=size)
        assert found["error"] == whole["error"] and found["loss"] == pytest.approx(whole["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, got 'adam'"),
        ({"schedule": "step"}, "schedule"),
        ({"augment": "mixup"}, "augment"),
        ({"statistics": "none"}, "statistics"),
        ({"batch_size": 0}, "batch_size"),
        ({"warmup": 1.0}, "warmup"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_a_recipe_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"Recipe: {message}"):
        Recipe(**fields)


def test_metrics_reach_tensorboard_once_also_where_training_went_on(data, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from codesign.tensorboard import TensorBoard

    path = tmp_path / "state.safetensors"
    for _ in range(2):
        train(small_net(), data, 3, 0.01, 0, SMALL, checkpoint=path, metrics=TensorBoard(tmp_path / "events"))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert events.Scalars("loss")[2].value < events.Scalars("loss")[0].value


def test_without_tensorboard_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    from codesign.tensorboard import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


def test_the_clips_of_pact_have_a_penalty_of_their_own(data):
    clips = {}
    for decay in (0.0, 1.0, None):
        network = quantize(small_net(), 4, quantizer="pact")
        calibrate(network, data.images[:64])
        recipe = Recipe("sgd", "cosine", batch_size=32, momentum=0.0, weight_decay=1.0, clip_decay=decay)
        quantizer = network[0].input_quantizer
        before = quantizer.alpha.item()
        train(network, Images(data.images[:32], data.labels[:32]), 1, 0.01, 0, recipe)
        clips[decay] = quantizer.alpha.item() / before
    assert clips[1.0] == pytest.approx(clips[0.0] - 0.01, abs=1e-4)  # one step: the gradient of alpha^2 / 2 is alpha
    assert clips[None] == clips[1.0]
    with pytest.raises(ValueError, match="clip_decay must not be negative, got -1"):
        Recipe(clip_decay=-1.0)
