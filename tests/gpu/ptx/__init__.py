"""A GPU for tests where there is none: runs PTX, the code that Triton and NVRTC hand to the driver, with NumPy.

What Triton's interpreter cannot show is seen here: what the compiler made of a kernel. That is layouts and swizzles of
shared memory, pipelines of asynchronous copies, tensor cores (mma.sync and Hopper's wgmma), and Hopper's copy engine.
Programs run in lockstep, many at a time. Semantics are those of NVIDIA's "Parallel Thread Execution ISA"; as unkind as
that allows:

- Asynchronous work happens as late as it may: copies land, and matrix products read their operands, when they are
  waited for. Code that reads too early, or overwrites too early, gives wrong results.
- What threads have written to shared memory, or copied there asynchronously, neither wgmma nor the copy engine may
  read before a fence between the proxies: a `Fault`. (A fence by one thread counts for all of its program.)
- Global memory is what the caller names. Anything else, in part or misaligned, is a `Fault`; so is shared memory
  beyond a program's own. Shared memory and registers start as NaN.

It does not see races between threads that a barrier or another fence should order, nor how the driver's assembler does
its part. Instructions are known as far as the kernels here use them; others are a `Fault`.

`code` reads, `machine` holds and goes on, `instructions` and `matrices` do, `launches` starts.
"""
