"""The training loop: AdamW, warm-up and cosine, averaged weights, mixed precision, resumable after a kill.

On several GPUs start it with torch's own launcher (``torchrun --nproc-per-node=N -m vsdiqp train ...``): every process
trains on its own GPU and draws its own samples; gradients are averaged by DistributedDataParallel.
"""

import contextlib
import csv
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vsdiqp.allocation import keep_freed_memory
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, load_checkpoint, save_checkpoint
from vsdiqp.training.batches import ACROSS, MIRRORINGS, UPSIDE_DOWN, Batch, Batches, predict
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.first_pass import open_pool
from vsdiqp.training.forms import in_form
from vsdiqp.training.growth import grow
from vsdiqp.training.locks import held
from vsdiqp.training.loss import consistency_loss, distillation_loss, imitation_loss, luma_gain, training_loss
from vsdiqp.training.muon import Muon, split
from vsdiqp.training.reservoir import Reservoir
from vsdiqp.training.settings import TrainSettings
from vsdiqp.training.state import load_optimisers, read_state, write_state
from vsdiqp.training.teacher import Teacher, load_teacher
from vsdiqp.training.validation import autocast, validate

LOG = "log.csv"
STATE_KEYS = ("step", "seconds", "best", "network", "average", "optimisers", "scaler", "config")
MOST_MAKERS = 16
"""Processes that make batches for a GPU, at most: all cores but two, for whoever takes them in."""
MADE_AT_ONCE = 16
"""Samples that a maker brings to a reservoir at once."""
MOST_SEEN = 100
"""Samples of 128x128 that an item is good for. 90 thousand of 192x192 from 500 items took a network from +0.58 dB on
others to +0.49, while it gained 0.8 on the items seen most (docs/training.md)."""
QP_BANDS = {"hevc": (0, 24, 30, 35, 40, 52), "av1": (0, 80, 128, 180, 230, 256)}


def learning_rate(step: int, settings: TrainSettings, seconds: float = 0.0) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last step.

    ``by_time``: the cosine ends when ``seconds`` of training are all that there are, if that is earlier. It falls from
    the first second on, warm-up or not, since nobody knows beforehand how long that will take.
    """
    warm = min((step + 1) / settings.warmup, 1.0) if settings.warmup else 1.0
    progress = max(step - settings.warmup, 0) / max(settings.steps - settings.warmup, 1)
    if settings.by_time:
        progress = max(progress, seconds / (60 * settings.minutes))
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    falling = settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * cosine
    return warm * falling


class Average:
    """Exponential moving average of a network's weights; young averages forget faster."""

    def __init__(self, network: DiQP, decay: float):
        self.network, self.decay = deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)


