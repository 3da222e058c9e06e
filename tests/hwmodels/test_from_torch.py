"""What a torch module executes is what the workload holds."""

import logging
import warnings

import pytest

from hwmodels.graph import NetworkError
from hwmodels.workload import Layer

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from hwmodels.from_torch import from_torch  # noqa: E402
from hwmodels.torch_operators import IGNORED  # noqa: E402

#: One or more of every family of torchvision's classifiers and segmenters; the rest are slow only by their number.
QUICK = """
    alexnet vgg11 vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 squeezenet1_1 densenet121 inception_v3
    googlenet shufflenet_v2_x1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0 efficientnet_b0
    efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t fcn_resnet50
    deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
""".split()  # noqa: SIM905
SEGMENTERS = torchvision.models.list_models(torchvision.models.segmentation)
REST = sorted({*torchvision.models.list_models(torchvision.models), *SEGMENTERS} - {*QUICK})


def build(name: str) -> nn.Module:
    """A torchvision network without weights, on no device where its constructor allows it."""
    options = {"weights_backbone": None} if name in SEGMENTERS else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialisations to come
        return torchvision.models.get_model(name, weights=None, **options)


def counted_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Torch's own count, attention as plain products since it counts nothing on the fast path."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()


def assert_macs_are_half_the_flops(name: str) -> None:
    module, size = build(name), 299 if name == "inception_v3" else 224
    image = torch.empty(1, 3, size, size, device=next(module.parameters()).device)
    workload = from_torch(module, image.shape)
    assert 2 * workload.macs == counted_flops(module, image)
    unread = [tensor.producer for tensor in workload.tensors if not tensor.consumers]
    assert unread == [workload.layers[-1].name]  # every layer but the last is read: no edge is lost


@pytest.mark.parametrize("name", QUICK)
def test_twice_the_macs_are_the_flops_that_torch_counts(name):
    assert_macs_are_half_the_flops(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_twice_the_macs_are_the_flops_that_torch_counts_for_every_other_network(name):
    assert_macs_are_half_the_flops(name)


def module_of(function, **children) -> nn.Module:
    """A module with these children whose forward is ``function(self, *inputs)``."""
    module = type("Network", (nn.Module,), {"forward": function})()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def ops(workload) -> list[str]:
    return [layer.op for layer in workload.layers]


def names(workload) -> list[str]:
    return [layer.name for layer in workload.layers]


def edges(workload) -> dict:
    """Producer to the consumers of what it writes."""
    return {tensor.producer: tensor.consumers for tensor in workload.tensors}


# --- products ---------------------------------------------------------------------------------------------------------


def test_a_convolution_keeps_its_geometry():
    conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    (layer,) = from_torch(conv, (2, 4, 9, 11)).layers
    assert layer == Layer(
        "conv", 4, 6, (9, 11), (3, 5), (2, 1), (1, 2), (1, 2), groups=2, batch=2, reads_network_input=True
    )


def test_functional_calls_count_like_modules():
    weight = nn.Parameter(torch.empty(8, 3, 3, 3))
    net = module_of(lambda self, x: nn.functional.conv2d(x, self.kernel, padding=1), kernel=weight)
    (layer,) = from_torch(net, (1, 3, 8, 8)).layers
    assert (layer.name, layer.macs) == ("kernel", 8 * 3 * 3 * 3 * 8 * 8)


def test_a_shared_module_counts_each_time_it_runs():
    net = module_of(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(5, 5))
    workload = from_torch(net, (3, 5))
    assert names(workload) == ["fc", "fc@2"]
    assert workload.macs == 2 * 3 * 5 * 5


def test_a_linear_layer_over_tokens_has_one_row_for_each():
    (layer,) = from_torch(nn.Linear(16, 4), (2, 7, 16)).layers
    assert layer == Layer.linear("linear", 16, 4, batch=2 * 7)


@pytest.mark.parametrize("bias", [True, False])
def test_a_one_dimensional_convolution_is_a_map_of_height_one(bias):
    (layer,) = from_torch(nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=bias), (2, 4, 9)).layers
    assert (layer.in_size, layer.kernel_size, layer.out_size) == ((1, 9), (1, 3), (1, 5))


