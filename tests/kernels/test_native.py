"""The compiled attention against its definition in float64, and what happens where it cannot be compiled."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from command_server import Command
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spintune.engine import packing
from spintune.engine.attention import AttentionParams
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.packing import PackedLayout, PromptGroup, causal_segments
from spintune.generation import kv_cache as slots
from spintune.generation.batch import BatchGenerator, GenerationLimits
from spintune.generation.sampling import Sampling
from spintune.kernels.native import attention as native
from spintune.kernels.native import build
from spintune.kernels.native.attention import AttentionPlan, attend_segments, attend_slots, can_attend
from spintune.kernels.native.compiler import TARGETS, processor_features, unsealed

(AVX2,) = (target for target in TARGETS if target.name == "avx2")

pytestmark = pytest.mark.usefixtures("compiled")

lengths = st.integers(1, 6) | st.sampled_from([15, 16, 17, 31, 33, 64, 129, 150])
branches = st.lists(st.builds(PromptGroup, lengths, st.lists(lengths, max_size=3).map(tuple)), min_size=1, max_size=3)
heads = st.sampled_from([(4, 2), (3, 3), (9, 3), (5, 1)])
widths = st.sampled_from([16, 32, 48, 64, 80, 128])
windows = st.sampled_from([None, 1, 3, 20, 100])


def drawn(total: int, heads: tuple[int, ...], width: int, seed: int = 0) -> list[Tensor]:
    """Float32 ``[1, heads, total, width]`` as models make them: tokens first in memory."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1, total, h, width, generator=draw).transpose(1, 2).requires_grad_() for h in heads]


