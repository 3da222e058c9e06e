"""``codesign train``: train the network of a trial to the end."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING, Any

from codesign import processes
from codesign.commands import arguments, output

if TYPE_CHECKING:
    from codesign.data import Data
    from codesign.run import Run
    from codesign.trained import FinalTraining

logger = logging.getLogger(__name__)

EXAMPLE = """
codesign train runs/a --trial best --epochs 40
codesign train runs/a --trial 17 --from supernet --epochs 10 --precision bfloat16
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "train", "train the network of a trial at its bits; one that was killed is gone on with", EXAMPLE
    )
    add_trial_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="where the weights go (default: RUN/trained/NUMBER)")
    parser.add_argument(
        "--epochs", type=arguments.natural, default=40, metavar="N",
        help="default: %(default)s; 0 quantizes trained weights and leaves them",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="start", choices=("scratch", "supernet", "weights"), metavar="WHAT",
        help="the weights to begin with: scratch (default), supernet, or weights, those of the file whose bits were "
        "searched (default there)",
    )  # fmt: skip
    parser.add_argument("--seed", type=arguments.natural, default=0, metavar="N", help="of weights and data order")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="its peak in float")
    parser.add_argument("--quantized-rate", type=float, metavar="X", help="its peak with quantizers")
    parser.add_argument("--batch-size", type=arguments.positive, metavar="N", help="images a step")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), help="default: sgd for pictures, adamw for digits")
    parser.add_argument("--weight-decay", type=float, metavar="X", help="of weights, not of norms and steps")
    parser.add_argument("--label-smoothing", type=float, metavar="X", help="share of the probability spread evenly")
    parser.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of the gradient")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of products; the lower ones are for GPUs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--loss-scale", type=float, metavar="X", help="a fixed power of two for float16 (default: found by itself)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--tensorboard", action="store_true", help="write metrics for TensorBoard too")
    parser.set_defaults(run=run)


def add_trial_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, the trial, and where the data lie now."""
    parser.add_argument("run_dir", metavar="RUN", help="the directory of a search")
    parser.add_argument(
        "--trial", default="best", metavar="WHICH", help="best, or a trial's number (default: %(default)s)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data lie, if not where the search found them")


def loaded_run(args: argparse.Namespace) -> Run:
    """The run that the arguments name."""
    import dataclasses

    from codesign.run import load_run

    run = load_run(args.run_dir)
    if args.data_dir is not None:
        run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, data_dir=args.data_dir))
    if args.trial == "best" and len(run.trials) < run.spec.trials:
        logger.warning(
            "Run %r: the search has come to %d of %d trials; best is the best of those.",
            str(run.path), len(run.trials), run.spec.trials,
        )  # fmt: skip
    return run


def run(args: argparse.Namespace) -> int:
    """Train, and print where the network is and how good it is on the search set."""
    processes.require_one("codesign train")
    if args.out:
        output.check_folder(args.out)
    from tqdm import tqdm

    from codesign.trained import train_trial, trained_folder

    found = loaded_run(args)
    trial = found.trial(args.trial)
    data = found.spec.data()
    if args.start is None:
        args.start = "weights" if found.spec.family == "bits" else "scratch"
    training = _training(args, data)
    writer = None
    if args.tensorboard:
        from codesign.tensorboard import TensorBoard

        folder = trained_folder(found, trial) if args.out is None else args.out
        writer = TensorBoard(f"{folder}/tensorboard")
    with tqdm(total=training.epochs, unit=" epochs", delay=1.0, disable=args.json, ncols=80) as bar:

        def report(metrics: Any) -> None:
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            bar.update()
            if writer:
                writer(metrics)

        try:
            trained = train_trial(found, args.trial, training, args.out, data, args.device, report)
        except FloatingPointError as error:
            output.print_error(error)
            return 1
    record = trained.record
    if args.json:
        print(json.dumps({"folder": str(trained.folder), **record}, indent=1))
        return 0
    scores = record["metrics"]
    before = ""
    if training.start == "weights" and training.epochs and "error" in trial.metrics:
        before = f" ({100 * (1 - trial.metrics['error']):.2f} % as the search scored it)"
        if trial.metrics["error"] < scores["search_error"]:
            logger.warning(
                "The training lost accuracy on the search set; try fewer epochs, a lower --quantized-rate, or "
                "--epochs 0 in another place (--out)."
            )
    print(
        f"Trial {trial.number}, trained for {training.epochs} epochs from "
        f"{_STARTS[training.start]}: accuracy on the search set "
        f"{100 * (1 - scores['search_error']):.2f} %{before}, loss {scores['search_loss']:.4f}\n"
        f"The test set was not read; codesign evaluate {args.run_dir} --trial {trial.number} reads it.\n"
        f"weights.safetensors, result.json: {trained.folder}"
    )
    return 0


_STARTS = {"scratch": "scratch", "supernet": "the supernet", "weights": "the trained weights"}


def _training(args: argparse.Namespace, data: Data) -> FinalTraining:
    """The recipe that fits the images, with what the arguments change."""
    import dataclasses

    from codesign.precision import Precision
    from codesign.trained import FinalTraining

    fields = ("epochs", "start", "seed", "learning_rate", "quantized_rate")
    given = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    training = FinalTraining.for_images(data.train, **given)
    names = ("batch_size", "optimizer", "weight_decay", "label_smoothing", "clip_norm")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.loss_scale is not None and args.precision != "float16":
        raise ValueError(f"Option --loss-scale: it is for --precision float16, got {args.precision}; leave it out.")
    precision = Precision(args.precision, args.loss_scale)
    recipe = dataclasses.replace(training.recipe, precision=precision, **changes)
    return dataclasses.replace(training, recipe=recipe)