class Gains:
    """Running means of the Y-PSNR gain by codec and QP band since the last report."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor, list[str]]] = []

    def add(self, gain: Tensor, qps: Tensor, codecs: list[str]) -> None:
        """gain: B, frames in dB. Kept where it is: to look at it now would be to wait for the GPU."""
        self._waiting.append((gain.mean(1), qps, codecs))

    def take(self) -> dict[str, float]:
        """Means by band, and start over."""
        found: dict[str, list[float]] = defaultdict(list)
        for gain, qps, codecs in self._waiting:
            for value, qp, codec in zip(gain.tolist(), qps.tolist(), codecs, strict=True):
                found[f"{codec}{max(b for b in QP_BANDS[codec] if b <= qp)}+"].append(value)
        self._waiting.clear()
        return {band: sum(values) / len(values) for band, values in sorted(found.items())}


class Trainer:
    """One training run in a folder; construct, then `run`. A run that was stopped goes on where its state was saved."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
        if self.world > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if settings.precision == "fp16" and self.device.type == "cpu":
            raise DiqpError("precision 'fp16' trains on a GPU only; use 'bf16' or 'fp32' on a CPU")
        torch.manual_seed(settings.seed)
        self.network = DiQP(settings.network).to(self.device)
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        state = read_state(self.out, self.device, STATE_KEYS)
        if settings.initial and (state is None or settings.consistency):
            self._start_from(settings.initial)
        self.average = Average(self.network, settings.ema)
        self._start = deepcopy(self.network).eval().requires_grad_(False) if settings.consistency else None
        self.model: nn.Module = self.network
        self._model_ready = False
        self._kept: Reservoir | None = None
        if self.world > 1:
            self.model = nn.parallel.DistributedDataParallel(self.network, find_unused_parameters=True)
        matrices, rest = split(self.network) if settings.optimiser == "muon" else ([], list(self.network.parameters()))
        rate, decay = settings.learning_rate, settings.weight_decay
        # Muon's rate is one that AdamW would find high.
        small = [{"params": rest, "scale": 0.5 if matrices else 1.0}]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(small, lr=rate, betas=settings.betas, weight_decay=decay)
        ]
        if matrices:
            self.optimisers.append(Muon(matrices, lr=rate, weight_decay=decay))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        if state is not None:
            self._resume(state)

    def _start_from(self, path: str) -> None:
        start = load_checkpoint(path)
        state, own = start.state_dict(), self.network.state_dict()
        fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        if len(fitting) < len(own):
            try:
                grown = grow(start, self.settings.network, self.settings.seed)
            except DiqpError as error:
                self.say(f"not grown: {error}")
            else:
                self.network.load_state_dict(grown.state_dict())
                self.say(f"grown from {path}")
                return
        self.network.load_state_dict(fitting, strict=False)
        self.say(f"started from {path}: {len(fitting)} of {len(own)} tensors")

    def say(self, text: str) -> None:
        """One line on stderr, from the first process only."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything needed to go on at this step, written whole or not at all; and the averaged weights."""
        if self.rank:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "scaler": self.scaler.state_dict(),
            "config": json.dumps(self.settings.network.to_dict(), sort_keys=True),
        }
        write_state(self.out, state)
        self.export(self.out / "last.safetensors")

    def export(self, path: Path) -> None:
        """The averaged weights as a checkpoint."""
        training = {"step": self.step, "seconds": round(self.seconds), "origin": self.settings.origin}
        save_checkpoint(self.average.network, path, {"training": training})

    def _resume(self, state: dict[str, Any]) -> None:
        if state["config"] != json.dumps(self.settings.network.to_dict(), sort_keys=True):
            raise DiqpError(f"{self.out} holds another network's run; give another --out, or remove it to start over")
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        load_optimisers(self.optimisers, state["optimisers"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.say(f"resumed at step {self.step} after {self.seconds / 60:.0f} minutes of training")

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step, or as long as ``minutes`` allows; a step at least. Returns the checkpoint's path."""
        taken = f"another training run writes to {self.out}; wait for it, or give another --out"
        with held(self.out, taken) if self.rank == 0 else contextlib.nullcontext():
            return self._run()

    def _run(self) -> Path:
        s = self.settings
        room = int(s.cache_gib * 2**30)
        dataset = open_pool(s.pool, s.network, crop=(s.crop, s.crop), cache_bytes=room)
        validation = open_pool(s.validation, s.network, "nominal", cache_bytes=room) if s.validation else None
        # A resumed run draws other samples than the ones it has seen, and every process its own.
        seed = int(np.random.SeedSequence([s.seed, self.rank, self.step]).generate_state(1)[0])
        teacher = load_teacher(s.teacher, s.network) if s.teacher and self.step < s.teacher_steps[1] else None
        teaching = teacher.to(self.device).requires_grad_(False) if isinstance(teacher, DiQP) else None
        teach = teacher.residual if isinstance(teacher, Teacher) else None
        # Batches that only fill the reservoir are small: what is drawn together then comes from many.
        made = s.batch if s.reuse == 1 else min(s.batch, MADE_AT_ONCE)
        makers, pin = s.makers or self._makers(), self.device.type == "cuda"
        # Threads of one process get in each other's way in Python. What teaches can be told to stop in threads alone.
        processes = pin and makers > 1 and teach is None
        source = Batches(dataset, self.network, made, seed, s.refresh_every, teach, makers, pin, processes)
        batches = iter(source)
        drawn = (batch.to(self.device) for batch in batches) if s.reuse == 1 else self._drawn(source, batches, seed)
        mirroring = np.random.default_rng([seed, 1])
        started, before = time.monotonic(), self.seconds
        gains, since, warned = Gains(), 0, False
        loss_sum, imitated, apart = (torch.zeros((), device=self.device) for _ in range(3))
        self.network.train()
        with contextlib.closing(batches):
            while self.step < s.steps:
                batch = next(drawn)
                if not self._model_ready:
                    self._prepare_model(batch, time.monotonic() - started)
                rate = learning_rate(self.step, s, self.seconds)
                for optimiser in self.optimisers:
                    for group in optimiser.param_groups:
                        group["lr"] = rate * group.get("scale", 1.0)
                    optimiser.zero_grad(set_to_none=True)
                shown, other = self._mirrorings(mirroring)
                with autocast(self.device, s.precision):
                    tile, restored = predict(self.model, s.network, batch, shown)
                loss = training_loss(tile, restored.float(), batch, s.network, s.loss, s.chroma_weight)
                if self._start is not None:
                    inconsistency = self._inconsistency(self._start, restored.float(), batch, shown, other)
                    apart, loss = apart + inconsistency.detach(), loss + s.consistency * inconsistency
                imitation = self._imitation(teaching, tile, restored.float(), batch)
                if imitation is not None:
                    share = self._share()
                    imitated, loss = imitated + imitation.detach(), share * imitation + (1 - 0.95 * share) * loss
                    if not share:
                        source.teach = None
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if s.clip_norm:
                    for optimiser in self.optimisers:
                        self.scaler.unscale_(optimiser)
                    nn.utils.clip_grad_norm_(self.network.parameters(), s.clip_norm)
                for optimiser in self.optimisers:
                    self.scaler.step(optimiser)
                self.scaler.update()
                self.step += 1
                self.seconds = self._together(before + time.monotonic() - started)
                self.average.update(self.network, self.step)
                with torch.no_grad():
                    gains.add(luma_gain(tile, restored.float(), batch, s.network), batch.qp, batch.codec)
                loss_sum, since = loss_sum + loss.detach(), since + 1
                if self.step % 50 == 0:
                    if imitated:
                        self.say(f"distance to the teacher {imitated.item() / since:.4f}")
                    if s.consistency:
                        self.say(f"distance to where the run started, mirrored, {apart.item() / since:.4f}")
                    self._report(loss_sum.item() / since, rate, gains, len(dataset), time.monotonic() - started)
                    warned = warned or self._warn_of_few(len(dataset))
                    loss_sum, imitated, apart = (torch.zeros_like(x) for x in (loss_sum, imitated, apart))
                    since = 0
                if validation is not None and self.step % s.validate_every == 0 and self.rank == 0:
                    self._validate(validation)
                if processes and self.step % s.refresh_every == 0:
                    dataset.refresh()  # makers look for themselves; this is for the reports
                if self._out_of_time(started):
                    break
                if self.step % s.save_every == 0:
                    self.save()
            self.save()
        return self.out / "last.safetensors"

    def _prepare_model(self, batch: Batch, waited: float) -> None:
        """Bring the network into the form that the settings ask for, once the first batch shows what comes."""
        self._model_ready = True
        if self.device.type != "cuda" or self.world > 1:
            return
        form, begin = "graph" if self.settings.form == "auto" else self.settings.form, time.monotonic()
        self.model = in_form(self.network, form, batch, self.settings.precision)
        recorded = f", network recorded in {time.monotonic() - begin:.0f} s" if form == "graph" else ""
        self.say(f"first batch after {waited:.0f} s{recorded}")

    def _drawn(self, source: Batches, batches: Iterator[Batch], seed: int) -> Iterator[Batch]:
        """Batches from a reservoir that takes in what is there, and waits only for samples that are overdue."""
        s, rng = self.settings, np.random.default_rng(seed)
        self._kept = kept = Reservoir(s.reservoir, self.device)
        while True:
            while len(kept) < s.batch or kept.drawn >= s.reuse * kept.made or source.waiting:
                kept.add(next(batches))
            yield kept.draw(s.batch, rng)

    def _makers(self) -> int:
        """A CPU's cores belong to the network; a GPU waits for whoever feeds it."""
        if self.device.type == "cpu":
            return 1
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(max(len(os.sched_getaffinity(0)) // beside - 2, 1), MOST_MAKERS)

    def _imitation(self, network: DiQP | None, tile: Tensor, restored: Tensor, batch: Batch) -> Tensor | None:
        """Distance to the teacher: a ``network``, or the filters whose answer the batch holds. None: no lesson."""
        if network is not None and self._share():
            with torch.no_grad(), autocast(self.device, self.settings.precision):
                _, taught = predict(network, self.settings.network, batch)
            return distillation_loss(tile, restored, taught.float(), batch, self.settings.chroma_weight)
        return None if batch.taught is None else imitation_loss(tile, restored, batch)

    def _mirrorings(self, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How the network is shown this step's batch, and how the one that the run started from is."""
        shown = UPSIDE_DOWN if rng.random() < self.settings.upside_down else ()
        others = [axes for axes in MIRRORINGS if axes != shown]
        return shown, others[int(rng.integers(len(others)))]

    def _inconsistency(
        self, start: DiQP, restored: Tensor, batch: Batch, shown: tuple[int, ...], other: tuple[int, ...]
    ) -> Tensor:
        """Distance of what the network made of the batch to what ``start`` makes of it, shown another way."""
        with torch.no_grad(), autocast(self.device, self.settings.precision):
            _, taught = predict(start, self.settings.network, batch, other)
        # Chroma lies left of where the network works, and its residual goes back there: left and right differ.
        chroma = self.settings.chroma_weight if (ACROSS in shown) == (ACROSS in other) else 0.0
        return consistency_loss(restored, taught.float(), batch, chroma)

    def _share(self) -> float:
        """The teacher's share of this step's loss: 1 at first, then falling to 0."""
        alone, end = self.settings.teacher_steps
        return min(max((end - self.step) / max(end - alone, 1), 0.0), 1.0)

    def _out_of_time(self, started: float) -> bool:
        """Whether ``minutes`` are over: for all processes alike, or some would wait for others in the next step."""
        if not self.settings.minutes:
            return False
        # A schedule by time is that of the whole run; otherwise the minutes are those of this call.
        spent = self.seconds if self.settings.by_time else time.monotonic() - started
        return self._together(spent) > self.settings.minutes * 60

    def _together(self, seconds: float) -> float:
        """The first process' seconds, where a clock decides what all have to do alike: learn at a rate, or stop."""
        if self.world == 1 or not self.settings.minutes:
            return seconds
        first = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(first, 0)
        return float(first.item())

    def _report(self, loss: float, rate: float, gains: Gains, items: int, elapsed: float) -> None:
        per_step = (self.seconds / self.step) if self.step else 0.0
        left = per_step * (self.settings.steps - self.step)
        if self.settings.minutes:
            left = min(left, self.settings.minutes * 60 - (self.seconds if self.settings.by_time else elapsed))
        means = gains.take()
        line = " ".join(f"{k} {v:+.3f}" for k, v in means.items())
        uses = f", samples used {self._kept.drawn / self._kept.made:.1f} times" if self._kept is not None else ""
        self.say(
            f"step {self.step}/{self.settings.steps} loss {loss:.5f} lr {rate:.2e} {per_step:.3g} s/step "
            f"{left / 60:.0f} min left, {items} items{uses} | {line}"
        )
        self._log("train", {"loss": loss, "lr": rate, **means})

    def _warn_of_few(self, items: int) -> bool:
        """Say so, once, when the pool has become too small for what was drawn from it."""
        s = self.settings
        pixels = self.step * s.batch * self.world * s.crop**2
        if pixels < MOST_SEEN * items * 128**2:
            return False
        self.say(
            f"warning: {items} items have been drawn from more than {MOST_SEEN} times each; a network learns so few by "
            "heart and loses on others. Make the pool larger (vsdiqp pool, more --items), and watch a --validation pool"
        )
        return True

    def _validate(self, dataset: PoolDataset) -> None:
        result = validate(self.average.network, dataset, self.device, self.settings.precision)
        self.say("validation " + " ".join(f"{k} {v:+.3f}" for k, v in result.items()))
        self._log("validation", result)
        if result["mean"] > self.best:
            self.best = result["mean"]
            self.export(self.out / "best.safetensors")
            self.save()  # or a run that is killed now would take something worse for its best

    def _log(self, kind: str, values: dict[str, float]) -> None:
        if self.rank:
            return
        with (self.out / LOG).open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([kind, self.step, round(self.seconds, 1), name, f"{value:.6g}"])
