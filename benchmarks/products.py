"""The parts of a step on a CPU, torch's beside those that spintune takes: products, attention, layers.

    python benchmarks/products.py [--threads 1] [--repeats 3]      three minutes

Times are processor seconds of alternating calls, so that other work on the machine disturbs them little. What each part
is worth in a whole step: ``kernels_worth.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from machine import describe
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from spintune.engine import attention
from spintune.generation import kv_cache as slots
from spintune.kernels.allocator import reuse_memory
from spintune.kernels.native import attention as native
from spintune.kernels.native import layers as native_layers
from spintune.kernels.native import products as native_products

SHAPES = ((976, 576, 1536), (976, 1536, 576), (976, 576, 576), (976, 576, 192), (627, 576, 49152))
LENGTHS = (48, 150, 300, 800)


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def compiled(x: Tensor, weight: Tensor) -> Tensor:
    return native_products.product(x, weight.t())


def by_vectors(x: Tensor, weight: Tensor) -> Tensor:
    """Not in the matrix units of a processor."""
    return native_products.product(x, weight.t(), vectors=True)


def autocast(x: Tensor, weight: Tensor) -> Tensor:
    """What autocast does with factors in float32, and with a result that the next layer takes in float32."""
    return linear(x.bfloat16(), weight.bfloat16()).float()


def rounded(x: Tensor, weight: Tensor) -> Tensor:
    return native_products.product(x, weight.t(), rounded=True)


def few_rows(repeats: int) -> None:
    print("\nAll products of one token for some running answers, ms: torch, oneDNN with weights in its order, packed\n")
    print("| rows | torch | oneDNN | packed |\n|---|---|---|---|")
    shapes = 30 * [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    weights = [torch.rand(shape) - 0.5 for shape in [*shapes, (49152, 576)]]
    reordered = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]
    packed = [native_products.pack_right(weight.t()) for weight in weights]
    for rows in (1, 8, 32, 64, 128):
        inputs = {width: torch.rand(rows, width) for width in (576, 1536)}
        x = [inputs[weight.shape[1]] for weight in weights]
        ways = (
            lambda x=x: [linear(*pair) for pair in zip(x, weights, strict=True)],
            lambda x=x: [onednn(*pair) for pair in zip(x, reordered, strict=True)],
            lambda x=x: [native_products.product_of_packed(*pair) for pair in zip(x, packed, strict=True)],
        )
        times = [[seconds(way, 2) for way in ways] for _ in range(repeats)]
        print(f"| {rows} | {' | '.join(f'{1000 * min(found):.1f}' for found in zip(*times, strict=True))} |")


def never(*_: object) -> bool:
    """A function, for a Mock would remember, and so keep in memory, every tensor that it is asked about."""
    return False


def seconds(call: Callable[[], object], times: int) -> float:
    """Of the processor, a call; of ``times``, or as many as take a fifth of a second, since its clock is coarse."""
    call()
    began, done = time.process_time(), 0
    while done < times or time.process_time() - began < 0.2:
        call()
        done += 1
    return (time.process_time() - began) / done


def matrices(title: str, ways: Sequence[Callable[[Tensor, Tensor], Tensor]], repeats: int) -> None:
    print(f"\n{title}\n")
    print("| rows x in x out | forward | gradient of the input | gradient of the weight |\n|---|---|---|---|")
    for rows, inside, outside in SHAPES:
        x, weight, grad = torch.randn(rows, inside), torch.randn(outside, inside), torch.randn(rows, outside)
        cells = []
        for a, b in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
            times = {f: [] for f in ways}
            for f in list(times) * repeats:
                times[f].append(seconds(lambda f=f, a=a, b=b: f(a, b), 8))
            rates = [2e-9 * rows * inside * outside / min(found) for found in times.values()]
            cells.append(", ".join(f"{rate:.0f}" for rate in rates))
        print(f"| {rows} x {inside} x {outside} | {' | '.join(cells)} |")


def distances() -> None:
    """How far products of float32 are from float64's, of one shape and of the head's gradient, whose sums are long."""
    print("\nDistance from float64, rms, relative to the result: torch, by vectors, compiled\n")
    print("| rows x sums x columns | torch | vectors | compiled |\n|---|---|---|---|")
    for rows, inside, outside in ((976, 576, 1536), (627, 49152, 576)):
        x, weight = torch.randn(rows, inside), torch.randn(outside, inside)
        exact = linear(x.double(), weight.double())
        found = [float((way(x, weight) - exact).norm() / exact.norm()) for way in (linear, by_vectors, compiled)]
        print(f"| {rows} x {inside} x {outside} | {' | '.join(f'{one:.1e}' for one in found)} |")


def compare(title: str, calls: dict[str, Callable[[], object]], repeats: int) -> str:
    cells = [1000 * min(seconds(call, 8) for _ in range(repeats)) for call in calls.values()]
    return f"| {title} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


def attending(repeats: int) -> None:
    print("\nAttention of 9 query and 3 key heads of 64, forward and backward, ms: torch's fused one, and compiled\n")
    print("| tokens | float32 | bfloat16 | compiled |\n|---|---|---|---|")
    for length in LENGTHS:
        plan = native.AttentionPlan([[(0, length, 0, 0)]])

        def torchs(q: Tensor, k: Tensor, v: Tensor) -> None:
            scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()

        def compiled(q: Tensor, k: Tensor, v: Tensor, plan: native.AttentionPlan = plan) -> None:
            native.attend_segments(q, k, v, plan, 0.125, None).sum().backward()

        def of(dtype: torch.dtype, length: int = length) -> list[Tensor]:
            return [torch.randn(1, heads, length, 64, dtype=dtype, requires_grad=True) for heads in (9, 3, 3)]

        wide, half = of(torch.float32), of(torch.bfloat16)
        calls = {
            "float32": lambda x=wide: torchs(*x),
            "bfloat16": lambda x=half: torchs(*x),
            "compiled": lambda x=wide, c=compiled: c(*x),
        }
        print(compare(str(length), calls, repeats))


def layers(repeats: int) -> None:
    print("\nLayers of 976 tokens, forward and backward, ms: torch's, and compiled\n")
    print("| layer | torch | compiled |\n|---|---|---|")
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((976, 576), (576,)))
    gate, up = (torch.randn(976, 1536, requires_grad=True) for _ in range(2))
    norms = {
        "torch": lambda: (weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))).sum().backward(),
        "compiled": lambda: native_layers.rms_norm(x, weight, 1e-5).sum().backward(),
    }
    gates = {
        "torch": lambda: (silu(gate) * up).sum().backward(),
        "compiled": lambda: native_layers.swiglu(gate, up).sum().backward(),
    }
    for title, calls in (("norm of 576", norms), ("gate of 1,536", gates)):
        print(compare(title, calls, repeats))


def one_more_token(repeats: int) -> None:
    print("\nOne more token for 128 sequences of 60 to 200, a layer, ms: torch's products in groups, and compiled\n")
    print("| | torch | compiled |\n|---|---|---|")
    lengths = torch.linspace(60, 200, 128).long().tolist()
    cache = slots.SlotCache(128, 256, torch.device("cpu"))
    q, k, v = (torch.randn(1, heads, 128, 64) for heads in (9, 3, 3))
    rule = attention.AttentionParams(0.125)
    cache.plan(lengths, [])
    with torch.inference_mode():
        for layer in range(30):  # as many as a model has, so that no cache holds them all
            cache.attend(layer, q, k, v, rule)

        def layer_after_layer() -> None:
            for layer in range(30):
                cache.attend(layer, q, k, v, rule)

        def torchs() -> None:
            with mock.patch.object(slots, "can_attend", never):
                layer_after_layer()

        times = [min(seconds(call, 2) for _ in range(repeats)) for call in (torchs, layer_after_layer)]
        print(f"| attention of slots | {' | '.join(f'{1000 * time / 30:.2f}' for time in times)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    print(f"{describe()['processor']['name']}, {options.threads} threads")
    title = "Products in float32, GFLOP/s: torch, oneDNN, compiled by vectors, and in matrix units where there are any"
    matrices(title, (linear, onednn, by_vectors, compiled), options.repeats)
    if native_products.can_round():
        title = "Products in bfloat16 of float32 matrices, GFLOP/s: torch with its casts, compiled"
        matrices(title, (autocast, rounded), options.repeats)
    distances()
    few_rows(options.repeats)
    attending(options.repeats)
    layers(options.repeats)
    one_more_token(options.repeats)


if __name__ == "__main__":
    main()