@pytest.mark.parametrize(
    "conv",
    [nn.ConvTranspose2d(4, 6, 2, stride=2), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)],
    ids=["windows apart", "windows overlapping"],
)
def test_a_transposed_convolution_has_torchs_macs_and_its_weights(conv):
    workload = from_torch(conv, (2, 4, 5, 5))
    assert 2 * workload.macs == counted_flops(conv, torch.empty(2, 4, 5, 5))
    assert workload.weight_bytes == conv.weight.numel()


def test_padding_before_a_convolution_is_the_convolutions():
    """Efficient networks of TensorFlow pad rows and columns on one side before a stride of 2."""
    net = module_of(lambda self, x: self.conv(nn.functional.pad(x, (0, 1, 2, 1))), conv=nn.Conv2d(3, 8, 3, stride=2))
    (layer,) = from_torch(net, (1, 3, 8, 8)).layers
    assert (layer.in_size, layer.pads, layer.out_size) == ((8, 8), ((2, 1), (0, 1)), (5, 4))


def test_padding_before_pooling_is_the_poolings():
    net = module_of(lambda self, x: nn.functional.max_pool2d(nn.functional.pad(self.conv(x), (0, 1, 0, 1)), 3, 2))
    net.conv = nn.Conv2d(3, 8, 1)
    layer = from_torch(net, (1, 3, 8, 8)).layers[1]
    assert (layer.in_size, layer.pads, layer.out_size) == ((8, 8), ((0, 1), (0, 1)), (4, 4))


def test_padding_with_something_else_than_zeros_is_part_of_the_map():
    net = module_of(lambda self, x: self.conv(nn.functional.pad(x, (1, 1, 1, 1), value=3.0)), conv=nn.Conv2d(3, 8, 3))
    (layer,) = from_torch(net, (1, 3, 8, 8)).layers
    assert (layer.in_size, layer.padding) == ((10, 10), (0, 0))


def test_attention_is_two_products_and_a_softmax():
    batch, tokens, width, heads = 2, 5, 16, 4
    net = module_of(
        lambda self, x: self.attention(x, x, x, need_weights=False)[0],
        attention=nn.MultiheadAttention(width, heads, batch_first=True),
    )
    workload = from_torch(net, (batch, tokens, width))
    depth, pairs, path = width // heads, batch * heads, "attention"
    assert names(workload) == [
        f"{path}.in_proj", f"{path}.matmul", f"{path}.softmax", f"{path}.matmul@2", f"{path}.out_proj"
    ]  # fmt: skip
    assert [layer.macs for layer in workload.mac_layers] == [
        batch * tokens * width * 3 * width,
        pairs * tokens * depth * tokens,
        pairs * tokens * tokens * depth,
        batch * tokens * width * width,
    ]
    assert workload.layers[1] == Layer.matmul("", tokens, depth, tokens, count=pairs)
    assert edges(workload)[f"{path}.in_proj"] == (
        (f"{path}.matmul", "input"), (f"{path}.matmul", "weight"), (f"{path}.matmul@2", "weight")
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_is_followed_inside(causal):
    net = module_of(lambda self, q, k: nn.functional.scaled_dot_product_attention(q, k, k, is_causal=causal))
    workload = from_torch(net, [(1, 2, 6, 8), (1, 2, 6, 8)])
    assert ops(workload) == ["matmul", "softmax", "matmul"]
    assert workload.macs == 2 * (2 * 6 * 8 * 6)


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: torch.matmul(a, b.transpose(-1, -2)),
        lambda a, b: torch.bmm(a.flatten(0, 1), b.flatten(0, 1).mT),
        lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b),
    ],
    ids=["matmul", "bmm", "einsum"],
)
def test_products_of_activations_are_one_group_a_pair(product):
    net = module_of(lambda self, a, b: product(a, b))
    (layer,) = from_torch(net, [(2, 3, 5, 4), (2, 3, 6, 4)]).layers
    assert layer == Layer.matmul("", 5, 4, 6, count=2 * 3)


