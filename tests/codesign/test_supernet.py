"""Shared weights: what slices and masks of them compute, how they are trained, and what candidates are worth."""

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import SPACE, TRAINING, archs, few, in_double, killed_after, onehot, trained
from torch.nn import functional

from codesign.accuracy import evaluate
from codesign.describe import digest
from codesign.nets.mobilenetv2 import Block, MobileNetV2Space, Stage
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.precision import MOST_SKIPPED
from codesign.quant import recalibrate_batchnorm
from codesign.run_directory import RunDirectoryError, unpack_state
from codesign.sampling import SAMPLING
from codesign.supernet import SupernetAccuracy, load_supernet, save_supernet, train_supernet
from codesign.weight_training import Stopped, SupernetTraining, WeightTrainer

#: Blocks with and without a stride, with more channels, fewer and as many, and no expansion of 1.
OTHER = MobileNetV2Space.preset(
    "tiny", stages=(Stage(16, 2, 2), Stage(8, 1, 1)), expansions=(2, 4), kernel_sizes=(3, 5), bits=(3, 8)
)
each_space = pytest.mark.parametrize("space", [SPACE, OTHER], ids=["tiny", "other"])


def images(n=24):
    return few().train.images[:n].double()


def weights_digest(network):
    return digest(*network.state_dict().values())


# --- what it computes ------------------------------------------------------------------------------------------------


@each_space
def test_a_candidate_computes_what_its_extracted_network_does_by_the_moments_of_the_batch(space):
    network = trained(space)
    double = in_double(network).train()
    for arch in archs(space, 6):
        alone = network.extract(arch).double().train()
        assert torch.allclose(double(images(), arch), alone(images()), rtol=1e-9, atol=1e-9)


@each_space
def test_a_candidate_computes_what_its_extracted_network_does_by_recalibrated_statistics(space):
    for arch in archs(space, 4, seed=1):
        double = in_double(trained(space))
        recalibrate_batchnorm(double.at(arch), images(48), batch_size=16)
        double = double.float().double().eval()  # statistics that an extracted network, which is in float, can hold
        alone = double.extract(arch).double().eval()
        assert torch.allclose(double(images(), arch), alone(images()), rtol=1e-9, atol=1e-9)
        recalibrate_batchnorm(alone, images(48), batch_size=16)
        for kept in (k for k in alone.modules() if isinstance(k, torch.nn.BatchNorm2d)):
            assert int(kept.num_batches_tracked) == 3
        assert torch.allclose(double(images(), arch), alone.float().double()(images()), rtol=1e-9, atol=1e-9)


def test_an_extracted_network_has_no_part_that_is_not_a_number():
    for arch in archs(SPACE, 3):
        for name, tensor in trained(n_steps=1).extract(arch).state_dict().items():
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), name


def test_an_extracted_network_is_a_copy():
    network = trained(n_steps=1)
    before = weights_digest(network)
    for parameter in network.extract(SPACE.largest).parameters():
        torch.nn.init.zeros_(parameter)
    assert weights_digest(network) == before


@each_space
def test_a_relaxed_network_at_weights_of_0_and_1_computes_what_the_candidate_does(space):
    double = in_double(trained(space)).train()
    for arch in archs(space, 8, seed=2):
        soft = double.soft(images(), onehot(space, arch))
        assert torch.allclose(soft, double(images(), arch), rtol=1e-9, atol=1e-9)


def test_without_quantizers_too():
    double = in_double(Supernet(SPACE)).train()
    assert not double.quantized
    for arch in archs(SPACE, 4):
        assert torch.allclose(double.soft(images(), onehot(SPACE, arch)), double(images(), arch), atol=1e-9)


def test_a_relaxed_network_leaves_no_trace_in_the_statistics():
    network = trained(n_steps=1).train()
    own = [kept for block in network.blocks for kept in block.modules() if isinstance(kept, torch.nn.BatchNorm2d)]
    before = [digest(*kept.state_dict().values()) for kept in own]
    network.soft(few().train.images[:8], onehot(SPACE, SPACE.largest, torch.float32))
    assert [digest(*kept.state_dict().values()) for kept in own] == before


