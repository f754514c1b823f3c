"""The network computes what the released model computes, within the tolerances measured for fp32."""

import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.network import vectors as v
from vsdiqp.network import DiQP, DiQPConfig, load_checkpoint
from vsdiqp.network.lewin import FeedForward, LeWinBlock, WindowAttention, shift_mask
from vsdiqp.network.packing import PackedConv, PackedUpsample
from vsdiqp.network.stem import PixelHead, PixelStem

CONFIGS = {"a": v.A, "b": v.B, "s": v.S}


@functools.lru_cache(maxsize=1)
def built(name: str) -> DiQP:
    return v.network(CONFIGS[name])


def data(name: str) -> dict[str, np.ndarray]:
    with np.load(v.DATA / f"{name}.npz") as file:
        return dict(file)


def run(network: DiQP, inputs: v.Inputs) -> Tensor:
    with torch.inference_mode():
        return network(**inputs)


def close(actual: Tensor, expected: np.ndarray, largest: float, rms: float | None = None) -> None:
    assert tuple(actual.shape) == expected.shape
    error = (actual.double() - torch.from_numpy(expected).double()).abs()
    assert error.max().item() <= largest
    if rms is not None:
        assert error.square().mean().sqrt().item() <= rms


@pytest.fixture(params=["s", "a", "b"])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[DiQP, dict[str, np.ndarray]]]:
    yield built(request.param), data(f"vectors_{request.param}")


def test_output(case: tuple[DiQP, dict[str, np.ndarray]]) -> None:
    network, expected = case
    close(run(network, v.inputs(128))[..., ::2, ::2], expected["output"], 1e-5, 2e-6)


def test_stages(case: tuple[DiQP, dict[str, np.ndarray]]) -> None:
    """Every stage's tokens, relative to their largest value."""
    network, expected = case
    seen: dict[str, Tensor] = {}
    modules: dict[str, torch.nn.Module] = {"in": network.stem, "mid": network.bottleneck}
    for i in range(4):
        modules |= {f"enc{i}": network.encoder[i], f"down{i}": network.down[i]}
        modules |= {f"up{i}": network.up[i], f"dec{i}": network.decoder[i]}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in modules.items()
    ]
    run(network, v.inputs(128))
    for hook in hooks:
        hook.remove()
    for name, tokens in seen.items():
        reference = expected[f"stage_{name}"]
        rows = reference.shape[1]
        step = tokens.shape[1] // rows
        close(tokens[:, ::step, ::step], reference, 1e-5 * float(np.abs(reference).max()))


@pytest.mark.parametrize("name", ["s", pytest.param("b", marks=pytest.mark.slow)])
def test_variations(name: str) -> None:
    """Changing one input changes the output as it does in the released model."""
    network, expected = built(name), data(f"vectors_{name}")
    names = [k for k in expected if k.startswith("var_")]
    assert len(names) == 8
    base = expected["output"][..., ::4, ::4]
    for changed in names:
        output = run(network, v.variations(128)[changed[4:]])[..., ::8, ::8]
        close(output, expected[changed], 1e-5, 2e-6)
        assert np.abs(expected[changed] - base).max() > 1e-4, "a variation that changes nothing proves nothing"