def by_definition(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor) -> Tensor:
    """Every query against every key, then a mask; in the tensors' own type."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return (q @ k.transpose(2, 3) * scale).masked_fill(~visible, -torch.inf).softmax(-1) @ v


@given(branches=branches, heads=heads, width=widths, window=windows)
@example(branches=[PromptGroup(130, (140, 33, 1)), PromptGroup(2, ())], heads=(9, 3), width=64, window=None)
def test_outputs_and_gradients_are_those_of_the_definition(
    branches: list[PromptGroup], heads: tuple[int, int], width: int, window: int | None
) -> None:
    total = sum(branch.length for branch in branches)
    mine = drawn(total, (heads[0], heads[1], heads[1]), width)
    assert can_attend(*mine)
    wanted = [x.detach().double().requires_grad_() for x in mine]
    found = attend_segments(*mine, AttentionPlan(causal_segments(branches)), 0.3, window)
    visible = torch.block_diag(*[branch.visible(window).double() for branch in branches]).bool()
    expected = by_definition(*wanted, 0.3, visible)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    prefix=st.sampled_from([0, 1, 16, 21]),
    heads=heads,
    width=widths,
    window=windows,
)
def test_a_token_sees_the_prefix_its_slot_and_itself(
    counts: list[int], prefix: int, heads: tuple[int, int], width: int, window: int | None
) -> None:
    room, (own, shared) = max(counts) + 2, heads
    q, k, v = (x.detach() for x in drawn(len(counts), (own, shared, shared), width))
    before = tuple(x.detach() for x in drawn(prefix, (shared, shared), width, seed=1))
    draw = torch.Generator().manual_seed(2)
    stores = tuple(torch.randn(len(counts) + 1, shared, room, width, generator=draw) for _ in range(2))
    kept = tuple(store.clone() for store in stores)
    found = attend_slots(q, k, v, before, stores, torch.tensor(counts), 0.3, window)
    for slot, count in enumerate(counts):
        keys, values = (
            torch.cat([first[0], store[slot, :, :count], new[0, :, slot : slot + 1]], 1)[None].double()
            for first, store, new in zip(before, kept, (k, v), strict=True)
        )
        position = torch.arange(prefix + count + 1)
        visible = position > position[-1] - (window or 10**6)
        expected = by_definition(q[:, :, slot : slot + 1].double(), keys, values, 0.3, visible)
        torch.testing.assert_close(found[:, :, slot : slot + 1].double(), expected, rtol=1e-4, atol=1e-5)
        for store, was, new in zip(stores, kept, (k, v), strict=True):
            assert torch.equal(store[slot, :, count], new[0, :, slot])
            store[slot, :, count] = was[slot, :, count]
    assert all(torch.equal(store, was) for store, was in zip(stores, kept, strict=True))


def test_prefixes_may_lie_in_other_tensors() -> None:
    q, k, v = (x.detach() for x in drawn(50, (4, 2, 2), 32))
    before = tuple(x.detach() for x in drawn(37, (2, 2), 32, seed=1))
    found = attend_segments(q, k, v, AttentionPlan([[(0, 20, 0, 37)], [(20, 30, 0, 37)]]), 0.3, None, before)
    for begin, end in ((0, 20), (20, 50)):
        keys, values = (torch.cat([x, y[:, :, begin:end]], 2).double() for x, y in zip(before, (k, v), strict=True))
        visible = torch.ones(end - begin, 37 + end - begin).tril(37).bool()
        expected = by_definition(q[:, :, begin:end].double(), keys, values, 0.3, visible)
        torch.testing.assert_close(found[:, :, begin:end].double(), expected, rtol=1e-4, atol=1e-5)


def test_neither_threads_nor_neighbors_change_a_bit() -> None:
    branch = PromptGroup(45, (150, 7))
    mine = drawn(3 * branch.length, (9, 3, 3), 64)
    alone = [x.detach()[:, :, : branch.length].requires_grad_() for x in mine]
    results = []
    for tensors, plan, threads in (
        (mine, AttentionPlan(causal_segments([branch] * 3)), 1),
        (mine, AttentionPlan(causal_segments([branch] * 3)), 3),
        (alone, AttentionPlan(causal_segments([branch])), 1),
    ):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out = attend_segments(*tensors, plan, 0.125, None)
            grads = torch.autograd.grad(out[:, :, : branch.length].square().sum(), tensors)
        finally:
            torch.set_num_threads(before)
        results.append([x[:, :, : branch.length] for x in (out, *grads)])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_large_scores_stay_exact_and_what_is_no_number_stays_none() -> None:
    q, k, v = (x.detach() for x in drawn(40, (2, 2, 2), 16))
    plan, visible = AttentionPlan([[(0, 40, 0, 0)]]), torch.ones(40, 40).tril().bool()
    found = attend_segments(100 * q, 100 * k, v, plan, 1.0, None)
    expected = by_definition(100 * q.double(), 100 * k.double(), v.double(), 1.0, visible)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)  # scores of 1e5 have 2 digits behind 1
    k[0, 1, 7, 3] = torch.nan
    spoilt = attend_segments(q, k, v, plan, 1.0, None)
    assert spoilt[0, 1, 7:].isnan().all()
    assert spoilt[0, 0].isfinite().all()


def test_a_plan_must_fit_its_tokens() -> None:
    with pytest.raises(ValueError, match="4 tokens does not fit 5"):
        attend_segments(*drawn(5, (2, 2, 2), 16), AttentionPlan([[(0, 4, 0, 0)]]), 1.0, None)


def test_what_it_cannot_do_is_left_to_torch() -> None:
    fine = drawn(3, (4, 2, 2), 16)
    assert can_attend(*fine)
    assert not can_attend(*(x.double() for x in fine))
    assert not can_attend(*drawn(3, (4, 2, 2), 6))
    assert not can_attend(*drawn(3, (65, 1, 1), 16))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3_text"])
def test_models_score_and_train_as_transformers_alone(family, build, queries, plain) -> None:
    changes = {"hidden_size": 64, "head_dim": 16}
    engine = LogProbEngine(build(family, torch.float32, **changes))
    reference = build(family, torch.float64, **changes)
    assert engine.packed
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        patch.setattr(packing, "attend_segments", lambda *a: calls.append(1) or attend_segments(*a))
        found = engine(queries).sum_N
        assert calls
    expected = plain(reference, queries)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    for (name, one), other in zip(engine.model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None:
            assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5, name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_generation_is_the_same_with_and_without(family, build, words) -> None:
    engine = LogProbEngine(build(family, torch.float32, hidden_size=64, head_dim=16))
    prompts = [(1, 2, 3, 4), (1, 2, 9), (1, 2, 50, 51, 52, 53, 54, 60, 61), (1, 2, 7)]
    generator = BatchGenerator(engine, words, frozenset(), GenerationLimits(3))
    assert engine.packed
    together = generator.generate(prompts, Sampling(20, seed=3))
    with pytest.MonkeyPatch.context() as patch:
        for module in (packing, slots):
            patch.setattr(module, "can_attend", lambda *_: False)
        without = generator.generate(prompts, Sampling(20, seed=3))
    assert [c.ids for c in together] == [c.ids for c in without]
    assert [c.logprob for c in together] == pytest.approx([c.logprob for c in without], abs=1e-4)


def test_bfloat16_is_computed_in_float32() -> None:
    branch = PromptGroup(20, (30, 9))
    q, k, v = (x.detach().bfloat16() for x in drawn(branch.length, (4, 2, 2), 32))
    with torch.autocast("cpu", torch.bfloat16):
        found = PackedLayout([branch], torch.device("cpu")).attend(0, q, k, v, AttentionParams(0.3))
    expected = by_definition(q.double(), k.double(), v.double(), 0.3, branch.visible(None))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-7, atol=1e-6)


def reason(tmp_path: Path, **environment: str) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for name, value in environment.items():
            patch.setenv(name, value)
        return build.why_not()


def test_it_is_compiled_once_for_a_processor_and_a_compiler(tmp_path: Path) -> None:
    assert reason(tmp_path) is None
    (kept,) = (tmp_path / "spintune" / "kernels").iterdir()
    changed = kept.stat().st_mtime_ns
    assert reason(tmp_path) is None
    assert kept.stat().st_mtime_ns == changed


@pytest.mark.skipif(not AVX2.runs_on(platform.machine(), processor_features()), reason="the processor lacks AVX2")
def test_a_kind_of_processor_that_no_wheel_is_here_for_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registers of AVX2 have 256 bits: 8 floats, on processors of 16, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SPINTUNE_KERNELS", "avx2")
    monkeypatch.setattr(build, "_load_shipped", partial(build._load_shipped, folder=tmp_path))
    assert build.origin() == "compiled here for AVX2"
    (kept,) = (tmp_path / "spintune/kernels").iterdir()
    library = tmp_path / "avx2.so"  # a name of its own: the loader would give the library that is in memory
    library.write_bytes(unsealed(kept.read_bytes(), kept))
    assert ctypes.CDLL(str(library)).vector_floats() == 8


def test_without_a_compiler_the_reason_is_said(tmp_path: Path) -> None:
    assert reason(tmp_path, CXX="no-such-compiler") == "there is no C++ compiler (no-such-compiler); install g++"
    assert reason(tmp_path, SPINTUNE_KERNELS="off") == "switched off by SPINTUNE_KERNELS"
    assert reason(tmp_path, SPINTUNE_KERNELS="avx9").startswith(
        "SPINTUNE_KERNELS=avx9 is none of off, native, amx, avx512-bf16"
    )
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho 'x.cpp:1: error: no' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert reason(tmp_path, CXX=str(broken)) == f"{broken} cannot compile it: x.cpp:1: error: no"
    assert not list((tmp_path / "spintune").glob("kernels/*"))


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    """A shortened library can be opened, and kills the process with SIGBUS when it is called."""
    assert reason(tmp_path) is None
    (kept,) = (tmp_path / "spintune" / "kernels").iterdir()
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", b"not a library", whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        kept.unlink()  # another file: the old one is in memory
        kept.write_bytes(damaged)
        with pytest.raises(build.NoKernelsError):
            build._load_kept(kept)
    assert reason(tmp_path) is None
    build._load_kept(kept)


def test_code_that_another_user_may_have_written_is_not_loaded(tmp_path: Path) -> None:
    """In a cache that a team shares, another member could put code under the name that is looked up."""
    assert reason(tmp_path) is None
    folder = tmp_path / "spintune" / "kernels"
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept.chmod(0o664)
    with pytest.raises(PermissionError, match="somebody else"):
        build._load_kept(kept)
    kept.rename(tmp_path / "forged")
    (tmp_path / "forged").chmod(0o644)
    kept.symlink_to(tmp_path / "forged")
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))):
        build._load_kept(kept)
    assert reason(tmp_path) is None  # compiled for this process alone


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_code_in_the_folder_of_another_user_is_not_loaded(tmp_path: Path) -> None:
    assert reason(tmp_path) is None
    folder = tmp_path / "spintune" / "kernels"
    (kept,) = folder.iterdir()
    for path in (kept, folder):
        os.chown(path, 54321, -1)
        with pytest.raises(PermissionError, match="somebody else"):
            build._load_kept(kept)
        os.chown(path, 0, -1)
    build._load_kept(kept)


@pytest.mark.parametrize(("compiler", "level"), [("false", "WARNING"), ("no-such-compiler", "INFO")])
def test_a_compiler_that_fails_is_warned_of_and_none_is_not(
    compiler: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level("INFO"):
        assert build._kernels.__wrapped__() is None
    assert [record.levelname for record in caplog.records] == [level]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "spintune").write_text("a file where the folder should be")
    assert reason(tmp_path) is None


def test_threads_are_torchs_own() -> None:
    """A second OpenMP would let its idle threads wait in a loop where torch's should run."""
    program = (
        "import torch; from spintune.kernels.native.build import kernels; from pathlib import Path; kernels();"
        "maps = Path('/proc/self/maps').read_text().split();"
        "print(len({word for word in maps if 'gomp' in word or 'iomp' in word}))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert found.stdout.split() == ["1"]
    assert native.kernels() is not None


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of other processors")
@pytest.mark.parametrize(("processor", "floats"), [("x86-64-v3", 8), ("x86-64", 4)])
def test_older_processors_compute_the_same_with_narrower_vectors(processor: str, floats: int, tmp_path: Path) -> None:
    """The tests of this file and of the other layers, compiled for less than this machine has."""
    folder = Path(__file__).parent
    program = (
        "from spintune.kernels.native import attention, build\n"
        f"build._FLAGS = tuple(f.replace('native', '{processor}') for f in build._FLAGS)\n"
        f"assert build.vector_floats() == {floats}\n"
    )
    files = [folder / "test_native.py", folder / "test_fused.py", folder / "test_native_products.py"]
    they_pass(tmp_path, program, files, os.environ)


@pytest.mark.slow
def test_without_compiled_code_everything_is_computed_all_the_same(tmp_path: Path) -> None:
    kernels, engine = Path(__file__).parent, Path(__file__).parents[1] / "engine"
    files = [
        kernels / "test_linear.py",
        kernels / "test_fused.py",
        engine / "test_logprobs.py",
        engine / "test_recompute.py",
    ]
    program = "from spintune.kernels.native import build\nassert build.kernels() is None\n"
    they_pass(tmp_path, program, files, {**os.environ, build.SWITCH: "off"})


def they_pass(folder: Path, program: str, files: Sequence[Path], environment: Mapping[str, str]) -> None:
    """Runs quick tests in a process of their own, after a program."""
    ending = (
        "import pytest, sys\nsys.exit(pytest.main(['-q', '-m', 'not slow', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    (folder / "program.py").write_text(program + ending)
    done = Command(folder / "program.py", *files, environment=environment)
    assert done.wait() == 0, done.out
