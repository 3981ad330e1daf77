"""Stochastic weight averaging densely (SWAD) over a valley of the validation loss (Cha et al., NeurIPS 2021, Alg. 1).

With E_i the validation loss at checkpoint i, the averaged window begins and ends at the first checkpoints with

    t_s:  E_{t_s} = min(E_{t_s}, ..., E_{t_s + N_s - 1})            (N_s: ``n_converge``, the optimum patience)
    t_e:  min(E_{t_e}, ..., E_{t_e + N_e - 1}) > l                   (N_e: ``n_tolerance``, the overfit patience)
    l = (1 + r) / N_s * (E_{t_s} + ... + E_{t_s + N_s - 1})          (r: ``ratio``)

and theta_SWAD is the mean of the weights after *every* step from t_s to t_e ("densely").

Differs from that text as the released code does (test: ``tests/golden/swad.npz``, steps and counts exact):

- The steps between two checkpoints are averaged into a *segment* first, and theta_SWAD is the plain mean of segments,
  however many steps each holds (the first holds step 0 only).
- When the start is found, the average is made from the oldest segment, but with count 0: the next one overwrites it.
- With N_e > N_s the window reaches back: of the first N_e - N_s + 1 queued segments those up to the last one above l
  are dropped, one more is skipped, the rest enters at once (and again later, where the queue is not full yet). With
  N_e < N_s the N_s - N_e segments after the oldest enter instead.
- From then on each checkpoint adds the oldest of the last N_e segments, nothing while it ends before the start; once
  all N_e losses exceed l the valley is left (``dead``) and nothing more happens.
- ``final`` drops the oldest segment of a living valley and adds the others while one of those left is within l. If
  nothing had been added before, the window it reports starts at the *end* of the first segment added.
- Without a valley, the last segment is returned.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from wbcrepro.errors import UsageError

Weights = dict[str, Tensor]


@dataclass
class Average:
    """Running mean of weights by name; ``count`` updates from step ``start`` to ``end`` (-1: not updated yet).

    A segment is one of these whose updates are training steps, with the validation ``loss`` at its end.
    """

    weights: Weights = field(default_factory=dict)
    count: int = 0
    start: int = -1
    end: int = -1
    loss: float = float("nan")

    def add(self, weights: Weights, start: int, end: int) -> None:
        """Take in weights that stand for the steps from ``start`` to ``end``; the first ones are copied."""
        if self.count == 0:
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
            self.start = start
        else:
            for name, mean in self.weights.items():
                mean.lerp_(weights[name].detach().to(mean.device), 1 / (self.count + 1))
        self.count += 1
        self.end = end


class LossValley:
    """Detector of the valley and average of the weights in it; feed it ``add`` each step and ``checkpoint``.

    Holds at most max(n_converge, n_tolerance) + 2 copies of the weights, those of closed segments on the CPU.
    ``state_dict`` and ``load_state_dict`` carry everything over an interruption.
    """

    def __init__(self, n_converge: int = 3, n_tolerance: int = 6, ratio: float = 0.3):
        if n_converge < 1 or n_tolerance < 1 or ratio < 0:
            raise UsageError(
                f"SWAD needs n_converge and n_tolerance of at least 1 and a ratio of at least 0; got "
                f"{n_converge}, {n_tolerance} and {ratio}."
            )
        self.n_converge, self.n_tolerance, self.ratio = n_converge, n_tolerance, ratio
        self.segment = Average()
        self.queue: list[Average] = []
        self.average: Average | None = None  # None until the valley's start is found
        self.start_step, self.threshold, self.dead, self.closed = -1, float("nan"), False, False

    def add(self, weights: Weights, step: int) -> None:
        """Average the floating-point ``weights`` after training step ``step`` into the open segment."""
        if not (self.dead or self.closed):
            self.segment.add(weights, step, step)

    def checkpoint(self, loss: float | None) -> None:
        """Close the segment with the validation loss at its end; None forgets it (checkpoints not to be looked at)."""
        closed, self.segment = self.segment, Average()
        if loss is None or self.dead or self.closed:
            return
        on_cpu = {name: value.cpu() for name, value in closed.weights.items()}
        closed = replace(closed, weights=on_cpu, loss=float(loss))
        keep = self.n_tolerance if self.average else max(self.n_converge, self.n_tolerance)
        self.queue = [*self.queue, closed][-keep:]
        if self.average is None:
            self._look_for_start()
        elif (oldest := self._window()[0]).end >= self.start_step:
            if min(segment.loss for segment in self._window()) > self.threshold:
                self.dead = True
                self.queue = []
            else:
                self.average.add(oldest.weights, oldest.start, oldest.end)

    def _window(self) -> list[Average]:
        return self.queue[-self.n_tolerance :]

    def _look_for_start(self) -> None:
        recent = self.queue[-self.n_converge :]
        losses = [segment.loss for segment in recent]
        if len(recent) < self.n_converge or losses[0] > min(losses):
            return
        self.start_step, self.threshold = recent[0].end, float(np.mean(losses)) * (1 + self.ratio)
        self.average = Average(recent[0].weights)  # count 0: the next segment overwrites it
        entering, back = [], self.n_tolerance - self.n_converge
        if back < 0:
            entering = recent[1 : 1 - back]
        elif back > 0:
            earliest = self._window()[: back + 1]
            above = [i for i, segment in enumerate(earliest) if segment.loss > self.threshold]
            entering = earliest[above[-1] + 2 if above else 1 :]
        for segment in entering:
            self.average.add(segment.weights, segment.start, segment.end)

    def final(self) -> Average:
        """The average over the valley as if training ended here, on the CPU; the detector itself is left as it is."""
        if self.closed:
            return self.average
        if self.average is None:
            if not self.queue:
                raise UsageError("SWAD has seen no checkpoint. Next step: train longer, or let it start earlier.")
            return self.queue[-1]
        result = replace(self.average, weights={name: value.clone() for name, value in self.average.weights.items()})
        left = [] if self.dead else self._window()[1:]
        while left and min(segment.loss for segment in left) <= self.threshold:
            segment = left.pop(0)
            result.add(segment.weights, segment.end, segment.end)
        return result

    def close(self) -> Average:
        """End here: the ``final`` average is kept, everything else dropped, so that a finished run stays small."""
        self.average, self.closed = self.final(), True
        self.queue, self.segment = [], Average()
        return self.average

    def state_dict(self) -> dict:
        """Everything but the settings, as plain containers of tensors and numbers."""
        return {
            "segment": vars(self.segment),
            "queue": [vars(segment) for segment in self.queue],
            "average": None if self.average is None else vars(self.average),
            "start_step": self.start_step,
            "threshold": self.threshold,
            "dead": self.dead,
            "closed": self.closed,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave; the settings must be the same."""
        self.segment = Average(**state["segment"])
        self.queue = [Average(**segment) for segment in state["queue"]]
        self.average = None if state["average"] is None else Average(**state["average"])
        self.start_step, self.threshold = state["start_step"], state["threshold"]
        self.dead, self.closed = state["dead"], state["closed"]
