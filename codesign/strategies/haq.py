"""HAQ: an agent that walks through the layers of a network and sets the bits of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch, BitwidthSpace
from codesign.strategies.base import AbstractSampler, keep_rng, use_rng
from codesign.strategies.ddpg import DDPG, Transitions, on_one_thread, policy
from codesign.strategies.enforcement import move_evenly, sweep_down
from codesign.trial import Trial

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

#: What is observed at a step, in this order.
OBSERVED = (
    "depthwise", "in_channels", "out_channels", "stride", "kernel_size", "weight_count", "in_size", "layer",
    "previous_bits", "weight_step",
)  # fmt: skip
PREVIOUS = OBSERVED.index("previous_bits")
#: Episodes of the paper's searches, over which its noise decays.
PAPER_EPISODES = 600


@dataclass(frozen=True)
class HAQ(AbstractSampler):
    r"""Hardware-aware quantization: bits set layer by layer by an agent that learns by DDPG.

    Parameters
    ----------
    warmup : int
        Episodes at first that act at random, uniformly, and only fill the memory.
    noise : float
        Standard deviation of actions around the actor's at the first episode after those.
    noise_decay : float
        Factor on it at each episode; where all `PAPER_EPISODES` take place a twentieth is left at the end, with the
        paper's 0.99 a three-hundredth.
    replay : int
        Transitions remembered, for each layer searched.
    batch : int
        Transitions that an update learns from.
    updates : int
        Updates for each transition of an episode, after it.
    reward_scale : float
        Reward for a unit of the objective; 10 for an error is the paper's 0.1 for a percent of accuracy.
    baseline_rate : float
        Share of the way that the baseline goes towards the mean reward of each batch.
    hidden : int
        Units of each of the two hidden layers of actor and critic.
    actor_rate, critic_rate, soft_update : float
        See `codesign.strategies.ddpg.DDPG`.
    discount : float
        Worth of a later step's reward; with 0 what an action is worth is the reward of its episode.
    enforcement : {"even", "sweep"}
        How bits that are over a limit are brought within: all actions alike
        (`codesign.strategies.enforcement.move_evenly`), or lowered from the last layer to the first, as the paper
        does (`codesign.strategies.enforcement.sweep_down`).
    fill : bool
        Use the room that limits leave then (`Problem.fill`), what costs least first.

    Raises
    ------
    ValueError
        For a hyperparameter out of range; from `init`, for a space that is no `BitwidthSpace`.

    Notes
    -----
    An episode is a candidate. At each layer that is searched there are two steps, for its weights and for its
    inputs, or the first alone where `BitwidthSpace.input_bits` fixes the other. The agent sees `OBSERVED`, brought
    to [0, 1] over all steps (`observations`), and acts by a number in [0, 1], of which each bitwidth of the space
    has an equal share (`options_of`); for bits without a gap that is :math:`b = \mathrm{round}(b_{min} - 0.5 + a \,
    (b_{max} - b_{min} + 1))`. While it learns, actions are normal around the actor's, truncated to [0, 1].

    The bits are then brought within all limits, filled up to them, and evaluated. That is a part of what the agent
    acts on: as in the authors' program, the actions remembered are those it took, not the bits that became of them,
    so the actor learns what to ask for given what becomes of it. All transitions of the episode earn its final
    reward, minus ``reward_scale`` times the objective. The paper counts from the accuracy of the network before it
    was quantized; as a baseline, a moving mean, is subtracted from rewards before anything is learned from them,
    where they count from is of no consequence. A candidate whose objective is not a number counts as the worst
    seen.

    `HAQ.paper` lowers bits in the paper's order, without asking whether a step helped. Where 5 to 8 bits take the
    same time, that loses bits for nothing; where fewer bits cost more, it can pass by networks that meet the limits.
    Nor does it raise any: an agent that asks for little gets little, and where all that it tries is alike, as with an
    actor whose sigmoid is at an end of its range, it stays so.

    The paper's discount is 1. But each transition has the reward of the whole episode already, so it is counted
    once for every step that is left: the worth of an action is then lost in how many these are. In searches shorter
    than the paper's, actions ended at one end of their range or the other, by chance, and stayed there once the
    noise had faded. So the discount is 0, the noise fades less, and `lasting` leaves more episodes random;
    `benchmarks/ablate_haq.py` measures what each is worth.

    Whole episodes are remembered, as many as have ``replay`` transitions for each layer, and batches are drawn from
    them with replacement. Arithmetic is in single precision. What an episode costs besides its evaluation is
    almost only its updates, one a step.

    References
    ----------
    Wang, Liu, Lin, Lin and Han, "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", CVPR 2019,
    section 3; sizes, rates, noise and the observation as in the authors' program, github.com/mit-han-lab/haq.
    """

    warmup: int = 20
    noise: float = 0.5
    noise_decay: float = 0.995
    replay: int = 128
    batch: int = 64
    updates: int = 1
    reward_scale: float = 10.0
    baseline_rate: float = 0.5
    hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    discount: float = 0.0
    soft_update: float = 0.01
    enforcement: Literal["even", "sweep"] = "even"
    fill: bool = True

    def __post_init__(self) -> None:
        def check(names: str, rule: str, holds: Any) -> None:
            for name in names.split():
                if not holds(getattr(self, name)):
                    raise ValueError(f"HAQ: {name} must be {rule}, got {getattr(self, name)!r}.")

        check("replay batch updates hidden", "at least 1", lambda value: value >= 1)
        check("warmup", "at least 0", lambda value: value >= 0)
        check("noise reward_scale actor_rate critic_rate", "above 0", lambda value: 0 < value < math.inf)
        check("noise_decay baseline_rate soft_update", "above 0 and at most 1", lambda value: 0 < value <= 1)
        check("discount", "from 0 to 1", lambda value: 0 <= value <= 1)
        check("enforcement", "'even' or 'sweep'", lambda value: value in ("even", "sweep"))

    @classmethod
    def paper(cls) -> Self:
        """As printed: bits over a limit are lowered from the last layer to the first, none are raised, discount 1."""
        return cls(noise_decay=0.99, discount=1.0, enforcement="sweep", fill=False)

    def lasting(self, n_trials: int) -> Self:
        """With noise that fades over so many episodes as far as over `PAPER_EPISODES`; a fifth at most are random."""
        warmup = min(self.warmup, n_trials // 5)
        share = (n_trials - warmup) / max(1, PAPER_EPISODES - self.warmup)
        return dataclasses.replace(self, warmup=warmup, noise_decay=self.noise_decay ** (1 / share))

    @property
    def _agent(self) -> DDPG:
        return DDPG(
            len(OBSERVED), self.hidden, self.actor_rate, self.critic_rate, self.discount, self.soft_update
        )  # fmt: skip

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        if not isinstance(problem.space, BitwidthSpace):
            raise ValueError(
                f"HAQ: the space must be a BitwidthSpace, whose layers it walks through, got "
                f"{type(problem.space).__name__}; search it with another strategy."
            )
        actor, critic = self._agent.networks(rng)
        return {
            "actor": actor,
            "critic": critic,
            "actions": np.empty((0, len(problem.space.choices)), dtype=np.float32),
            "rewards": np.empty(0, dtype=np.float32),
            "episode": 0,
            "updates": 0,
            "baseline": None,
            "worst": None,
            "rng": keep_rng(rng),
        }

    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        space, rng = _bitwidths(problem), use_rng(state)
        seen = observations(space)
        uniform = rng.random((n, len(seen)))
        episodes = state["episode"] + np.arange(n)
        spread = self.noise * self.noise_decay ** np.maximum(episodes - self.warmup, 0.0)
        actions = np.empty((n, len(seen)), dtype=np.float32)
        with on_one_thread():
            for step, row in enumerate(seen):
                now = np.repeat(row[None], n, axis=0)
                if step:
                    now[:, PREVIOUS] = relative_bits(space, actions[:, step - 1])
                means = policy(state["actor"][0], now)
                noisy = truncated_normal(uniform[:, step], means, spread)
                actions[:, step] = np.where(episodes < self.warmup, uniform[:, step], noisy)
        archs = [self.enforced(problem, row) for row in actions]
        return archs, {**state, "rng": keep_rng(rng), "asked": actions}

    def enforced(self, problem: Problem, actions: Floats) -> Arch:
        """The arch of an episode's actions, shape (n_steps,), within the limits."""
        n_options = len(_bitwidths(problem).bits)
        arch = tuple(options_of(actions, n_options).tolist())
        arch = sweep_down(problem, arch) if self.enforcement == "sweep" else move_evenly(problem, arch, actions)
        return problem.fill(arch, np.full((len(arch), n_options), 1 / n_options)) if self.fill else arch

    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        space, rng = _bitwidths(problem), use_rng(state)
        values = np.array([trial.metrics.get(problem.objective, math.nan) for trial in trials], dtype=float)
        numbers = [*values[np.isfinite(values)], *([] if state["worst"] is None else [state["worst"]])]
        earned = -self.reward_scale * np.where(np.isfinite(values), values, max(numbers, default=0.0))

        kept = max(1, self.replay * len(space.searched) // len(space.choices))
        learning = state["episode"] + len(trials) - max(self.warmup, state["episode"])
        after = {
            **{name: value for name, value in state.items() if name != "asked"},
            "actions": np.concatenate([state["actions"], state["asked"]])[-kept:],
            "rewards": np.concatenate([state["rewards"], earned.astype(np.float32)])[-kept:],
            "episode": state["episode"] + len(trials),
            "worst": float(max(numbers)) if numbers else None,
        }
        with on_one_thread():
            return self._learned(space, after, max(0, learning) * self.updates * len(space.choices), rng)

    def _learned(self, space: BitwidthSpace, state: State, n: int, rng: np.random.Generator) -> State:
        """The state after ``n`` updates."""
        actor, critic, baseline = state["actor"].copy(), state["critic"].copy(), state["baseline"]
        agent, seen = self._agent, observations(space)
        bits = relative_bits(space, state["actions"])
        for step, drawn in enumerate(rng.integers(state["actions"].size, size=(n, self.batch)), state["updates"] + 1):
            batch = _transitions(seen, state["actions"], bits, state["rewards"], drawn)
            mean = float(batch.rewards.mean())
            baseline = mean if baseline is None else baseline + self.baseline_rate * (mean - baseline)
            agent.update(actor, critic, batch._replace(rewards=batch.rewards - np.float32(baseline)), step)
        learned = {"actor": actor, "critic": critic, "baseline": baseline, "updates": state["updates"] + n}
        return {**state, **learned, "rng": keep_rng(rng)}


def observations(space: BitwidthSpace) -> NDArray[np.float32]:
    """What there is to see at each step of an episode, each column brought to [0, 1] over the steps.

    Returns
    -------
    ndarray, shape (n_steps, 10)
        Columns `OBSERVED`; a column in which all steps are equal is 0. ``previous_bits``, the bits chosen at the
        step before over the highest ones, is 1, as at the first step. A layer that is no convolution has a kernel
        of 1 and a stride of 0.
    """
    layers = {layer.name: layer for layer in space.network.mac_layers}
    rows = []
    for i, name in enumerate(space.searched):
        layer = layers[name]
        convolves = layer.op == "conv"
        shape = (
            convolves and 1 < layer.groups == layer.in_channels, layer.in_channels, layer.out_channels,
            max(layer.stride) if convolves else 0, max(layer.kernel_size), layer.weight_count,
            layer.in_size[0] * layer.in_size[1],
        )  # fmt: skip
        rows += [[*shape, i, 1, operand == "weight"] for operand in space.operands]
    table = np.array(rows, dtype=np.float64)
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    scaled = np.where(span > 0, (table - low) / np.where(span > 0, span, 1), 0)
    scaled[:, PREVIOUS] = 1
    return scaled.astype(np.float32)


def options_of(actions: ArrayLike, n_options: int) -> Integers:
    """The index of the option in whose share of [0, 1] each action lies.

    Examples
    --------
    >>> options_of([0.0, 0.3, 0.5, 0.7, 1.0], 3).tolist()
    [0, 0, 1, 2, 2]
    """
    return np.minimum(np.asarray(actions, dtype=np.float64) * n_options, n_options - 1).astype(np.int64)


def relative_bits(space: BitwidthSpace, actions: ArrayLike) -> NDArray[np.float32]:
    """The bits that actions choose over the highest ones, in (0, 1]."""
    bits = np.array(space.bits, dtype=np.float32)
    return bits[options_of(actions, len(bits))] / bits[-1]


def truncated_normal(uniform: Floats, mean: Floats, spread: Floats) -> Floats:
    """Numbers in [0, 1] that are normal apart from that, by the inverse of their distribution.

    Parameters
    ----------
    uniform : ndarray
        What is drawn, uniform in [0, 1).
    mean, spread : ndarray
        Mean, in [0, 1], and standard deviation before the truncation.
    """
    from scipy.special import ndtr, ndtri

    mean, spread = np.asarray(mean, dtype=np.float64), np.maximum(spread, 1e-9)
    low, high = ndtr(-mean / spread), ndtr((1 - mean) / spread)
    return np.clip(mean + spread * ndtri(low + uniform * (high - low)), 0, 1)


def _transitions(seen: Floats, actions: Floats, bits: Floats, rewards: Floats, drawn: Integers) -> Transitions:
    """Some of all transitions, by their numbers; those of an episode are its steps in order."""
    episodes, steps = np.divmod(drawn, actions.shape[1])
    now, then = seen[steps], seen[np.minimum(steps + 1, len(seen) - 1)]
    now[:, PREVIOUS] = np.where(steps > 0, bits[episodes, steps - 1], 1)
    then[:, PREVIOUS] = bits[episodes, steps]
    return Transitions(now, actions[episodes, steps], rewards[episodes], then, steps == len(seen) - 1)


def _bitwidths(problem: Problem) -> BitwidthSpace:
    assert isinstance(problem.space, BitwidthSpace)
    return problem.space
