"""Two questions to the tensor cores, by little kernels that NVRTC compiles: how fast is mma.sync in
TF32, and are its sums truncated as the stand-in on the host has it (csrc/cuda/ptx/mma.h)?"""

import torch
from torch import Tensor

MMA = r"""
#define MMA(d, a, b) asm volatile( \
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 " \
    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
"""

# Eight independent accumulators a warp hide the latency of each; 8 warps a block.
RATE = (
    MMA
    + r"""
extern "C" __global__ void mma_rate(float* out, int rounds) {
  float d[8][4] = {};
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = __float_as_uint(1.0f + threadIdx.x);
  for (int i = 0; i < 2; ++i) b[i] = __float_as_uint(1e-3f * threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) MMA(d[i], a, b);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""
)
WARPS, ACCUMULATORS, FLOPS = 8, 8, 2 * 16 * 8 * 8

# One product a warp: D[16][8] = A[16][8] B[8][8] + C[16][8], all row by row.
ONE = (
    MMA
    + r"""
extern "C" __global__ void mma_one(const float* a, const float* b, const float* c, float* out) {
  a += blockIdx.x * 128, b += blockIdx.x * 64, c += blockIdx.x * 128, out += blockIdx.x * 128;
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, top = g * 8 + 2 * q, low = top + 64;
  unsigned x[4] = {__float_as_uint(a[g * 8 + q]), __float_as_uint(a[(g + 8) * 8 + q]),
                   __float_as_uint(a[g * 8 + q + 4]), __float_as_uint(a[(g + 8) * 8 + q + 4])};
  unsigned y[2] = {__float_as_uint(b[q * 8 + g]), __float_as_uint(b[(q + 4) * 8 + g])};
  float d[4] = {c[top], c[top + 1], c[low], c[low + 1]};
  MMA(d, x, y);
  out[top] = d[0], out[top + 1] = d[1], out[low] = d[2], out[low + 1] = d[3];
}
"""
)


def compiled(source: str, name: str):
    # A private name of torch's (2.9 on): whoever calls this says so if it is gone.
    return torch.cuda._compile_kernel(source, name)


def tf32_rate(device, rounds: int = 4096) -> float:
    """TFLOP/s of mma.sync alone, all operands in registers."""
    kernel = compiled(RATE, "mma_rate")
    blocks = 8 * device.properties.multi_processor_count
    out = torch.empty(blocks * WARPS * 32, device=device.torch)

    def call():
        kernel((blocks, 1, 1), (WARPS * 32, 1, 1), [out, rounds])

    device.gpu_seconds(call, 3)
    seconds = min(device.gpu_seconds(call, 1) for _ in range(5))
    return blocks * WARPS * ACCUMULATORS * FLOPS * rounds / seconds / 1e12


def as_tf32(values: Tensor) -> Tensor:
    """Without the bits of float32 that tf32 lacks."""
    return (values.view(torch.int32) & ~0x1FFF).view(torch.float32)


def modelled(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A B + C: exact products, summed with C in double precision one after the other, then
    truncated to float32: what the stand-in on the host does."""
    total = c.double()
    for k in range(a.shape[-1]):
        total = total + a.double()[..., :, k, None] * b.double()[..., k, None, :]
    rounded = total.float()
    away = rounded.double().abs() > total.abs()
    return torch.where(away, rounded.nextafter(torch.zeros_like(rounded)), rounded)


def operands(products: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of sizes that differ by powers of two up to 2^12, because bits are lost where a small
    product meets a large sum."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        scale = 2.0 ** torch.randint(-6, 7, shape, generator=generator)
        return torch.randn(shape, generator=generator) * scale

    a, b = as_tf32(draw(products, 16, 8)), as_tf32(draw(products, 8, 8))
    return a, b, draw(products, 16, 8)


def share_as_modelled(device, products: int = 256) -> float:
    """The share of results, in per cent, whose bits are those of the model."""
    kernel = compiled(ONE, "mma_one")
    a, b, c = operands(products)
    out = torch.empty_like(c, device=device.torch)
    kernel((products, 1, 1), (32, 1, 1), [*(t.to(device.torch) for t in (a, b, c)), out])
    return 100 * (out.cpu() == modelled(a, b, c)).double().mean().item()
