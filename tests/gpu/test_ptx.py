"""The kernels as compiled for GPUs that are not here, on the machine of `ptx`; and what that machine sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ptx.code import Fault, parse
from ptx.launches import launch

HERE = Path(__file__).parent
FILES = ("fused", "fused_cells", "fused_joins", "described", "depthwise")
FEW = "base-fp16 or (bf16 and (half or frame_block))"
CHOSEN = {
    80: FEW,
    90: f"{FEW} or described or drawn or (bf16 and (answer or given or convolution and all)) or (fp16 and whole)",
    120: FEW,
}
"""Tests by architecture, most of them where Hopper's own instructions are; sm_86 and 89 get the code of sm_80. All of
them take minutes, mostly to compile: VSDIQP_PTX=90 pytest tests/gpu/test_fused_cells.py, say."""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_compiled_kernels_do_what_the_plain_module_does(architecture: int):
    pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")
    # In a process of its own: this one may have Triton's interpreter in the compiler's place.
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"VSDIQP_PTX": str(architecture), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN[architecture]]
    command += [str(HERE / f"test_{name}.py") for name in FILES]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


HEAD = """
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 128
{
    .reg .pred %p<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 16;
    add.s64 %rd1, %rd1, %rd3;
    add.s64 %rd2, %rd2, %rd3;
    shl.b32 %r2, %r1, 4;
    mov.b32 %r3, global_smem;
    add.s32 %r2, %r2, %r3;
"""
WRITE = """
    ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r2];
    st.global.v4.b32 [%rd2 + 0], {%r10, %r11, %r12, %r13};
    ret;
}
"""
COPY = "    cp.async.cg.shared.global [%r2 + 0], [%rd1 + 0], 0x10, 16;\n    cp.async.commit_group;\n"


def run(body: str, source: torch.Tensor, shared: int = 2048) -> torch.Tensor:
    """What 128 threads write, four numbers each."""
    out = torch.zeros(512)
    launch(parse(HEAD + body), (1,), 128, [source.data_ptr(), out.data_ptr()], [source, out], shared)
    return out


def numbers() -> torch.Tensor:
    return torch.arange(512, dtype=torch.float32)


def test_a_copy_lands_when_it_is_waited_for():
    assert torch.equal(run(COPY + "cp.async.wait_group 0;\nbar.sync 0;\n" + WRITE, numbers()), numbers())
    assert run(COPY + "bar.sync 0;\n" + WRITE, numbers()).isnan().all()
    # All groups but the last: the only one is the last.
    assert run(COPY + "cp.async.wait_group 1;\nbar.sync 0;\n" + WRITE, numbers()).isnan().all()


def test_memory_that_was_not_given_is_not_touched():
    with pytest.raises(Fault, match="belong to no tensor"):
        run(COPY + "cp.async.wait_group 0;\n" + WRITE, numbers()[:256].clone())
    with pytest.raises(Fault, match="of shared memory"):
        run(COPY + "cp.async.wait_group 0;\n" + WRITE, numbers(), shared=1024)
    with pytest.raises(Fault, match="misaligned"):
        run("add.s64 %rd1, %rd1, 4;\n" + COPY + "cp.async.wait_group 0;\n" + WRITE, numbers())


def test_threads_that_part_meet_again():
    """Some jump over a store, and all of them shuffle afterwards; a loop of as many rounds as a thread's lane."""
    body = """
    st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1};
    and.b32 %r4, %r1, 1;
    setp.eq.b32 %p1, %r4, 0;
    @%p1 bra $L_even;
    mov.b32 %r5, 7;
    st.shared.b32 [%r2], %r5;
    $L_even:
    shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1;
    st.shared.b32 [%r2+4], %r6;
    and.b32 %r7, %r1, 31;
    mov.b32 %r8, 0;
    $L_again:
    add.s32 %r8, %r8, 2;
    setp.lt.s32 %p2, %r8, %r7;
    @%p2 bra $L_again;
    st.shared.b32 [%r2+8], %r8;
    """
    found = run(body + WRITE, numbers()).view(torch.int32).view(128, 4)
    thread = torch.arange(128)
    assert torch.equal(found[:, 0].long(), torch.where(thread % 2 == 0, thread, 7))
    assert torch.equal(found[:, 1].long(), 1 - thread % 2)
    assert torch.equal(found[:, 2].long(), (thread % 32 + 1).div(2, rounding_mode="floor").clamp(min=1) * 2)
    assert torch.equal(found[:, 3].long(), thread)


def product(
    swizzle: int, late: str = "", fence: str = "fence.proxy.async.shared::cta;"
) -> tuple[torch.Tensor, torch.Tensor]:
    """64x16 by 16x8 from shared memory, in rows of 32 bytes; what is found and what is right."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(-8, 9, (rows, 16), generator=generator).half() for rows in (64, 8))
    memory = torch.zeros(4096, dtype=torch.uint8)
    for start, matrix in ((0, a), (2048, b)):
        raw = matrix.contiguous().view(torch.uint8).flatten()
        at = torch.arange(raw.numel()) + start
        memory[at ^ (at >> 7 & 1) << 4] = raw
    out = torch.zeros(512)
    descriptor = (256 >> 4) << 32 | swizzle << 62
    signed = descriptor - (1 << 64) if descriptor >> 63 else descriptor
    body = f"""
    cp.async.cg.shared.global [%r2 + 0], [%rd1 + 0], 0x10, 16;
    cp.async.cg.shared.global [%r2 + 2048], [%rd1 + 2048], 0x10, 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    {fence}
    bar.sync 0;
    mov.b64 %rd4, {signed};
    add.s64 %rd5, %rd4, 128;
    mov.b32 %r10, 0f00000000;
    mov.b32 %r11, %r10;
    mov.b32 %r12, %r10;
    mov.b32 %r13, %r10;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%r10,%r11,%r12,%r13}}, %rd4, %rd5, 1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    {late}
    wgmma.wait_group.sync.aligned 0;
    st.global.v4.b32 [%rd2 + 0], {{%r10, %r11, %r12, %r13}};
    ret;
}}
"""
    launch(parse(HEAD + body), (1,), 128, [memory.data_ptr(), out.data_ptr()], [memory, out], 4096)
    # Warp, row, pair; half, number.
    found = out.view(4, 8, 4, 2, 2).permute(0, 3, 1, 2, 4).reshape(64, 8)
    return found, a.float() @ b.float().T


def test_matrix_products_read_their_operands_when_they_are_waited_for():
    found, right = product(swizzle=3)
    assert torch.equal(found, right)
    found, right = product(swizzle=3, late="st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1};")
    assert not torch.equal(found, right), "operands were overwritten before"
    found, right = product(swizzle=2)
    assert not torch.equal(found, right), "another swizzle than the one they were written with"
    found, right = product(swizzle=3, late="st.global.v4.b32 [%rd2 + 0], {%r10, %r11, %r12, %r13};\nret;")
    assert not found.any(), "results were read before"


@pytest.mark.parametrize("fence", ["", "fence.acq_rel.cta;", "membar.cta;"])
def test_what_threads_wrote_needs_a_fence_between_proxies(fence: str):
    """Triton 3.6 leaves it out between cp.async and wgmma."""
    with pytest.raises(Fault, match="without a fence"):
        product(swizzle=3, fence=fence)


def test_what_is_not_known_is_said():
    with pytest.raises(Fault, match="redux"):
        run("redux.sync.add.s32 %r5, %r1, -1;\n" + WRITE, numbers())