def test_a_gate_before_batchnorm_would_do_nothing_and_ours_does():
    """Normalisation undoes a factor; so the mask of channels is where no normalisation follows for them alone."""
    x, gate = torch.randn(64, 3, 4, 4, dtype=torch.float64), torch.tensor([1.0, 0.5, 0.1])
    normalised, gated = (
        functional.batch_norm(v, None, None, training=True, eps=1e-12) for v in (x, x * gate[:, None, None])
    )
    assert torch.allclose(normalised, gated)

    double = in_double(trained()).train()
    relaxed = onehot(SPACE, SPACE.largest)
    found, slopes = [], []
    for share in (0.9, 0.5, 0.1):  # of expansion 6, the rest of 3
        weights = torch.tensor([0.0, 1 - share, share], dtype=torch.float64, requires_grad=True)
        relaxed[1] = [weights, *relaxed[1][1:]]
        scores = double.soft(images(), relaxed)
        found.append(scores.detach())
        slopes += torch.autograd.grad(functional.cross_entropy(scores, few().train.labels[:24]), weights)
    for a, b in itertools.combinations(found, 2):
        assert float((a - b).abs().max()) > 0.01 * float(a.std())
    assert all(float((slope[1] - slope[2]).abs()) > 1e-4 for slope in slopes)


@each_space
def test_the_loss_has_a_gradient_by_the_weight_of_every_value(space):
    double = in_double(trained(space)).train()
    relaxed = [[torch.full((len(v),), 1 / len(v), dtype=torch.float64) for v in c.fields] for c in space.choices]
    flat = [weights.requires_grad_() for row in relaxed for weights in row]
    loss = functional.cross_entropy(double.soft(images(), relaxed), few().train.labels[:24])
    for name, slope in zip(space.field_names, torch.autograd.grad(loss, flat), strict=True):
        varied = slope - slope.mean()  # along the simplex
        assert bool((slope[1 if name.endswith("skip") else 0 :] != 0).all()) and float(varied.abs().max()) > 1e-6, name


def test_the_skip_is_gated_by_its_weight_alone():
    block, x = in_double(trained()).train().blocks[0], torch.randn(4, 8, 8, 8, dtype=torch.float64)
    with torch.no_grad():  # scale and shift go with the skip too
        block.project_norm.scale.fill_(1.0)
        block.project_norm.shift.zero_()
    rows = onehot(SPACE, SPACE.largest)[0]

    def soft(share):
        return block.soft(x, [*rows[:2], torch.tensor([1 - share, share], dtype=torch.float64), *rows[3:]])

    assert torch.allclose(soft(0.3) - soft(0.0), 0.3 * block.inputs(x, 8), atol=1e-9)


# --- BatchNorm by width ----------------------------------------------------------------------------------------------


def test_each_width_has_statistics_of_its_own():
    network = trained(n_steps=1).train()
    norm = network.blocks[1].depthwise_norm
    assert [kept.num_features for kept in norm.statistics] == [8 * expansion for expansion in SPACE.expansions]
    before = [kept.running_mean.clone() for kept in norm.statistics]
    network(few().train.images[:16], SPACE.uniform(Block(3, 3, 1, 8, 8)))
    changed = [not torch.equal(kept.running_mean, mean) for kept, mean in zip(norm.statistics, before, strict=True)]
    assert changed == [False, True, False]


def test_statistics_move_by_the_momentum_towards_the_moments_of_the_batch():
    norm = Supernet(SPACE).blocks[0].depthwise_norm.double().train()
    x = torch.randn(16, 24, 4, 4, dtype=torch.float64) * 3 + 1
    norm(x, 1)
    kept, momentum = norm.statistics[1], norm.statistics[1].momentum
    assert torch.allclose(kept.running_mean, momentum * x.mean(dim=(0, 2, 3)))
    assert torch.allclose(kept.running_var, 1 - momentum + momentum * x.transpose(0, 1).flatten(1).var(dim=1))


# --- sampling --------------------------------------------------------------------------------------------------------


def fields(space, drawn):
    return np.array([space.split(arch) for arch in drawn])


def test_uniform_sampling_draws_one_candidate_of_which_all_are_equally_likely():
    rng, n = np.random.default_rng(0), 3000
    drawn = [SAMPLING["uniform"](SPACE, rng) for _ in range(n)]
    assert all(len(archs) == 1 for archs in drawn)
    rows = fields(SPACE, [arch for (arch,) in drawn])
    for column, count in zip(rows.T, SPACE.field_counts, strict=True):
        expected = n / count
        assert (abs(np.bincount(column, minlength=count) - expected) < 5 * expected**0.5).all()


