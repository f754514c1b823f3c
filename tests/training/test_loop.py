"""The training loop: its schedule, its state, and that what it trains gets better."""

import contextlib
import csv
import dataclasses
import itertools
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig, load_checkpoint, read_config, save_checkpoint
from vsdiqp.training.batches import MIRRORINGS, Batch, Batches, predict, typical_error
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.locks import held
from vsdiqp.training.loop import LOG, Average, Gains, Trainer, learning_rate
from vsdiqp.training.loss import luma_gain, training_loss
from vsdiqp.training.muon import Muon, split
from vsdiqp.training.settings import TrainSettings, load_settings
from vsdiqp.training.state import STATE, write_state
from vsdiqp.training.teacher import CLASSES, FEATURES, Teacher
from vsdiqp.training.validation import validate

LITE = load_settings("lite", {"pool": "none"}).network
TINY = dataclasses.replace(LITE, embed_dim=8, widths=(8, 8, 16), depths=(0, 0, 1, 0, 0), heads=(1, 1, 2, 1, 1))
JOINT = dataclasses.replace(TINY, joint=True)
GUIDED = dataclasses.replace(TINY, look_around=(3, 5), look_ahead=(4, 3), frames_ahead=2)
RELEASED = DiQPConfig(
    embed_dim=4, depths=(1, 2, 1), heads=(1, 2, 2), look_around=(3,), look_ahead=(4,), tile=64, frames_ahead=2,
    codecs=("hevc", "av1"), qp_range={"hevc": (3, 51), "av1": (3, 255)}, table_rows=(86, 151, 256, 256, 64, 64),
)  # fmt: skip