def test_guides() -> None:
    network, expected = built("a"), data("vectors_a")
    for decay, prefix in ((None, "ahead_L"), (0.01, "ahead_wd001_L")):
        inputs = v.inputs(128)
        if decay is not None:
            inputs["weight_decay"].fill_(decay)
        with torch.inference_mode():
            around, scaled = network.frame_guides(inputs["around"], inputs["ahead_scaled"], inputs["weight_decay"])
            assert network.look_ahead is not None
            cropped = network.look_ahead.cropped(inputs["ahead_tile"], inputs["weight_decay"])
        for level in range(4):
            ahead = torch.cat([cropped[level], scaled[level]], -1)
            for tokens, name in ((ahead, f"{prefix}{level + 1}"), (around[level], f"around_L{level + 1}")):
                reference = expected[name]
                thinned = tokens.flatten(1, 2)
                thinned = thinned[:, :: max(1, thinned.shape[1] // 128)]
                close(thinned, reference, 1e-5 * float(np.abs(reference).max()))


def test_second_of_a_batch() -> None:
    """Items of a batch do not touch each other."""
    network, expected = built("a"), data("vectors_a")
    first = v.inputs(128)
    second = {k: t.flip(1) for k, t in first.items() if t.dim() == 5 and t.shape[1] == 3}
    second["location"] = v.location(128, qp=255, middle=297, left=7168, top=3584)
    second["weight_decay"] = torch.full_like(first["weight_decay"], 0.01)
    batch = {k: torch.cat([first[k], second[k]], 1 if k == "location" else 0) for k in first}
    output = run(network, batch)
    close(output[1:, ..., ::4, ::4], expected["batch2_second"], 1e-5, 2e-6)
    close(output[:1, ..., ::2, ::2], expected["output"], 1e-5, 2e-6)


def test_location_channel() -> None:
    from vsdiqp.network.lost import tile_pattern

    network, expected = built("a"), data("vectors_a")
    with torch.inference_mode():
        base = network.lost(v.location(128))
        other = network.lost(v.location(128, qp=255, middle=297, left=7168, top=3584))
    close(tile_pattern(base, 16, 16)[..., 0], expected["lost_16"], 2e-6)
    close(tile_pattern(base, 128, 128)[:, :16, :16, 0], expected["lost_128"], 2e-6)
    close(tile_pattern(other, 16, 16)[..., 0], expected["lost_16_qp255_mid297_l7168_t3584"], 2e-6)


def test_precisions() -> None:
    """fp16 and bf16 stay within what they were measured to differ (spec: 4e-3, 6e-4; 3e-2, 4e-3)."""
    expected = data("vectors_s")["output"]
    for dtype, largest, rms in ((torch.bfloat16, 3e-2, 4e-3), (torch.float16, 4e-3, 6e-4)):
        output = run(v.network(v.S).to_precision(dtype), v.inputs(128))
        assert output.dtype == torch.float32
        close(output[..., ::2, ::2], expected, largest, rms)


def part(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    """Fill a module with the released weights of a key prefix."""
    state = {}
    own = module.state_dict()
    for key, shape in v.KEYS.items():
        if key.startswith(prefix):
            mapped = v.released_name(key)
            name = max((n for n in own if mapped is not None and mapped.endswith(n)), key=len)
            assert name not in state and list(own[name].shape) == shape
            state[name] = v.weight(key, shape)
    module.load_state_dict(state, strict=True)
    return module.eval()


def unit_input(name: str, *shape: int) -> Tensor:
    values = v.symmetric(int(np.prod(shape)), f"unit/{name}").astype(np.float32)
    return torch.from_numpy(values.reshape(shape))


@pytest.mark.parametrize(
    ("name", "module", "prefix", "shape"),
    [
        ("block_plain", lambda: LeWinBlock(90, 2, 8, 3, 3, 0), "encoderlayer_1.blocks.0.", (1, 16, 16, 90)),
        ("block_shift", lambda: LeWinBlock(90, 2, 8, 3, 3, 4), "encoderlayer_1.blocks.1.", (1, 16, 16, 90)),
        ("block_shift_one_window", lambda: LeWinBlock(720, 16, 8, 3, 3, 4), "conv.blocks.1.", (1, 8, 8, 720)),
        ("block_shift_720_16", lambda: LeWinBlock(720, 16, 8, 3, 3, 4), "conv.blocks.1.", (1, 16, 16, 720)),
        ("attn_nomask", lambda: WindowAttention(90, 2, 8), "encoderlayer_1.blocks.0.attn.", (4, 64, 90)),
        ("ffn", lambda: FeedForward(90, 3, 3), "encoderlayer_1.blocks.0.mlp.", (1, 16, 16, 90)),
        ("down0", lambda: PackedConv(20, 30, (3, 4, 4), 2, 1), "dowsample_0.", (1, 16, 16, 60)),
        ("down3", lambda: PackedConv(130, 240, (3, 4, 4), 2, 1), "dowsample_3.", (1, 16, 16, 390)),
        ("up3", lambda: PackedUpsample(65, 15), "upsample_3.", (1, 16, 16, 195)),
        ("up0", lambda: PackedUpsample(251, 120), "upsample_0.", (1, 8, 8, 753)),
        ("output_proj", lambda: PixelHead(30), "output_proj.", (1, 16, 16, 90)),
        ("input_proj", lambda: PixelStem(15), "input_proj.", (1, 3, 3, 16, 16)),
    ],
)
def test_unit(name: str, module: object, prefix: str, shape: tuple[int, ...]) -> None:
    expected = data("units")[name]
    with torch.inference_mode():
        output = part(module(), prefix)(unit_input(name, *shape))  # type: ignore[operator]
    if output.dim() == 4:
        output = output.flatten(1, 2)
    thinned = output[:, ::2] if output.dim() == 3 else output
    close(thinned, expected, 3e-5)


def test_shift_masks() -> None:
    for side, name in ((16, "shiftmask_16"), (8, "shiftmask_8")):
        assert np.array_equal((shift_mask(side, side, 8, 4) != 0).numpy(), data("units")[name] != 0)


def test_location_units() -> None:
    expected = data("units")
    with torch.inference_mode():
        pattern = built("b").lost(torch.from_numpy(expected["lost_loc"]).t().reshape(6, -1, 1))
    close(pattern.repeat(1, 2, 2, 1)[..., 0], expected["lost_8x8"], 2e-6)


def released_file(config: DiQPConfig) -> bytes:
    """A released checkpoint as saved on a GPU: torch's format, every storage tagged ``cuda:0``."""
    state = {key: v.weight(key, shape) for key, shape in v.shapes(config).items()}
    for key in list(state):
        if key.endswith("relative_position_bias_table"):
            state[key.replace("bias_table", "index")] = torch.zeros(64, 64, dtype=torch.int64)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    tagged = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tagged, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in content
            target.writestr(entry.filename, content)
    return tagged.getvalue()


def test_released_checkpoint_loads_strictly(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_AV1.pt"
    path.write_bytes(released_file(v.S))
    network = load_checkpoint(path)
    assert network.config.codecs == ("av1",)
    assert network.config.depths == v.S.depths and network.config.heads == v.S.heads
    close(run(network, v.inputs(128))[..., ::2, ::2], data("vectors_s")["output"], 1e-5, 2e-6)


@pytest.mark.slow
def test_full_tile() -> None:
    """Vector c: the released network at its own tile size."""
    expected = data("vectors_c")
    output = run(built("b"), v.inputs(512))
    close(output[..., ::16, ::16], expected["output_stride16"], 1e-5, 2e-6)
    close(output[..., -64:, -64:], expected["output_patch_corner_64"], 1e-5, 2e-6)
    close(output[..., 255, :], expected["output_row_255"], 1e-5, 2e-6)
    close(output[..., :, 256], expected["output_col_256"], 1e-5, 2e-6)
