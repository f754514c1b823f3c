"""The training loop: AdamW, warm-up and cosine, averaged weights, mixed precision, resumable after a kill.

On several GPUs start it with torch's own launcher (``torchrun --nproc-per-node=N -m vsdiqp train ...``): every process
trains on its own GPU and draws its own samples; gradients are averaged by DistributedDataParallel.
"""

import contextlib
import csv
import json
import math
import os
import pickle
import sys
import time
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from vsdiqp.allocation import keep_freed_memory
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, load_checkpoint, save_checkpoint
from vsdiqp.training.batches import Batch, Batches, predict
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.first_pass import open_pool
from vsdiqp.training.growth import grow
from vsdiqp.training.loss import distillation_loss, imitation_loss, luma_gain, training_loss
from vsdiqp.training.muon import Muon, split
from vsdiqp.training.settings import TrainSettings
from vsdiqp.training.teacher import Teacher, load_teacher
from vsdiqp.training.validation import autocast, validate

STATE = "state.pt"
LOG = "log.csv"
MOST_MAKERS = 16
"""Threads that make batches for a GPU: more would be in each other's way."""
QP_BANDS = {"hevc": (0, 24, 30, 35, 40, 52), "av1": (0, 80, 128, 180, 230, 256)}


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last step."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = min((step - settings.warmup) / max(settings.steps - settings.warmup, 1), 1.0)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * cosine


class Average:
    """Exponential moving average of a network's weights; young averages forget faster."""

    def __init__(self, network: DiQP, decay: float):
        self.network, self.decay = deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, new in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(new, 1 - decay)