def test_coherent_sampling_draws_each_value_as_often_and_makes_blocks_resemble_each_other():
    rng, n = np.random.default_rng(0), 2000
    space = MobileNetV2Space.preset("tiny", stages=(Stage(8, 1, 2), Stage(16, 2, 1)))
    rows = fields(space, [SAMPLING["coherent"](space, rng)[0] for _ in range(n)])
    per_block = len(space.field_counts) // len(space.choices)
    for i, count in enumerate(space.field_counts):
        spread = 5 * (n / count) ** 0.5 * 1.5  # draws of one field are independent of each other
        assert (abs(np.bincount(rows[:, i], minlength=count) - n / count) < spread).all()
        for other in range(i + per_block, rows.shape[1], per_block):
            alike = (rows[:, i] == rows[:, other]).mean()  # both take the common value, or agree by chance
            assert alike == pytest.approx(1 / 4 + 3 / 4 / count, abs=5 * 0.5 / n**0.5)
    half = np.where([name.endswith("_bits") for name in space.field_names], 0.0, 1.0)
    rows = fields(space, [SAMPLING["coherent"](space, rng, half)[0] for _ in range(50)])
    bits = half == 0
    assert (rows[:, bits] == np.array(space.field_counts)[bits] - 1).all() and len(
        np.unique(rows[:, ~bits], axis=0)
    ) > 25


def test_the_sandwich_rule_draws_the_largest_the_smallest_and_two_more():
    drawn = [SAMPLING["sandwich"](SPACE, np.random.default_rng(seed)) for seed in range(5)]
    assert all(archs[:2] == [SPACE.largest, SPACE.smallest] and len(archs) == 4 for archs in drawn)
    assert len({arch for archs in drawn for arch in archs[2:]}) > 5


def test_fair_sampling_draws_each_value_of_a_field_equally_often():
    for seed in range(5):
        rows = fields(SPACE, SAMPLING["fair"](SPACE, np.random.default_rng(seed)))
        assert len(rows) == max(SPACE.field_counts)
        for column, count in zip(rows.T, SPACE.field_counts, strict=True):
            often = np.bincount(column, minlength=count)
            assert often.max() - often.min() <= (len(rows) % count > 0)


def test_shapes_are_released_before_bitwidths_and_the_largest_network_comes_first():
    training = SupernetTraining(float_epochs=2, epochs=6, release=0.5, largest=0.0)
    bits = np.array([name.endswith("_bits") for name in SPACE.field_names])
    freedom = {
        progress: training.freedom(SPACE, progress) for progress in (0.0, 0.0625, 0.125, 0.25, 0.4375, 0.625, 1.0)
    }
    assert not freedom[0.0].any()
    assert (freedom[0.0625][~bits] == 0.5).all() and (freedom[0.125][~bits] == 1).all()
    assert not freedom[0.25][bits].any() and (freedom[0.4375][bits] == 0.5).all()
    assert (freedom[0.625] == 1).all() and (freedom[1.0] == 1).all()
    for rule in SAMPLING.values():
        first = rule(SPACE, np.random.default_rng(0), freedom[0.0])
        assert set(first) <= {SPACE.largest, SPACE.smallest}
    for sampling, most in (("coherent", 0.7), ("fair", 1.0)):
        training = SupernetTraining(float_epochs=2, epochs=6, release=0.5, sampling=sampling, largest=0.3)
        assert training.freedom(SPACE, 1.0) == pytest.approx(np.full(len(SPACE.field_names), most))
    with pytest.raises(ValueError, match="largest must be at least 0 and below 1, got 1"):
        SupernetTraining(largest=1)


# --- what candidates are worth ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return trained()


def accuracy(network):
    data = few()
    return SupernetAccuracy(network, data.train.images[:64], data.search)


def test_what_a_candidate_is_worth_depends_neither_on_the_order_nor_on_earlier_statistics(network):
    drawn = archs(SPACE, 4, seed=3)
    scores = [accuracy(network)(arch) for arch in drawn]
    backwards = accuracy(network)
    assert [backwards(arch) for arch in reversed(drawn)] == scores[::-1]
    spoilt = in_double(network).float()
    for name, buffer in spoilt.named_buffers():
        if "running" in name:
            buffer.fill_(7.0)
    assert [accuracy(spoilt)(arch) for arch in drawn] == scores
    assert len({score["loss"] for score in scores}) > 1


