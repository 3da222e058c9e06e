"""How far the two estimates of the policy's gradient are from the exact one, which enumeration gives.

Two blocks of 32 options have 1,024 networks. With shared weights that were trained on the digits, the loss of each is
computed, so the gradient of the expected loss by the logits is known exactly. Against it stand the gradient through
Gumbel-softmax at several temperatures, which is biased, and REINFORCE with and without its baseline, which is not.

    OMP_NUM_THREADS=1 python benchmarks/gumbel_bias.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from codesign.data import digits
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.plots.axes import COLORS, tidy
from codesign.strategies.mpnas_training import by_block, reinforce, relax
from codesign.strategies.policy import Floats, draw, even_logits, policy_gradient, probabilities
from codesign.supernet import train_supernet
from codesign.weight_training import SupernetTraining

SPACE = MobileNetV2Space.preset("tiny", expansions=(1, 3), kernel_sizes=(3, 5), bits=(2, 8))
TRAINING = SupernetTraining(float_epochs=4, epochs=12, batch_size=64)
TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SAMPLES = (2, 4, 16, 64)
N_NOISES, N_DRAWS, N_IMAGES, SEED = 1500, 4000, 128, 0


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--noises", type=int, default=N_NOISES, help="draws of the Gumbel noise at each temperature")
    args = parser.parse_args()
    data = digits(SEED)
    network = Supernet(SPACE, SEED)
    train_supernet(network, data, TRAINING, SEED)
    images, labels = (part[:N_IMAGES] for part in data.search)
    rows = np.array(list(itertools.product(*(range(count) for count in SPACE.field_counts))))
    losses = enumerated(network, images, labels, rows)
    rng = np.random.default_rng(SEED)
    even = even_logits(SPACE)
    policies = {"even policy": even, "sharper policy": even + rng.normal(scale=1.5, size=even.shape)}
    results = {
        "networks": len(rows), "loss": {"least": losses.min(), "mean": losses.mean(), "most": losses.max()},
        "noises": args.noises, "images": N_IMAGES, "seed": SEED,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "torch")},
        "policies": {
            name: {
                "gumbel": [through_noise(network, images, labels, rows, losses, logits, t, args.noises)
                           for t in TEMPERATURES],
                "reinforce": [by_samples(rows, losses, logits, k) for k in SAMPLES],
            }
            for name, logits in policies.items()
        },
    }  # fmt: skip
    (args.out / "gumbel_bias.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = report(results)
    (args.out / "gumbel_bias.md").write_text(text, encoding="utf-8")
    print(text)
    plot(results, args.out / "gumbel_bias.png")


@torch.no_grad()
def enumerated(network: Supernet, images: Tensor, labels: Tensor, rows: NDArray[np.int64]) -> Floats:
    """The loss of every network, by the moments of the batch, as a step of the policy sees it."""
    network.train()
    losses = [functional.cross_entropy(network(images, SPACE.join(row)), labels).item() for row in rows]
    return np.array(losses)


def exact_gradient(logits: Floats, rows: NDArray[np.int64], losses: Floats) -> Floats:
    r"""Of the expected loss, :math:`\sum_a \pi(a) L(a) \nabla \log \pi(a)`."""
    p = probabilities(logits)
    shares = p[np.arange(rows.shape[1]), rows].prod(axis=1)
    return policy_gradient(logits, rows, shares * losses * len(rows))


def through_noise(
    network: Supernet, images: Tensor, labels: Tensor, rows: NDArray[np.int64], losses: Floats, logits: Floats,
    temperature: float, n: int,
) -> dict[str, float]:  # fmt: skip
    """Bias and spread of the gradient through Gumbel-softmax, in norms of the exact gradient."""
    network.train()
    rng, there = np.random.default_rng(SEED), np.isfinite(logits)
    gradients = []
    for _ in range(n):
        noise = torch.from_numpy(rng.gumbel(size=logits.shape))
        leaf = torch.from_numpy(logits).requires_grad_()
        masks = relax(leaf, noise, temperature)
        loss = functional.cross_entropy(network.soft(images, by_block(SPACE, masks.float())), labels)
        gradients.append(torch.autograd.grad(loss, leaf)[0].numpy()[there])
    return {"temperature": temperature} | moments(np.array(gradients), exact_gradient(logits, rows, losses)[there])


def by_samples(rows: NDArray[np.int64], losses: Floats, logits: Floats, k: int) -> dict[str, Any]:
    """The same of REINFORCE with k networks, with the leave-one-out baseline and without."""
    rng, there = np.random.default_rng(SEED), np.isfinite(logits)
    place = {tuple(row): i for i, row in enumerate(rows.tolist())}
    estimates: dict[str, list[Floats]] = {"baseline": [], "plain": []}
    for _ in range(N_DRAWS):
        drawn = draw(logits, k, rng)
        values = losses[[place[tuple(row)] for row in drawn.tolist()]]
        estimates["baseline"].append(reinforce(logits, drawn, values)[there])
        estimates["plain"].append(policy_gradient(logits, drawn, values)[there])
    exact = exact_gradient(logits, rows, losses)[there]
    return {"samples": k} | {name: moments(np.array(found), exact) for name, found in estimates.items()}


def moments(gradients: Floats, exact: Floats) -> dict[str, float]:
    """Bias (the noise of the mean taken off), its error, cosine of mean and exact gradient, and spread of one."""
    n, norm = len(gradients), float(np.linalg.norm(exact))
    mean, variance = gradients.mean(axis=0), float(gradients.var(axis=0, ddof=1).sum())
    squared = float(((mean - exact) ** 2).sum()) - variance / n
    return {
        "bias": max(squared, 0.0) ** 0.5 / norm,
        "noise_of_mean": (variance / n) ** 0.5 / norm,
        "cosine": float(mean @ exact / np.linalg.norm(mean) / norm),
        "spread": variance**0.5 / norm,
        "rms_error": (max(squared, 0.0) + variance) ** 0.5 / norm,
    }


def report(results: dict[str, Any]) -> str:
    """The figures as a page."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    loss = results["loss"]
    lines = [
        "# Estimates of the policy's gradient against enumeration\n",
        f"`python benchmarks/gumbel_bias.py --noises {results['noises']}`, seed {results['seed']}; {versions}.\n",
        f"{results['networks']} networks of two blocks on {results['images']} digits of the search set, with shared",
        f"weights trained on the training set. Their losses are from {loss['least']:.3f} to {loss['most']:.3f} nats,",
        f"{loss['mean']:.3f} in the mean. All figures but the cosine are in norms of the exact gradient. *Bias*:",
        "of the mean of many estimates, the noise of that mean, which stands beside it, taken off. *Spread*: of one.",
        "*Error*: root mean square of one, bias and spread together.\n",
        "An estimate by Gumbel-softmax costs one relaxed step forward and backward; one by REINFORCE as many networks",
        "forward as it has samples.\n",
    ]
    for name, policy in results["policies"].items():
        lines += [
            f"## {name.capitalize()}\n",
            "| Gumbel-softmax at | bias | noise of the mean | cosine | spread | error |",
        ]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
        columns = ("bias", "noise_of_mean", "cosine", "spread", "rms_error")
        for row in policy["gumbel"]:
            lines.append(f"| {row['temperature']:g} | {' | '.join(f'{row[column]:.3f}' for column in columns)} |")
        lines.append("\n| REINFORCE, networks | baseline | bias | noise of the mean | cosine | spread | error |")
        lines.append("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for row in policy["reinforce"]:
            for key, text in (("baseline", "leave-one-out"), ("plain", "none")):
                figures = " | ".join(f"{row[key][column]:.3f}" for column in columns)
                lines.append(f"| {row['samples']} | {text} | {figures} |")
        ratios = [(row["plain"]["spread"] / row["baseline"]["spread"]) ** 2 for row in policy["reinforce"]]
        lines.append(f"\nWithout the baseline the variance is {min(ratios):.0f} to {max(ratios):.0f} times as large.\n")
    return "\n".join(lines) + "\n![bias and spread over the temperature](gumbel_bias.png)\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Bias and spread over the temperature, a row for each policy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(len(results["policies"]), 3, figsize=(12, 7), sharex=True, layout="constrained")
    for row, (name, policy) in zip(grid, results["policies"].items(), strict=True):
        found = {key: np.array([one[key] for one in policy["gumbel"]]) for key in policy["gumbel"][0]}
        style = {"color": COLORS[0], "marker": "o", "label": "Gumbel-softmax, one relaxed step"}
        row[0].errorbar(found["temperature"], found["bias"], found["noise_of_mean"], capsize=3, **style)
        row[0].axhline(0, color=COLORS[1])
        row[0].set(ylabel=f"{name}\nbias / norm of the exact gradient", ylim=(-0.05, 1.05))
        row[1].plot(found["temperature"], found["cosine"], **style)
        row[1].axhline(1, color=COLORS[1])
        row[1].set(ylabel="cosine of mean and exact gradient", ylim=(0, 1.05))
        row[2].plot(found["temperature"], found["spread"], **style)
        for line, one in zip((":", "-.", "--", "-"), policy["reinforce"], strict=True):
            for key, color, text in (("baseline", COLORS[1], "with its baseline"), ("plain", COLORS[3], "without")):
                label = f"REINFORCE, {one['samples']} networks, {text}"
                row[2].axhline(one[key]["spread"], color=color, linestyle=line, label=label)
        row[2].set(ylabel="spread of one estimate / norm", yscale="log")
        for ax in row:
            tidy(ax)
            ax.set_xscale("log")
    for ax, title in zip(grid[0], ("bias: REINFORCE has none", "direction", "spread"), strict=True):
        ax.set_title(title)
    for ax in grid[-1]:
        ax.set_xlabel("temperature")
        ax.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
        ax.minorticks_off()
    handles, labels = grid[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