def test_a_product_with_weights_is_linear_on_either_side():
    net = module_of(lambda self, x: torch.matmul(self.w, torch.matmul(x, self.v)), w=nn.Parameter(torch.empty(9, 7)))
    net.v = nn.Parameter(torch.empty(4, 6))
    workload = from_torch(net, (7, 4))
    assert [(layer.name, layer.op, layer.macs) for layer in workload.layers] == [
        ("v", "linear", 7 * 4 * 6),
        ("w", "linear", 9 * 7 * 6),
    ]


def test_a_recurrent_layer_runs_its_products_at_every_step():
    steps, batch, width, hidden = 5, 3, 8, 16
    workload = from_torch(nn.LSTM(width, hidden), (steps, batch, width))
    assert workload.macs == steps * batch * 4 * hidden * (width + hidden)


def test_tied_weights_are_named_after_the_module_that_uses_them():
    net = module_of(
        lambda self, x: self.head(self.table(x)), table=nn.Embedding(10, 4), head=nn.Linear(4, 10, bias=False)
    )
    net.head.weight = net.table.weight
    workload = from_torch(net, (1, 7), input_dtype=torch.int64)
    assert names(workload) == ["head"]
    assert workload.tensors[0].producer is None
    assert workload.tensors[0].shape == (1, 7, 4)  # the rows looked up


def test_parametrized_weights_keep_their_module():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    assert names(from_torch(net, (1, 3, 8, 8))) == ["0"]


# --- what makes no layer, and what does -------------------------------------------------------------------------------


def test_batch_norm_folds_and_activations_fuse():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Dropout())
    workload = from_torch(net, (1, 3, 8, 8))
    assert names(workload) == ["0", "3"]
    assert edges(workload) == {None: (("0", "input"),), "0": (("3", "input"),), "3": ()}


@pytest.mark.parametrize("gate", [lambda x: x * torch.sigmoid(x), lambda x: x * nn.functional.relu6(x + 3) / 6])
def test_a_function_of_one_activation_fuses_however_it_is_written(gate):
    net = module_of(lambda self, x: gate(self.conv(x)), conv=nn.Conv2d(3, 8, 1))
    assert names(from_torch(net, (1, 3, 4, 4))) == ["conv"]


def test_halves_of_one_activation_are_two_operands():
    """A gated unit multiplies elements that lie at different places."""
    by_hand = module_of(lambda self, x: self.fc(x)[:, :8] * torch.sigmoid(self.fc(x)[:, 8:]), fc=nn.Linear(4, 16))
    built_in = module_of(lambda self, x: nn.functional.glu(self.fc(x)), fc=nn.Linear(4, 16))
    assert ops(from_torch(by_hand, (2, 4))) == ["linear", "linear", "mul"]
    workload = from_torch(built_in, (2, 4))
    assert edges(workload)["fc"] == (("mul", "input"), ("mul", "weight"))


def test_a_residual_addition_reads_both_branches():
    net = module_of(
        lambda self, x: self.b(self.a(x)) + self.a(x), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 3, padding=1)
    )
    workload = from_torch(net, (1, 4, 6, 6))
    assert names(workload) == ["a", "b", "a@2", "add"]
    assert edges(workload) == {
        None: (("a", "input"), ("a@2", "input")),
        "a": (("b", "input"),),
        "b": (("add", "input"),),
        "a@2": (("add", "weight"),),
        "add": (),
    }