def test_threads_and_pickled_copies_find_the_same(network):
    drawn = archs(SPACE, 6, seed=4)
    serial = accuracy(network)
    expected = [serial(arch) for arch in drawn]
    shared = accuracy(network)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shared, drawn * 2)) == expected * 2
    assert [pickle.loads(pickle.dumps(serial))(arch) for arch in drawn[:2]] == expected[:2]


def test_scoring_leaves_the_shared_weights_and_their_statistics_alone(network):
    before = weights_digest(network)
    accuracy(network)(SPACE.largest)
    assert weights_digest(network) == before


def test_a_candidate_is_worth_what_its_extracted_network_is_after_recalibration(network):
    data = few()
    for arch in archs(SPACE, 2, seed=5):
        alone = network.extract(arch)
        recalibrate_batchnorm(alone, data.train.images[:64])
        expected = evaluate(alone, data.search)
        found = accuracy(network)(arch)
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert abs(found["error"] - expected["error"]) <= 2 / len(data.search.labels)


def test_a_configuration_names_the_weights_that_scores_come_from(network):
    assert accuracy(network).describe() == accuracy(trained()).describe()
    assert accuracy(network).describe() != accuracy(trained(seed=1)).describe()


# --- training --------------------------------------------------------------------------------------------------------


def run(out, training=TRAINING, resume=True, progress=None):
    """The digest of the weights of a training from its beginning, or from where it was."""
    network = Supernet(SPACE)
    train_supernet(network, few(), training, seed=1, out=out, resume=resume, progress=progress)
    return weights_digest(network)


@pytest.fixture(scope="module")
def uninterrupted():
    return run(None)


def test_training_lowers_the_loss_and_ends_with_quantizers():
    network, losses = Supernet(SPACE), []
    training = replace(TRAINING, float_epochs=2, epochs=6, learning_rate=0.2)
    train_supernet(network, few(512), training, progress=lambda _, loss: losses.append(loss))
    assert network.quantized and len(losses) == 8 * 16
    assert np.mean(losses[-16:]) < 0.8 * np.mean(losses[:4])
    error = SupernetAccuracy(network, few(512).train.images[:256], few().search)(SPACE.largest)["error"]
    assert error < 0.7  # chance is 0.9


@pytest.mark.parametrize("sampling", list(SAMPLING))
def test_a_step_moves_along_the_mean_gradient_of_the_candidates(sampling):
    data, training = few().train, SupernetTraining(batch_size=16, sampling=sampling, clip_norm=1e9, weight_decay=0.0)
    network, twin = (trained(n_steps=2).double() for _ in range(2))
    trainer = WeightTrainer(network, type(data)(data.images.double(), data.labels), training, 10, seed=3)
    drawn = SAMPLING[sampling](SPACE, trainer.rng(3))
    batch = trainer.batch()
    mean_loss = trainer.step(drawn)
    loss = sum(functional.cross_entropy(twin.train()(batch.images, arch), batch.labels) for arch in drawn) / len(drawn)
    assert mean_loss == pytest.approx(loss.item())
    loss.backward()
    rate = trainer.optimizer.param_groups[0]["lr"] * (1 + training.momentum)  # Nesterov's first step
    for (name, moved), was in zip(network.named_parameters(), twin.parameters(), strict=True):
        slope = torch.zeros_like(was) if was.grad is None else was.grad
        share = training.step_rate if name.endswith(".step") else 1.0
        assert torch.allclose(moved, was - share * rate * slope, rtol=1e-9, atol=1e-12), name


def test_a_training_killed_at_random_ends_in_the_weights_of_one_that_was_not(tmp_path, uninterrupted):
    rng, n_steps = np.random.default_rng(0), 16
    assert run(tmp_path / "whole") == uninterrupted
    for _ in range(4):
        killed_after(partial(_life, tmp_path / "killed"), int(rng.integers(2, 6)), float(rng.random() * 0.03))
    steps = []
    assert run(tmp_path / "killed", progress=lambda step, _: steps.append(step)) == uninterrupted
    assert 3 <= steps[0] < steps[-1] == n_steps  # it went on from a checkpoint
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


def _life(out, progress):
    run(out, progress=progress)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:1000], lambda data: data[:-9] + b"x" + data[-8:]]
)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(tmp_path, uninterrupted, damage):
    assert killed_after(partial(_life, tmp_path), 11) < 16
    path = tmp_path / "state.safetensors"
    newest = unpack_state(path.read_bytes())["step_number"]
    path.write_bytes(damage(path.read_bytes()))
    steps = []
    assert run(tmp_path, progress=lambda step, _: steps.append(step)) == uninterrupted
    assert steps[0] == newest - TRAINING.checkpoint_steps > 0