def tiny(pool: Path, out: Path, **changes: Any) -> TrainSettings:
    """A run of a tiny network in fp32."""
    settings = TrainSettings(
        network=TINY, pool=str(pool), out=str(out), steps=3, batch=2, crop=64, optimiser="muon", learning_rate=1e-3,
        warmup=1, loss="relative", precision="fp32", save_every=100, validate_every=100, cache_gib=0.1,
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def log(out: Path) -> list[list[str]]:
    with (out / LOG).open(newline="") as file:
        return list(csv.reader(file))


# -- schedule and averages ---------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    s = TrainSettings(DiQPConfig(), "p", steps=1100, warmup=100, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(step, s) for step in range(1101)]
    assert rates[0] == pytest.approx(0.01) and rates[49] == pytest.approx(0.5) and rates[99] == rates[100] == 1
    assert rates[600] == pytest.approx(0.55) and rates[1100] == pytest.approx(0.1) == learning_rate(2000, s)
    assert all(a >= b for a, b in itertools.pairwise(rates[99:]))
    assert rates[350] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_by_time_the_rate_falls_evenly_from_the_first_second_to_the_last() -> None:
    s = TrainSettings(DiQPConfig(), "p", steps=10**6, warmup=200, learning_rate=1.0, final_learning_rate=0.01)
    by_time = dataclasses.replace(s, minutes=3.0, by_time=True)
    rates = [learning_rate(step, by_time, step * 0.45) for step in range(401)]  # warm-up takes half of the time
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.01, "it never jumps"
    assert rates[400] == pytest.approx(0.01) and max(rates) > 0.3
    slow = [learning_rate(step, by_time, step * 5.0) for step in range(37)]  # time ends in warm-up
    assert slow[36] < 0.01 and slow[36] < max(slow) / 5


def test_no_warm_up() -> None:
    s = TrainSettings(DiQPConfig(), "p", steps=10, warmup=0, learning_rate=1.0)
    assert learning_rate(0, s) == 1


def test_averaged_weights() -> None:
    """A young average follows quickly, an old one keeps its decay; a decay of 0 is no average."""
    network = DiQP(TINY)
    young, old, none = (Average(network, decay) for decay in (0.999, 0.999, 0.0))
    name, parameter = next(iter(network.named_parameters()))
    with torch.no_grad():
        start = parameter.clone()
        parameter.add_(1)
    for average, step in ((young, 1), (old, 10**6), (none, 5)):
        average.update(network, step)
    moved = [(dict(a.network.named_parameters())[name] - start).mean().item() for a in (young, old, none)]
    assert moved == pytest.approx([1 - 2 / 11, 1e-3, 1.0], abs=1e-4)
    assert not any(p.requires_grad for p in young.network.parameters())


def test_gains_are_told_apart_by_codec_and_qp() -> None:
    gains = Gains()
    gains.add(
        torch.tensor([[1.0, 3.0], [4.0, 4.0], [0.0, 1.0]]), torch.tensor([31.0, 34.0, 255.0]), ["hevc"] * 2 + ["av1"]
    )
    assert gains.take() == {"hevc30+": 3.0, "av1230+": 0.5}
    assert gains.take() == {}


def test_typical_error_is_where_the_network_starts() -> None:
    network = DiQP(LITE)
    for codec, qp in (("hevc", 22), ("hevc", 51), ("hevc", 3), ("av1", 40), ("av1", 200)):
        location, _ = network.locate(qp, codec, 1, 3, 0, 0, 64, 64, 64, 64)
        damage = network.lost.damage(location.view(6, 1, 1)).item()  # type: ignore[operator]
        assert typical_error(qp, codec) == pytest.approx(damage**2, rel=1e-4)


# -- runs --------------------------------------------------------------------------------------------------------------


def first_losses(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of a run, as they are computed."""
    seen: list[float] = []

    def watched(*args: Any) -> torch.Tensor:
        loss = training_loss(*args)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr("vsdiqp.training.loop.training_loss", watched)
    Trainer(settings).run()
    return seen


def test_a_run_writes_a_checkpoint(small_pool: Path, tmp_path: Path) -> None:
    path = Trainer(tiny(small_pool, tmp_path, origin="a test")).run()
    network = load_checkpoint(path)
    assert path.name == "last.safetensors" and network.config == TINY and not network.training
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "last.safetensors", STATE]


def test_nothing_is_at_work_after_a_run(small_pool: Path, tmp_path: Path) -> None:
    """A thread that still makes batches while the interpreter ends brings the process down after all is done."""
    before = set(threading.enumerate())
    Trainer(tiny(small_pool, tmp_path)).run()
    assert not {thread for thread in threading.enumerate() if thread.is_alive()} - before


def test_a_killed_run_goes_on_at_the_step_after(
    small_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed without warning in step 4 of 6, with state saved every second step."""
    settings = tiny(small_pool, tmp_path, steps=6, save_every=2)
    steps: list[int] = []

    def die(*args: Any) -> torch.Tensor:
        steps.append(trainer.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return training_loss(*args)

    monkeypatch.setattr("vsdiqp.training.loop.training_loss", die)
    trainer = Trainer(settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    saved = torch.load(tmp_path / STATE, weights_only=True)
    assert saved["step"] == 2
    trainer = Trainer(settings)
    assert trainer.step == 2
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, saved["network"][name]), name
    for name, tensor in trainer.average.network.state_dict().items():
        assert torch.equal(tensor, saved["average"][name]), name
    states = [optimiser.state_dict()["state"] for optimiser in trainer.optimisers]
    assert all(states), "the optimisers' moments are part of the state"
    trainer.run()
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    Trainer(settings).run()
    assert len(steps) == 8, "a finished run has nothing left to do"


def test_minutes_stop_a_run_resumably(small_pool: Path, tmp_path: Path) -> None:
    settings = tiny(small_pool, tmp_path, steps=10**6, minutes=1e-4)
    Trainer(settings).run()
    reached = torch.load(tmp_path / STATE, weights_only=True)["step"]
    assert 1 <= reached < 1000
    assert Trainer(settings).step == reached


def test_the_same_seed_trains_the_same(small_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        first_losses(tiny(small_pool, tmp_path / name, steps=2, seed=seed), monkeypatch)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0][0] != pytest.approx(runs[2][0], rel=1e-3)


def test_state_of_another_network_is_refused(small_pool: Path, tmp_path: Path) -> None:
    Trainer(tiny(small_pool, tmp_path, steps=1)).run()
    other = dataclasses.replace(TINY, stem_blocks=0)
    with pytest.raises(DiqpError, match=r"another network.*--out"):
        Trainer(tiny(small_pool, tmp_path, network=other))


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 cut short"])
def test_a_damaged_state_is_named(small_pool: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(DiqpError, match=f"{STATE} can't be read"):
        Trainer(tiny(small_pool, tmp_path, steps=1))


def test_another_programs_state_is_named(small_pool: Path, tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, tmp_path / STATE)
    with pytest.raises(DiqpError, match=r"no state of a training run"):
        Trainer(tiny(small_pool, tmp_path, steps=1))


def test_another_optimisers_state_is_refused_and_its_settings_may_change(small_pool: Path, tmp_path: Path) -> None:
    Trainer(tiny(small_pool, tmp_path, steps=1)).run()
    with pytest.raises(DiqpError, match=r"another optimiser.*--initial"):
        Trainer(tiny(small_pool, tmp_path, optimiser="adamw"))
    again = Trainer(tiny(small_pool, tmp_path, weight_decay=0.3, betas=(0.5, 0.6)))
    for optimiser in again.optimisers:
        assert {group["weight_decay"] for group in optimiser.param_groups} == {0.3}
    assert again.optimisers[0].param_groups[0]["betas"] == (0.5, 0.6)


def test_one_run_at_a_time_writes_to_a_folder(small_pool: Path, tmp_path: Path) -> None:
    with held(tmp_path, ""), pytest.raises(DiqpError, match=r"another training run.*--out"):
        Trainer(tiny(small_pool, tmp_path, steps=1)).run()
    Trainer(tiny(small_pool, tmp_path, steps=1)).run()


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, {"step": 1})

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 1 vs 2\nand much more")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiqpError, match="is there room"):
        write_state(tmp_path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == [STATE] and torch.load(tmp_path / STATE)["step"] == 1


def test_a_resumed_run_does_without_the_checkpoint_it_started_from(small_pool: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_checkpoint(DiQP(TINY), start)
    Trainer(tiny(small_pool, tmp_path / "out", steps=1, initial=str(start))).run()
    start.unlink()
    again = Trainer(tiny(small_pool, tmp_path / "out", steps=2, initial=str(start)))
    again.run()
    assert again.step == 2


def test_a_run_starts_from_a_checkpoint(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Trainer(tiny(small_pool, tmp_path / "a", steps=1)).run()
    wider = dataclasses.replace(TINY, widths=(8, 8, 24), heads=(1, 1, 3, 1, 1))
    trainer = Trainer(tiny(small_pool, tmp_path / "b", network=wider, initial=str(path)))
    kept = load_checkpoint(path).state_dict()
    assert torch.equal(trainer.network.state_dict()["stem.project.weight"], kept["stem.project.weight"])
    assert "tensors" in capsys.readouterr().err and trainer.step == 0


def test_a_run_starts_from_a_smaller_network(
    small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(LITE, widths=(8, 8, 16), embed_dim=8, depths=(0, 1, 0, 0, 0), heads=(1,) * 5)
    path = Trainer(tiny(small_pool, tmp_path / "a", network=small, steps=1)).run()
    large = dataclasses.replace(small, name="large", widths=(8, 16, 32), depths=(0, 1, 1, 1, 0), heads=(1, 2, 1, 1, 1))
    trainer = Trainer(tiny(small_pool, tmp_path / "b", network=large, initial=str(path)))
    assert "grown from" in capsys.readouterr().err
    batch = one_batch(small_pool, trainer.network)
    with torch.no_grad():
        results = [predict(net, net.config, batch)[1] for net in (trainer.network.eval(), load_checkpoint(path))]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_validation_keeps_the_best(small_pool: Path, tmp_path: Path) -> None:
    Trainer(tiny(small_pool, tmp_path, steps=2, validation=str(small_pool), validate_every=1)).run()
    rows = [row for row in log(tmp_path) if row[0] == "validation"]
    means = {int(step): float(value) for _, step, _, name, value in rows if name == "mean"}
    assert sorted(means) == [1, 2]
    assert read_config(tmp_path / "best.safetensors") == TINY
    best = torch.load(tmp_path / STATE, weights_only=True)["best"]
    assert best == pytest.approx(max(means.values()), rel=1e-4)


def test_validation_of_a_network_that_changes_nothing(small_pool: Path) -> None:
    network = DiQP(TINY)
    with torch.no_grad():
        network.head.project.weight.zero_()
        network.head.project.bias.zero_()
    result = validate(network, PoolDataset(small_pool, neighbours=LITE.neighbours), torch.device("cpu"), "fp32")
    assert result["mean"] == result["worst"] == result["chroma"] == result["chroma_worst"] == 0 and len(result) > 5


def test_a_teacher_is_imitated_first(small_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is all there is at first, and it is asked no more once it has faded."""
    filters = {codec: torch.zeros(6, CLASSES, FEATURES) for codec in ("hevc", "av1")}
    Teacher(filters).save(tmp_path / "t.safetensors")
    asked: list[float] = []
    residual = Teacher.residual

    def watched(self: Teacher, *args: Any) -> torch.Tensor:
        asked.append(args[1])
        return residual(self, *args)

    monkeypatch.setattr(Teacher, "residual", watched)
    settings = tiny(small_pool, tmp_path / "a", teacher=str(tmp_path / "t.safetensors"), teacher_steps=(1, 2), steps=40)
    Trainer(settings).run()
    assert 4 <= len(asked) < 2 * 40
    asked.clear()
    Trainer(dataclasses.replace(settings, steps=42)).run()
    assert not asked, "a run resumed after the teacher's last step has no use for it"


def test_a_network_can_be_the_teacher(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another network with the same inputs is imitated, and comes nearer; one that sees other things is refused."""
    torch.manual_seed(5)
    teacher = DiQP(dataclasses.replace(TINY, joint=True))
    with torch.no_grad():
        teacher.head.project.weight.mul_(5)
    save_checkpoint(teacher, tmp_path / "teacher.safetensors")
    changes = {"teacher": str(tmp_path / "teacher.safetensors"), "teacher_steps": (150, 151), "steps": 150}
    Trainer(tiny(small_pool, tmp_path / "a", learning_rate=5e-3, **changes)).run()
    distances = [float(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if "distance" in line]
    assert len(distances) == 3 and distances[-1] < 0.7 * distances[0]
    other = dataclasses.replace(TINY, neighbours=2)
    with pytest.raises(DiqpError, match=r"neighbours 3.*2"):
        Trainer(tiny(small_pool, tmp_path / "b", network=other, **changes)).run()


def test_consistency_draws_to_the_mean_of_the_starts_answers(small_pool: Path, tmp_path: Path) -> None:
    """Those are what it makes of the same samples, mirrored along either axis or both, or as they are."""
    torch.manual_seed(5)
    start = DiQP(TINY)
    with torch.no_grad():
        start.head.project.weight.mul_(5)
    save_checkpoint(start, tmp_path / "start.safetensors")
    batch = one_batch(small_pool, start)

    def answer(network: DiQP, axes: tuple[int, ...] = ()) -> torch.Tensor:
        with torch.no_grad():
            return predict(network.eval(), TINY, batch, axes)[1][:, 0]

    mean = torch.stack([answer(start, axes) for axes in MIRRORINGS]).mean(0)
    distances = [(answer(start) - mean).square().mean().item()]
    for weight in (100.0, 0.0):
        changes = {"initial": str(tmp_path / "start.safetensors"), "steps": 100, "learning_rate": 2e-3}
        settings = tiny(small_pool, tmp_path / f"{weight}", consistency=weight, upside_down=0.5, **changes)
        distances.append((answer(load_checkpoint(Trainer(settings).run())) - mean).square().mean().item())
    assert distances[1] < 0.8 * distances[0] and distances[1] < 0.8 * distances[2]


@pytest.mark.parametrize("content", [None, b"no tensors"], ids=["missing", "damaged"])
def test_what_is_no_teacher_is_refused(content: bytes | None, small_pool: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(DiqpError, match=r"teacher.*--fit-teacher"):
        Trainer(tiny(small_pool, tmp_path / "a", teacher=str(tmp_path / "t.safetensors"))).run()


@pytest.mark.parametrize(
    ("network", "loss", "precision"),
    [
        (TINY, "charbonnier", "bf16"),
        (JOINT, "relative", "bf16"),
        (GUIDED, "relative", "fp32"),
        (RELEASED, "charbonnier", "bf16"),
        (RELEASED, "relative", "fp32"),
    ],
)
def test_every_kind_of_network_trains(
    network: DiQPConfig, loss: str, precision: str, small_pool: Path, tmp_path: Path
) -> None:
    settings = tiny(small_pool, tmp_path, network=network, loss=loss, precision=precision, steps=2, optimiser="adamw")
    trainer = Trainer(settings)
    before = {name: tensor.clone() for name, tensor in trainer.network.named_parameters()}
    trained = load_checkpoint(trainer.run())
    idle = {name for name, tensor in trainer.network.named_parameters() if torch.equal(tensor, before[name])}
    # A stretch of table rows is not visited, but every table is.
    assert not idle
    assert all(torch.isfinite(tensor).all() for tensor in trained.parameters())
    pool = PoolDataset(small_pool, look_ahead=2, neighbours=LITE.neighbours)
    result = validate(trained, pool, torch.device("cpu"), "fp32", items=1)
    assert math.isfinite(result["mean"])


@pytest.mark.parametrize("name", ["lite", "base", pytest.param("released", marks=pytest.mark.slow)])
def test_shipped_configurations_train(name: str, small_pool: Path, tmp_path: Path) -> None:
    changes = {"pool": str(small_pool), "out": str(tmp_path), "steps": 1, "batch": 1, "crop": 128, "precision": "bf16"}
    Trainer(load_settings(name, changes)).run()
    assert read_config(tmp_path / "last.safetensors").name == name


def one_batch(pool: Path, network: DiQP) -> Batch:
    dataset = PoolDataset(pool, crop=(64, 64), neighbours=network.config.neighbours)
    return Batches(dataset, network, 4, seed=0, refresh_every=100).make()


@pytest.mark.slow
def test_one_batch_can_be_learnt_by_heart(small_pool: Path) -> None:
    torch.manual_seed(0)
    network = DiQP(TINY)
    batch = one_batch(small_pool, network)
    matrices, rest = split(network)
    optimisers = [Muon(matrices, lr=1e-2), torch.optim.AdamW(rest, lr=5e-3)]
    for _ in range(60):
        tile, restored = predict(network, TINY, batch)
        loss = training_loss(tile, restored, batch, TINY, "relative", 0.1)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    with torch.no_grad():
        tile, restored = predict(network, TINY, batch)
        assert luma_gain(tile, restored, batch, TINY).mean() > 0.3


@pytest.mark.parametrize("axes", MIRRORINGS)
def test_answers_to_mirrored_batches_lie_as_the_batch_does(axes: tuple[int, ...], small_pool: Path) -> None:
    """All that the network is shown is mirrored, and so is what it answers."""
    network = DiQP(TINY)
    batch = one_batch(small_pool, network)
    assert batch.beside is not None

    class Watching(torch.nn.Module):
        def forward(self, tile: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            self.tile, self.location, self.beside = tile, rest[-3], rest[-1]
            return tile + torch.linspace(0, 1, tile.shape[-1]) + 2 * torch.linspace(0, 1, tile.shape[-2])[:, None]

    watching = Watching()
    tile, restored = predict(watching, TINY, batch, axes)
    torch.testing.assert_close(watching.tile, tile.flip(axes), rtol=0, atol=0)
    torch.testing.assert_close(watching.beside, batch.beside.flip(axes), rtol=0, atol=0)
    torch.testing.assert_close(watching.location, batch.location, rtol=0, atol=0)
    across, down = torch.linspace(0, 1, 64), torch.linspace(0, 1, 64)[:, None]
    expected = (across.flip(0) if -1 in axes else across) + 2 * (down.flip(0) if -2 in axes else down)
    torch.testing.assert_close(restored, tile + expected, rtol=0, atol=1e-6)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_are_what_the_pool_holds(small_pool: Path) -> None:
    """Crops are those of the pool's frames, errors those of the whole frames, thumbnails as the guides take them."""
    batch = one_batch(small_pool, DiQP(GUIDED))
    assert batch.luma.shape == batch.luma_true.shape == (4, 3, 64, 64)
    assert batch.chroma.shape == batch.chroma_true.shape == (4, 2, 3, 32, 32)
    assert batch.whole is not None and batch.whole.shape == (4, 3, 3, 64, 64)
    assert batch.ahead is not None and batch.ahead.shape == (4, 3, 64, 64)
    assert batch.beside is not None and batch.beside.shape == (4, 3, 6, 64, 64)
    assert (batch.beside - batch.luma[:, :, None]).abs().mean() < (batch.luma[:, :1] - batch.luma[:, 1:]).abs().mean()
    assert batch.luma.min() > -0.1 and batch.luma.max() < 1.1 and batch.chroma.abs().max() < 0.6
    assert batch.whole.min() >= 0 and batch.whole.max() <= 1
    dataset = PoolDataset(small_pool)
    errors: tuple[list[float], ...] = ([], [], [])
    for item in map(dataset.load_item, range(len(dataset))):
        unit = 1 << (item.source.bits - 8)
        for stream in item.degraded:
            luma = (stream.clip.y.astype(float) - item.source.y) / (219 * unit)
            chroma = (stream.clip.c.astype(float) - item.source.c) / (224 * unit)
            for known, plane in zip(errors, (luma, *chroma), strict=True):
                known += (plane**2).mean((1, 2)).tolist()
    for plane, known in enumerate(errors):
        for error in batch.error[:, plane].flatten().tolist():
            assert min(abs(error - one) for one in known) < 1e-4 * error


def test_a_pool_without_neighbours_is_refused_by_a_network_with_them(small_pool: Path) -> None:
    with pytest.raises(DiqpError, match="neighbours="):
        Batches(PoolDataset(small_pool, crop=(64, 64)), DiQP(TINY), 1, 0, 100).make()


def test_processes_draw_samples_of_their_own(small_pool: Path) -> None:
    network = DiQP(TINY)
    dataset = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    first, again, other = (Batches(dataset, network, 4, seed, 100).make().luma for seed in (1, 1, 1001))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_errors_while_making_batches_reach_the_loop(small_pool: Path) -> None:
    pool = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    source = Batches(pool, DiQP(TINY), 1, 0, 100, teach=lambda *_: 1 / 0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        next(iter(source))


def test_several_makers_draw_samples_of_their_own_and_end_with_the_run(small_pool: Path) -> None:
    dataset = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    before = set(threading.enumerate())
    with contextlib.closing(iter(Batches(dataset, DiQP(TINY), 2, 0, 100, makers=3))) as batches:
        drawn = [next(batches) for _ in range(12)]
        assert len(set(threading.enumerate()) - before) == 3
    assert set(threading.enumerate()) <= before
    # Some may be drawn twice from so small a pool, not every maker's the same.
    assert len({batch.luma.numpy().tobytes() for batch in drawn}) > 6
    items = [dataset.load_item(index) for index in range(len(dataset))]
    assert dataset.cached == (len(items), sum(map(dataset.footprint, items))), "decoded twice at once, kept once"


def test_a_pool_takes_little_to_another_process_and_is_whole_there(small_pool: Path) -> None:
    dataset = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    dataset.load_item(0)
    sent = pickle.dumps(dataset)
    # A pipe holds 64 KiB: with more, makers start one after the other.
    assert len(sent) < 4096, "neither items nor the index, which grows with the pool"
    arrived = pickle.loads(sent)
    assert arrived.entries == dataset.entries and arrived.cached == (0, 0)
    assert (arrived.load_item(1).source.y == dataset.load_item(1).source.y).all()


def test_makers_may_be_processes_which_end_with_the_run(small_pool: Path) -> None:
    dataset = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    source = Batches(dataset, DiQP(TINY), 2, 0, 100, makers=2, processes=True)
    with contextlib.closing(iter(source)) as batches:
        drawn = [next(batches) for _ in range(8)]
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert len({batch.luma.numpy().tobytes() for batch in drawn}) > 4, "every process draws its own"


def test_what_goes_wrong_in_a_process_is_said(small_pool: Path) -> None:
    dataset = PoolDataset(small_pool, crop=(64, 64))  # no neighbours, which the network wants
    batches = iter(Batches(dataset, DiQP(TINY), 2, 0, 100, makers=2, processes=True))
    with contextlib.closing(batches), pytest.raises(DiqpError, match="neighbours"):
        next(batches)


def test_a_maker_that_dies_ends_the_run_instead_of_stopping_it(small_pool: Path) -> None:
    dataset = PoolDataset(small_pool, crop=(64, 64), neighbours=LITE.neighbours)
    batches = iter(Batches(dataset, DiQP(TINY), 2, 0, 100, makers=2, processes=True))
    with contextlib.closing(batches), pytest.raises(DiqpError, match="makes batches died"):
        next(batches)
        for child in multiprocessing.active_children():
            child.kill()
        for _ in range(100):
            next(batches)


def test_a_run_may_use_samples_several_times(small_pool: Path, tmp_path: Path) -> None:
    run = Trainer(tiny(small_pool, tmp_path, steps=12, batch=4, reuse=3, reservoir=8))
    before = [p.clone() for p in run.network.parameters()]
    run.run()
    assert run.step == 12 and run._kept is not None and run._kept.made >= 16 and run._kept.drawn == 48
    assert run._kept.drawn <= 3 * run._kept.made + 4
    assert any(not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))


def test_a_pool_too_small_for_the_run_is_said_once(
    small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsdiqp.training.loop.MOST_SEEN", 5)
    Trainer(tiny(small_pool, tmp_path, steps=150, batch=2)).run()
    assert capsys.readouterr().err.count("drawn from more than 5 times each") == 1


def test_a_schedule_by_time_ends_with_the_minutes(small_pool: Path, tmp_path: Path) -> None:
    settings = TrainSettings(DiQPConfig(), "p", steps=10**6, warmup=1, learning_rate=1.0, final_learning_rate=0.0)
    by_time = dataclasses.replace(settings, minutes=10.0, by_time=True)
    assert learning_rate(100, by_time, seconds=300) == pytest.approx(0.5)
    assert learning_rate(100, by_time, seconds=700) == pytest.approx(0.0, abs=1e-9)
    assert learning_rate(100, settings, seconds=700) == pytest.approx(1.0, abs=1e-3)
    run = Trainer(tiny(small_pool, tmp_path, steps=10**6, minutes=0.02, by_time=True))
    run.run()
    first = run.step
    again = Trainer(tiny(small_pool, tmp_path, steps=10**6, minutes=0.02, by_time=True))
    again.run()
    assert again.step == first + 1, "the minutes are those of the whole run, and one step is always made"


# -- settings ----------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", r"no \[network\]"),
        ("stepz = 3\n[network]", "unknown settings: stepz; known are.*steps"),
        ("[network]", "--pool FOLDER"),
        ("pool = 'p'\n[network]\ngates = 3", "gates"),
        ("pool = 'p'\ncrop = 100\n[network]", "crop is 100.*multiple of 128"),
        ("pool = 'p'\noptimiser = 'sgd'\ncrop = 128\n[network]", "'sgd'; give adamw or muon"),
        ("pool = 'p'\nsteps = 'many'\n[network]", "steps is 'many'; give something like 100000"),
        ("pool = 'p'\nlearning_rate = '4e-3'\n[network]", "learning_rate is '4e-3'; give something like 0.0002"),
        ("pool = 'p'\nteacher_steps = [1]\n[network]", r"teacher_steps is \(1,\); give something like \[1000, 2000\]"),
        ("pool = 'p'\nsave_every = 0\n[network]", "save_every is 0; give 1 or more"),
        ("pool = 'p'\nminutes = -1\n[network]", "minutes is -1; give 0 or more"),
        ("pool = 'p'\nloss = 'l2'\ncrop = 128\n[network]", "'l2'; give charbonnier or relative"),
        ("pool = 'p'\nprecision = 'half'\ncrop = 128\n[network]", "'half'; give fp32, bf16 or fp16"),
        ("pool = 'p'\nupside_down = 2\ncrop = 128\n[network]", "upside_down is 2; it is a share"),
        ("pool = 'p'\nconsistency = 1\ncrop = 128\n[network]", "consistency is 1, colour 'rgb'"),
        ("pool = 'p'\nconsistency = -1\ncrop = 128\n[network]", "consistency is -1.*0 or more"),
        ("pool = ", "TOML"),
    ],
)
def test_settings_that_make_no_run(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DiqpError, match=message):
        load_settings(write(tmp_path, text))


def test_unknown_configurations_are_answered_with_the_shipped_ones() -> None:
    with pytest.raises(DiqpError, match=r"'light'.*base, lite, released"):
        load_settings("light")


def test_overrides(tmp_path: Path) -> None:
    settings = load_settings("lite", {"pool": "p", "steps": 5, "out": None})
    assert (settings.pool, settings.steps, settings.out, settings.network.name) == ("p", 5, "out/lite", "lite")


def test_released_configuration_is_the_papers() -> None:
    settings = load_settings("released", {"pool": "p"})
    published = dataclasses.asdict(DiQPConfig())
    ours = dataclasses.asdict(settings.network)
    assert {k for k in ours if ours[k] != published[k]} == {"name"}
    assert (settings.optimiser, settings.learning_rate, settings.weight_decay) == ("adamw", 2e-4, 0.02)
    assert (settings.loss, settings.batch, settings.crop, settings.precision) == ("charbonnier", 3, 512, "fp16")


def test_fp16_needs_a_gpu(small_pool: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DiqpError, match=r"fp16.*'bf16' or 'fp32'"):
        Trainer(tiny(small_pool, tmp_path, precision="fp16"))


# -- command -----------------------------------------------------------------------------------------------------------


CONFIG = """
crop = 64
batch = 1
precision = "fp32"
[network]
embed_dim = 8
widths = [8, 8, 16]
depths = [0, 0, 1, 0, 0]
heads = [1, 1, 2, 1, 1]
stem_scale = 2
look_around = []
look_ahead = []
location = "continuous"
colour = "ycbcr"
"""


def test_command(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, CONFIG)
    arguments = ["train", str(config), "--pool", str(small_pool), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "last.safetensors")
    assert main(["train", "light", "--pool", str(small_pool)]) == 1
    assert "light" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_train_one_network(small_pool: Path, tmp_path: Path) -> None:
    """As the guide says it for several GPUs. When their time is over they stop at the same step, not one by one."""
    config, out = write(tmp_path, CONFIG), tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vsdiqp"]
    command = [*launcher, "train", str(config), "--pool", str(small_pool), "--out", str(out), "--minutes", "0.02"]
    subprocess.run(
        [*command, "--threads", "1"], check=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert torch.load(out / STATE, weights_only=True)["step"] >= 1
    assert read_config(out / "last.safetensors").widths == (8, 8, 16)