def test_an_addition_in_place_is_an_addition():
    def forward(self, x):
        y = self.a(x)
        y += self.b(x)
        return y.relu_()

    net = module_of(forward, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    assert names(from_torch(net, (1, 4, 6, 6))) == ["a", "b", "add"]


def test_squeeze_and_excitation_scales_with_one_element_a_channel():
    net = torchvision.ops.SqueezeExcitation(8, 2)
    workload = from_torch(nn.Sequential(nn.Conv2d(3, 8, 1), net), (2, 3, 6, 6))
    assert ops(workload) == ["conv", "pool", "conv", "conv", "mul"]
    scale = workload.layers[-1]
    assert (scale.input_count, scale.weight_count) == (2 * 8 * 6 * 6, 2 * 8)
    assert edges(workload)["0"] == (("1.avgpool", "input"), ("1.mul", "input"))


def test_what_reads_a_concatenation_reads_its_parts():
    net = module_of(
        lambda self, x: self.c(torch.cat([self.a(x), self.b(x)], dim=1)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 1), c=nn.Conv2d(9, 2, 1),
    )  # fmt: skip
    workload = from_torch(net, (1, 3, 6, 6))
    assert edges(workload)["a"] == edges(workload)["b"] == (("c", "input"),)
    assert workload.layers[-1].in_channels == 4 + 5


def test_writing_into_a_slice_hands_the_data_on():
    def forward(self, x):
        canvas = torch.zeros(1, 4, 6, 6)
        canvas[:, :3] = self.a(x)
        return self.b(canvas)

    workload = from_torch(module_of(forward, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(4, 2, 1)), (1, 3, 6, 6))
    assert edges(workload)["a"] == (("b", "input"),)


def test_only_convolutions_fed_by_the_network_input_are_marked():
    net = module_of(
        lambda self, x: self.b(torch.cat([self.a((x - 0.5) / 0.2), x], dim=1)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(7, 2, 1),
    )
    assert [layer.reads_network_input for layer in from_torch(net, (1, 3, 6, 6)).layers] == [True, False]


@pytest.mark.parametrize(
    ("pool", "geometry"),
    [
        (nn.MaxPool2d(3, 2, 1), ((3, 3), (2, 2), (1, 1))),
        (nn.MaxPool2d(2, ceil_mode=True), ((2, 2), (2, 2), ((0, 1), (0, 1)))),
        (nn.AvgPool2d(2, stride=1), ((2, 2), (1, 1), (0, 0))),
        (nn.AdaptiveAvgPool2d(1), ((7, 7), (1, 1), (0, 0))),
        (nn.AdaptiveAvgPool2d(3), ((3, 3), (2, 2), (0, 0))),  # 7 - (3 - 1) * (7 // 3)
        (nn.AdaptiveMaxPool2d((7, 1)), ((1, 7), (1, 1), (0, 0))),
    ],
    ids=str,
)
def test_pooling_keeps_or_finds_its_window(pool, geometry):
    workload = from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), pool), (2, 3, 7, 7))
    layer, shape = workload.layers[1], pool(torch.zeros(2, 4, 7, 7)).shape
    assert (layer.name, layer.op, (layer.kernel_size, layer.stride, layer.padding)) == ("1", "pool", geometry)
    assert (layer.batch, layer.out_channels, *layer.out_size) == shape


def test_pooling_to_the_size_that_is_there_makes_no_layer():
    assert names(from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(7)), (1, 3, 7, 7))) == ["0"]


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.LayerNorm([4, 7, 7]), "norm"),
        (nn.GroupNorm(2, 4), "norm"),
        (nn.InstanceNorm2d(4), "norm"),
        (nn.Softmax(dim=1), "softmax"),
        (nn.LogSoftmax(dim=1), "softmax"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "resize"),
        (nn.Upsample(size=3), "resize"),
    ],
    ids=str,
)
def test_operators_that_pass_over_an_activation_are_layers(layer, op):
    workload = from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (2, 3, 7, 7))
    assert workload.layers[1].op == op
    assert workload.layers[1].input_count == 2 * 4 * 7 * 7
    assert workload.layers[1].output_count == layer(torch.zeros(2, 4, 7, 7)).numel()


def test_every_ignored_operator_says_why():
    assert all(reason for reason in IGNORED.values())


# --- the module stays as it was ---------------------------------------------------------------------------------------