def test_a_finished_training_is_read_back_and_another_one_is_refused(tmp_path, uninterrupted):
    run(tmp_path)
    steps = []
    assert run(tmp_path, progress=lambda step, _: steps.append(step)) == uninterrupted
    assert steps == [16]
    with pytest.raises(RunDirectoryError, match=r"learning_rate: 0\.1 there, 0\.05 here"):
        run(tmp_path, replace(TRAINING, learning_rate=0.05))
    with pytest.raises(RunDirectoryError, match="already holds"):
        run(tmp_path, resume=False)


def test_weights_that_were_damaged_on_the_disk_are_noticed_and_made_again_from_the_checkpoint(
    tmp_path, uninterrupted, caplog
):
    network = Supernet(SPACE, 0)
    train_supernet(network, few(), TRAINING, 0, tmp_path)
    path = tmp_path / "weights.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_supernet(Supernet(SPACE, 0), path)
        again = Supernet(SPACE, 0)
        train_supernet(again, few(), TRAINING, 0, tmp_path, resume=True)
        assert weights_digest(again) == weights_digest(network) and path.read_bytes() == whole
        assert "goes on from its last checkpoint" in caplog.text


def test_weights_of_another_space_and_damaged_ones_are_refused(tmp_path, network):
    path = tmp_path / "weights.safetensors"
    save_supernet(network, path)
    again = Supernet(SPACE, seed=5)
    load_supernet(again, path)
    assert weights_digest(again) == weights_digest(network) and again.quantized
    with pytest.raises(ValueError, match="must be those of this space"):
        load_supernet(Supernet(OTHER), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="must be a safetensors file, but it is damaged"):
        load_supernet(again, path)


def test_a_training_that_diverges_stops_and_keeps_the_last_checkpoint(tmp_path):
    training = replace(TRAINING, learning_rate=1e30, warmup=0.9, clip_norm=1e30, checkpoint_steps=1)
    with pytest.raises(Stopped, match=r"finite, but .* was kept before stays; begin another run with a lower"):
        run(tmp_path, training)
    for path in tmp_path.glob("state*.safetensors"):
        kept = unpack_state(path.read_bytes())
        names = [name for name in kept if name.startswith("weight.") and not name.endswith(".step")]
        assert all(np.isfinite(kept[name]).all() for name in names if "running" not in name)


def test_a_loss_that_is_not_a_number_stops_and_names_the_options(network):
    trainer = WeightTrainer(trained(n_steps=1), few().train, SupernetTraining(batch_size=16), 10, seed=0)
    trainer.network.classifier.bias.data.fill_(float("nan"))
    arch = SPACE.encode({"blocks.0": Block(3, 5, 1, 4, 6), "blocks.1": Block(1, 7, 0, 8, 2)})
    options = r"blocks\.0=\(3, 5, 1, 4, 6\), blocks\.1=\(1, 7, 0, 8, 2\)"
    with pytest.raises(Stopped, match=f"the loss must be finite, but is nan at step 0 for {options}"):
        trainer.step([arch])


def test_a_gradient_that_is_not_a_number_never_reaches_the_weights_and_many_in_a_row_stop():
    network = trained(n_steps=1)
    trainer = WeightTrainer(network, few().train, SupernetTraining(batch_size=16), 100, seed=0)
    hook = network.stem.weight.register_hook(lambda slope: slope * float("nan"))
    before = digest(*(p.detach() for p in network.parameters()))
    trainer.step([SPACE.smallest])
    assert (trainer.scaler.skipped_steps, trainer.step_number) == (1, 1)
    with pytest.raises(Stopped, match=f"norm of the gradients must be finite, but is nan for {MOST_SKIPPED} steps"):
        for _ in range(MOST_SKIPPED - 1):
            trainer.step([SPACE.smallest])
    assert digest(*(p.detach() for p in network.parameters())) == before
    hook.remove()
    trainer.scaler.skipped_in_a_row = 0
    trainer.step([SPACE.smallest])
    assert digest(*(p.detach() for p in network.parameters())) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "best"}, "sampling must be one of uniform, coherent, sandwich, fair, got 'best'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SupernetTraining(**fields)