class Gains:
    """Running means of the Y-PSNR gain by codec and QP band since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, gain: Tensor, qps: Tensor, codecs: list[str]) -> None:
        """gain: B, frames in dB."""
        for value, qp, codec in zip(gain.mean(1).tolist(), qps.tolist(), codecs, strict=True):
            bands = QP_BANDS[codec]
            low = max(b for b in bands if b <= qp)
            total = self._sums[f"{codec}{low}+"]
            total[0] += value
            total[1] += 1

    def take(self) -> dict[str, float]:
        """Means by band, and start over."""
        means = {k: s / n for k, (s, n) in sorted(self._sums.items())}
        self._sums.clear()
        return means


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
        if settings.initial:
            self._start_from(settings.initial)
        self.average = Average(self.network, settings.ema)
        self.model: nn.Module = self.network
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
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()

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
        partial = self.out / (STATE + ".partial")
        torch.save(state, partial)
        partial.replace(self.out / STATE)
        self.export(self.out / "last.safetensors")

    def export(self, path: Path) -> None:
        """The averaged weights as a checkpoint."""
        training = {"step": self.step, "seconds": round(self.seconds), "origin": self.settings.origin}
        save_checkpoint(self.average.network, path, {"training": training})

    def _resume(self) -> None:
        path = self.out / STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DiqpError(f"{path} can't be read ({reason}); put a copy back, or remove it to start over") from None
        if state["config"] != json.dumps(self.settings.network.to_dict(), sort_keys=True):
            raise DiqpError(f"{path} belongs to another network; give another --out, or remove it to start over")
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.say(f"resumed at step {self.step} after {self.seconds / 60:.0f} minutes of training")

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step, or as long as ``minutes`` allows; a step at least. Returns the checkpoint's path."""
        s = self.settings
        dataset = open_pool(s.pool, s.network, crop=(s.crop, s.crop), cache_bytes=int(s.cache_gib * 2**30))
        validation = open_pool(s.validation, s.network, "nominal") if s.validation else None
        # A resumed run draws other samples than the ones it has seen, and every process its own.
        seed = s.seed + 1000 * self.rank + self.step
        teacher = load_teacher(s.teacher, s.network) if s.teacher and self.step < s.teacher_steps[1] else None
        teaching = teacher.to(self.device).requires_grad_(False) if isinstance(teacher, DiQP) else None
        teach = teacher.residual if isinstance(teacher, Teacher) else None
        source = Batches(dataset, self.network, s.batch, seed, s.refresh_every, teach, s.makers or self._makers())
        batches = iter(source)
        started, before = time.monotonic(), self.seconds
        gains, loss_sum, imitated, since = Gains(), 0.0, 0.0, 0
        self.network.train()
        with contextlib.closing(batches):
            while self.step < s.steps:
                batch = next(batches).to(self.device)
                rate = learning_rate(self.step, s)
                for optimiser in self.optimisers:
                    for group in optimiser.param_groups:
                        group["lr"] = rate * group.get("scale", 1.0)
                    optimiser.zero_grad(set_to_none=True)
                with autocast(self.device, s.precision):
                    tile, restored = predict(self.model, s.network, batch)
                loss = training_loss(tile, restored.float(), batch, s.network, s.loss, s.chroma_weight)
                imitation = self._imitation(teaching, tile, restored.float(), batch)
                if imitation is not None:
                    share = self._share()
                    imitated, loss = imitated + imitation.item(), share * imitation + (1 - 0.95 * share) * loss
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
                self.seconds = before + time.monotonic() - started
                self.average.update(self.network, self.step)
                with torch.no_grad():
                    gains.add(luma_gain(tile, restored.float(), batch, s.network), batch.qp, batch.codec)
                loss_sum, since = loss_sum + loss.item(), since + 1
                if self.step % 50 == 0:
                    if imitated:
                        self.say(f"distance to the teacher {imitated / since:.4f}")
                    self._report(loss_sum / since, rate, gains, len(dataset), time.monotonic() - started)
                    loss_sum, imitated, since = 0.0, 0.0, 0
                if validation is not None and self.step % s.validate_every == 0 and self.rank == 0:
                    self._validate(validation)
                if self._out_of_time(started):
                    break
                if self.step % s.save_every == 0:
                    self.save()
        self.save()
        return self.out / "last.safetensors"

    def _makers(self) -> int:
        """A CPU's cores belong to the network; a GPU waits for whoever feeds it."""
        if self.device.type == "cpu":
            return 1
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(max(len(os.sched_getaffinity(0)) // (2 * beside), 1), MOST_MAKERS)

    def _imitation(self, network: DiQP | None, tile: Tensor, restored: Tensor, batch: Batch) -> Tensor | None:
        """Distance to the teacher: a ``network``, or the filters whose answer the batch holds. None: no lesson."""
        if network is not None and self._share():
            with torch.no_grad(), autocast(self.device, self.settings.precision):
                _, taught = predict(network, self.settings.network, batch)
            return distillation_loss(tile, restored, taught.float(), batch, self.settings.chroma_weight)
        return None if batch.taught is None else imitation_loss(tile, restored, batch)

    def _share(self) -> float:
        """The teacher's share of this step's loss: 1 at first, then falling to 0."""
        alone, end = self.settings.teacher_steps
        return min(max((end - self.step) / max(end - alone, 1), 0.0), 1.0)

    def _out_of_time(self, started: float) -> bool:
        """Whether ``minutes`` are over. The first process decides, or the others would wait for it in the next step."""
        if not self.settings.minutes:
            return False
        over = time.monotonic() - started > self.settings.minutes * 60
        if self.world > 1:
            decision = torch.tensor([over], dtype=torch.int32, device=self.device)
            torch.distributed.broadcast(decision, 0)
            over = bool(decision.item())
        return over

    def _report(self, loss: float, rate: float, gains: Gains, items: int, elapsed: float) -> None:
        per_step = (self.seconds / self.step) if self.step else 0.0
        left = per_step * (self.settings.steps - self.step)
        if self.settings.minutes:
            left = min(left, self.settings.minutes * 60 - elapsed)
        means = gains.take()
        line = " ".join(f"{k} {v:+.3f}" for k, v in means.items())
        self.say(
            f"step {self.step}/{self.settings.steps} loss {loss:.5f} lr {rate:.2e} {per_step:.2f} s/step "
            f"{left / 60:.0f} min left, {items} items | {line}"
        )
        self._log("train", {"loss": loss, "lr": rate, **means})

    def _validate(self, dataset: PoolDataset) -> None:
        result = validate(self.average.network, dataset, self.device, self.settings.precision)
        self.say("validation " + " ".join(f"{k} {v:+.3f}" for k, v in result.items()))
        self._log("validation", result)
        if result["mean"] > self.best:
            self.best = result["mean"]
            self.export(self.out / "best.safetensors")

    def _log(self, kind: str, values: dict[str, float]) -> None:
        if self.rank:
            return
        with (self.out / LOG).open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([kind, self.step, round(self.seconds, 1), name, f"{value:.6g}"])