def test_the_module_and_the_random_state_are_left_as_they_were():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.dropout = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout()
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x):
            self.runs += 1
            self.cache = self.norm(x) + torch.rand_like(x)
            self.scale = self.fc.weight * 2
            return self.dropout(self.fc(self.cache)) @ self.scale

    net = Restless().train()
    net.fc.eval()
    before, random_state = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    attributes = set(vars(net))
    assert from_torch(net, (5, 4)).macs == 2 * 5 * 4 * 4
    assert [m.training for m in (net, net.norm, net.fc, net.dropout)] == [True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert set(vars(net)) == attributes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net(torch.ones(5, 4)).isfinite().all()  # nothing without data is left in it


def test_switches_of_torch_are_left_as_they_were():
    switches = (torch.backends.mha.get_fastpath_enabled, torch._C._get_mkldnn_enabled, torch.is_grad_enabled)
    before = [switch() for switch in switches]
    from_torch(nn.Linear(3, 3), (1, 3))
    with pytest.raises(NetworkError):
        from_torch(nn.Linear(3, 3), (1, 4))
    assert [switch() for switch in switches] == before
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_nothing_is_computed_on_data():
    """This input alone would take 40 GB."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 64, 7, stride=4), nn.ReLU(), nn.Conv2d(64, 64, 3))
    assert from_torch(net, (1, 3, 60000, 60000)).macs > 1e12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_of_any_floating_type_are_followed(dtype):
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(dtype)
    assert ops(from_torch(net, (2, 8))) == ["linear", "norm"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_module_on_cuda_gives_the_same_workload():
    net = torchvision.models.vit_b_32()
    assert from_torch(net.cuda(), (1, 3, 224, 224)) == from_torch(net.cpu(), (1, 3, 224, 224))


# --- bad input --------------------------------------------------------------------------------------------------------


def strange() -> nn.Module:
    inner = module_of(lambda self, x: torch.cumsum(torch.fft.fft(x).real, dim=-1))
    return module_of(lambda self, x: self.fc(self.inner(x).sort().values), inner=inner, fc=nn.Linear(4, 4))


def test_all_unknown_operators_are_named_at_once_with_their_modules():
    with pytest.raises(NetworkError) as caught:
        from_torch(strange(), (1, 4))
    message = str(caught.value)
    assert "3 operators without a cost" in message
    assert "aten::cumsum (in 'inner')" in message
    assert "aten::_fft_" in message
    assert "aten::sort" in message
    assert "ignore_unknown=True" in message


def test_unknown_operators_can_be_left_out_and_are_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="hwmodels"):
        workload = from_torch(strange(), (1, 4), ignore_unknown=True)
    assert names(workload) == ["fc"]
    assert edges(workload)[None] == (("fc", "input"),)
    assert "aten::cumsum" in caplog.text


def test_layers_run_at_the_bits_that_their_module_names():
    class Quantized(nn.Conv2d):
        weight_bits, input_bits = 2, 4

        def forward(self, x):
            return self._conv_forward((x / 0.1).round().clamp(-8, 7) * 0.1, self.weight.sign(), self.bias)

    net = nn.Sequential(Quantized(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), Quantized(4, 2, 1))
    net[3].input_bits, net[3].weight_bits = 32, None  # None: the module says nothing
    workload = from_torch(net, (1, 3, 6, 6))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    expected = from_torch(plain, (1, 3, 6, 6)).with_bits([2, 8, 8], [4, 8, 32])
    assert [layer for layer in workload.layers if layer.is_mac] == list(expected.layers)


def test_a_convolution_over_volumes_is_reported_and_not_left_out():
    with pytest.raises(NetworkError, match="convolution over 3 axes"):
        from_torch(nn.Sequential(nn.Conv3d(1, 2, 3)), (1, 1, 5, 5, 5))


def test_a_module_that_raises_is_named_with_the_cause():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(7, 7)))
    with pytest.raises(NetworkError, match=r"its module '1\.1' raised RuntimeError: .*16") as caught:
        from_torch(net, (1, 3, 4, 4))
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_shapes_that_depend_on_data_are_named_as_such():
    with pytest.raises(NetworkError, match=r"takes shapes or decisions from data \(aten.nonzero"):
        from_torch(module_of(lambda self, x: x[x > 0]), (1, 4))
    with pytest.raises(NetworkError, match="takes shapes or decisions from data"):
        from_torch(module_of(lambda self, x: x if x.sum() > 0 else -x), (1, 4))


def test_lazy_layers_must_know_their_sizes():
    with pytest.raises(NetworkError, match="run it once on an input"):
        from_torch(nn.LazyLinear(3), (1, 4))


@pytest.mark.parametrize("shape", [(), (1, 0), (1, -3), [(1, 3), ()], (1, 2.5), "1,3", 3])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(NetworkError, match="sizes of at least 1"):
        from_torch(nn.Linear(3, 3), shape)


def test_a_module_without_layers_is_refused():
    with pytest.raises(NetworkError, match="must execute at least one layer"):
        from_torch(nn.ReLU(), (1, 4))
