"""BatchNorm statistics of a trained network at few bits: kept, renewed on some images, or matched on them.

    python benchmarks/batchnorm_statistics.py --data cifar10.npz --weights resnet20_cifar10.safetensors

Accuracy on test images at uniform bits, and at bits from 3 to 8 drawn for each operand of each layer. The statistics
are those of the file (`keep`), of training images (`renew`, `recalibrate_batchnorm`), or those of the file
corrected for what the bits change on the same images (`match`, `codesign.quant.match_batchnorm`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from codesign.accuracy import evaluate
from codesign.data import Images, Normalization, load_data
from codesign.quant import calibrate, quantize, set_bits
from codesign.quant.norm_statistics import Renewal
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.run_directory import write_atomically
from codesign.space import Arch, BitwidthSpace
from codesign.torch_networks import load_module, load_weights
from hwmodels.from_torch import from_torch

RESULTS = Path(__file__).parent / "results"
UNIFORM, DRAWN, N_STEPS = (8, 6, 5, 4, 3), 4, 512
#: Images for the statistics.
SIZES = (128, 512)


def cases(space: BitwidthSpace) -> Iterator[tuple[str, Arch]]:
    """What is compared, by name."""
    for bits in UNIFORM:
        yield f"{bits} bits", space.uniform(bits)
    rng = np.random.default_rng(0)
    for i in range(DRAWN):
        yield f"3 to 8 at random, {i + 1}", tuple(rng.integers(1, 7, len(space.choices)).tolist())


def accuracies(network: nn.Module, space: BitwidthSpace, train: torch.Tensor, test: Images) -> list[Sequence[str]]:
    """Rows of the table: accuracy in percent, with the statistics kept, and for each size renewed and matched."""
    ways: list[tuple[torch.Tensor | None, Renewal]] = [(None, "match")]
    ways += [(train[:n], way) for n in SIZES for way in ("renew", "match")]
    scorers = [QuantizedAccuracy(network, space, statistics, test, way) for statistics, way in ways]
    found = {name: [100 * (1 - score(arch)["error"]) for score in scorers] for name, arch in cases(space)}
    drawn = np.mean([values for name, values in found.items() if "random" in name], axis=0)
    found["mean of those"] = drawn.tolist()
    return [(name, *(f"{value:.1f}" for value in values)) for name, values in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--weights", required=True, help="safetensors file")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--images", type=int, default=2000, help="test images (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = load_module(args.network)
    load_weights(network, args.weights, args.network)
    data = load_data(args.data, ".", 5000, 1, args.images, normalize=Normalization.parse("imagenet"))
    space = BitwidthSpace(from_torch(network, (1, 3, 32, 32)), tuple(range(2, 9)))
    quantized = quantize(network, 8, space.bits)
    calibrate(quantized, data.train.images[:N_STEPS])
    rows = accuracies(quantized, space, data.train.images, data.test)
    set_bits(quantized, None)
    exact = 100 * (1 - evaluate(quantized, data.test)["error"])
    header = ["bits", "kept", *(f"{way}, {n}" for n in SIZES for way in ("renewed", "matched"))]
    text = "\n".join([
        f"# BatchNorm statistics at few bits, {args.network}\n",
        "Command: `python benchmarks/batchnorm_statistics.py --data cifar10.npz --weights FILE`. Accuracy in percent "
        f"on {args.images:,} test images of CIFAR-10, {exact:.1f} in float; how the statistics came about, and the "
        "training images for them. Steps are fitted, weights and steps are not trained.\n",
        f"| {' | '.join(header)} |", "| --- " * len(header) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]) + "\n"  # fmt: skip
    write_atomically(RESULTS / f"batchnorm_statistics_{args.network}.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
