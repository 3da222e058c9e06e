"""Loss scaling: what is unscaled, clipped, skipped and counted."""

import math

import pytest
import torch
from torch import nn

from codesign.precision import MOST_SKIPPED, LossScaler, Precision

F16 = Precision("float16", first_scale=2.0**10, growth_interval=3)


class Line:
    """A parameter of two values under plain gradient descent; the loss is gradient . parameter."""

    def __init__(self, precision):
        self.weight = nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.scaler = precision.scaler()

    def step(self, gradient, clip_norm=None):
        self.optimizer.zero_grad()
        self.scaler.backward((torch.tensor(gradient) * self.weight).sum())
        return self.scaler.step(self.optimizer, clip_norm)


def test_a_step_with_an_inf_is_skipped_and_counted_and_the_scale_halves_and_grows_again():
    line = Line(F16)
    assert line.step([1.0, 2.0]) and line.weight.tolist() == [-1.0, -2.0]
    assert not line.step([1.0, math.inf])
    assert line.weight.tolist() == [-1.0, -2.0]
    assert (line.scaler.scale, line.scaler.skipped_steps) == (2.0**9, 1)
    assert not line.step([math.nan, 0.0]) and line.scaler.scale == 2.0**8
    for _ in range(2):
        line.step([1.0, 1.0])
    assert line.scaler.scale == 2.0**8
    line.step([1.0, 1.0])
    assert (line.scaler.scale, line.scaler.skipped_steps) == (2.0**9, 2)
    assert line.weight.tolist() == [-4.0, -5.0]


def test_gradients_that_the_scale_itself_makes_inf_are_found_at_a_lower_one():
    line = Line(Precision("float16", first_scale=2.0**127))
    steps = [line.step([8.0, 0.0]) for _ in range(6)]
    assert steps == [False, False, False, True, True, True]  # 2^3 2^124 is the first below the largest float32
    assert line.weight.tolist() == [-24.0, 0.0]


@pytest.mark.parametrize("precision", [F16, Precision("float16", loss_scale=4096.0), Precision()])
def test_clipping_sees_unscaled_gradients(precision):
    line = Line(precision)
    line.step([3.0, 4.0], clip_norm=10.0)
    assert line.weight.tolist() == [-3.0, -4.0]
    line.step([30.0, 40.0], clip_norm=5.0)
    assert line.weight.tolist() == pytest.approx([-6.0, -8.0], rel=1e-6)


def test_a_fixed_scale_stays_and_still_skips():
    line = Line(Precision("float16", loss_scale=8.0, growth_interval=1))
    for gradient in ([1.0, 1.0], [math.inf, 1.0], [1.0, 1.0]):
        line.step(gradient)
    assert (line.scaler.scale, line.scaler.skipped_steps) == (8.0, 1)
    assert line.weight.tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_scale_nothing_is_scaled_and_a_gradient_that_is_not_finite_is_an_error(dtype):
    line = Line(Precision(dtype))
    assert line.scaler.scale == 1
    line.step([1.0, 2.0])
    with pytest.raises(FloatingPointError, match="norm of the gradients must be finite, but is inf"):
        line.step([1.0, math.inf], clip_norm=1.0)
    assert line.weight.tolist() == [-1.0, -2.0]


def test_training_that_no_scale_helps_ends():
    line = Line(F16)
    with pytest.raises(FloatingPointError, match=f"{MOST_SKIPPED} steps in a row"):
        for _ in range(MOST_SKIPPED):
            line.step([math.nan, 0.0])
    assert line.scaler.skipped_steps == MOST_SKIPPED


def test_a_step_made_elsewhere_moves_the_scale_as_the_optimisers_own():
    line, scaler = Line(F16), Line(F16).scaler
    for norm in (1.0, math.inf, 1.0, 1.0):
        line.step([norm, 0.0])
        assert scaler.accepts(norm) == math.isfinite(norm)
    assert scaler.state() == line.scaler.state()


def test_the_state_is_plain_numbers_that_go_on_where_they_were():
    line, other = Line(F16), Line(F16)
    for gradient in ([1.0, 1.0], [math.inf, 1.0], [1.0, 1.0], [1.0, 1.0]):
        line.step(gradient)
    state = line.scaler.state()
    assert state == {"scale": 2.0**9, "finite_steps": 2, "skipped_steps": 1, "skipped_in_a_row": 0}
    other.scaler.load(state)
    for one in (line, other):
        one.step([1.0, 1.0])
    assert line.scaler.state() == other.scaler.state() and other.scaler.scale == 2.0**10


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_are_in_low_precision_and_weights_gradients_statistics_and_loss_in_float32(dtype, device):
    torch.manual_seed(0)
    conv, norm, last = (m.to(device) for m in (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)))
    precision = Precision(dtype)
    scaler = precision.scaler()
    optimizer = torch.optim.SGD([*conv.parameters(), *norm.parameters(), *last.parameters()], lr=0.1)
    x = torch.randn(4, 1, 6, 6, device=device)
    with precision.autocast(device):
        made = conv(x)
        scores = last(norm(made).relu().mean((2, 3)))
    assert made.dtype == scores.dtype == getattr(torch, dtype)
    loss = nn.functional.cross_entropy(scores.float(), torch.tensor([0, 1, 2, 0], device=device))
    scaler.backward(loss)
    assert loss.dtype == conv.weight.grad.dtype == norm.running_mean.dtype == torch.float32
    expected = 0.1 * made.double().mean((0, 2, 3))  # float32 sums of values that are already rounded
    assert norm.running_mean.double().cpu().numpy() == pytest.approx(
        expected.detach().cpu().numpy(), rel=1e-5, abs=1e-6
    )
    before = conv.weight.detach().clone()
    assert scaler.step(optimizer, clip_norm=1.0)
    assert conv.weight.dtype == torch.float32 and not torch.equal(before, conv.weight)


def test_float16_keeps_with_a_scale_the_gradients_that_it_loses_without():
    x = torch.full((1, 4), 1e-5)

    def gradient(precision):
        layer, scaler = nn.Linear(4, 1, bias=False), precision.scaler()
        nn.init.ones_(layer.weight)
        with precision.autocast("cpu"):
            scaler.backward(layer(x).float().sum() * 1e-4)
        scaler.step(torch.optim.SGD(layer.parameters(), lr=1.0))
        return (1 - layer.weight.detach()).double(), layer.weight.grad

    assert gradient(Precision("float16", loss_scale=1.0))[1].abs().max() == 0  # 1e-9 is below the smallest float16
    assert gradient(Precision("float16"))[1].numpy() == pytest.approx(1e-9, rel=0.01)
    assert gradient(Precision("bfloat16"))[1].numpy() == pytest.approx(1e-9, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [{"dtype": "int8"}, {"loss_scale": 3.0}, {"loss_scale": -2.0}, {"first_scale": math.inf}, {"growth_interval": 0}],
)
def test_a_precision_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match=f"Precision: {next(iter(fields))} must be"):
        Precision(**fields)


def test_only_float16_looks_for_a_scale():
    assert [LossScaler(Precision(dtype)).dynamic for dtype in ("float32", "bfloat16", "float16")] == [
        False,
        False,
        True,
    ]
