"""Libraries that a wheel ships: which one a processor gets, and that they compute what one compiled here does."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from spintune.kernels.native import build
from spintune.kernels.native.compiler import SHIPPED, TARGETS, processor_features
from spintune.storage import cache_folder

pytestmark = pytest.mark.usefixtures("compiled")

REPOSITORY = Path(__file__).parents[2]
AVX2 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder with a library for every target, each of which this processor can load."""
    kept = next((cache_folder() / "kernels").iterdir())
    for target in TARGETS:
        shutil.copy(kept, tmp_path / target.file)
    return tmp_path


def origin(folder: Path, machine: str, features: str, wanted: str = "") -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: machine)
        patch.setattr(build, "processor_features", lambda: features)
        found = build._load_shipped(wanted, folder)
    return found.origin if found else None


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", f"{AVX512} avx512_bf16", "shipped for AVX-512 with bfloat16"),
        ("x86_64", f"{AVX512} avx512_bf16 amx_bf16 amx_tile", "shipped for AVX-512 with matrix units"),
        ("x86_64", f"{AVX512} avx512_bf16 amx_tile", "shipped for AVX-512 with bfloat16"),
        ("x86_64", AVX512, "shipped for AVX-512"),
        ("x86_64", AVX512.replace("avx512vl", ""), "shipped for AVX2"),
        ("x86_64", AVX2.replace("fma", "fma4"), None),
        ("aarch64", "fp asimd", "shipped for NEON"),
        ("riscv64", AVX512, None),
    ],
)
def test_a_processor_gets_the_best_that_it_can_run(
    shipped: Path, machine: str, features: str, expected: str | None
) -> None:
    assert origin(shipped, machine, features) == expected


def test_one_may_be_named(shipped: Path) -> None:
    assert origin(shipped, "x86_64", AVX512, "avx2") == "shipped for AVX2"
    lacks = "SPINTUNE_KERNELS=avx512-bf16 needs avx512_bf16, which this processor lacks; name another, or leave it out"
    with pytest.raises(build.NoKernelsError, match=f"^{lacks}$"):
        origin(shipped, "x86_64", AVX512, "avx512-bf16")
    with pytest.raises(build.NoKernelsError, match=r"^SPINTUNE_KERNELS=neon is for aarch64, and this is x86_64; "):
        origin(shipped, "x86_64", AVX512, "neon")


def test_code_of_other_sources_or_flags_is_not_loaded_and_a_damaged_file_is_told_of(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, avx2, _ = TARGETS
    whole = (shipped / avx2.file).read_bytes()
    (shipped / avx2.file).write_bytes(whole[:-100])
    with pytest.raises(build.NoKernelsError, match="is damaged"):
        origin(shipped, "x86_64", AVX2)
    (shipped / avx2.file).write_bytes(whole)
    assert avx2._replace(flags=("-march=native",)).file != avx2.file
    with monkeypatch.context() as patch:
        patch.setattr("spintune.kernels.native.compiler.sources", lambda: ["int vector_floats() { return 3; }"])
        assert origin(shipped, "x86_64", AVX2) is None


def made_wheel(folder: Path, **environment: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY, env={**os.environ, **environment}, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_wheel(tmp_path_factory.mktemp("wheel"), HATCH_BUILD_HOOK_ENABLE_CUSTOM="true")


def test_a_wheel_holds_the_recipes_their_schema_and_all_files_of_the_package(tmp_path: Path) -> None:
    made = made_wheel(tmp_path / "wheel")
    with zipfile.ZipFile(made) as packed:
        packed.extractall(tmp_path / "site")
    recipes = sorted((REPOSITORY / "recipes").iterdir())
    assert "recipe.schema.json" in [file.name for file in recipes]
    for file in recipes:
        assert (tmp_path / "site/spintune/recipe/files" / file.name).read_bytes() == file.read_bytes()
    package = REPOSITORY / "src/spintune"
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert (tmp_path / "site" / file.relative_to(package.parent)).read_bytes() == file.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "spintune", "recipes"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=True, capture_output=True,
    )  # fmt: skip
    shown = [line.split()[0] for line in done.stdout.decode().splitlines() if line[:1].strip()]
    assert set(shown) >= {file.stem for file in recipes if file.suffix == ".yaml"}


def unpacked_libraries(wheel: Path, folder: Path) -> dict[str, Path]:
    """The libraries of a wheel, by the name of their target."""
    with zipfile.ZipFile(wheel) as packed:
        files = [name for name in packed.namelist() if f"/{SHIPPED.name}/" in name]
        return {target.name: Path(packed.extract(x, folder)) for x in files for target in TARGETS if target.file in x}


def check_arithmetic(compiler: str, library: Path, *runner: str) -> int:
    """Runs arithmetic.cpp with a library: the number of floats in its vectors."""
    program = library.with_suffix(".check")
    source = Path(__file__).with_name("arithmetic.cpp")
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, "-std=c++17", "-O1", "-fopenmp", str(source), *link, "-o", str(program)], check=True)
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="libraries of another machine")
def test_each_library_of_the_wheel_computes_as_in_double(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith("_x86_64.whl")
    libraries = unpacked_libraries(wheel, tmp_path)
    assert libraries.keys() == {"amx", "avx512-bf16", "avx512", "avx2"}
    for target in TARGETS:
        if target.runs_on("x86_64", processor_features()):
            floats = check_arithmetic("g++", libraries[target.name])
            assert floats == (8 if target.name == "avx2" else 16)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64"))),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
def test_the_library_for_arm_computes_as_in_double(tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-g++"
    made = made_wheel(tmp_path / "wheel", HATCH_BUILD_HOOK_ENABLE_CUSTOM="true", CXX=compiler)
    assert made.name.endswith("_aarch64.whl")
    libraries = unpacked_libraries(made, tmp_path)
    assert libraries.keys() == {"neon"}
    assert check_arithmetic(compiler, libraries["neon"], "qemu-aarch64", "-L", "/usr/aarch64-linux-gnu") == 4


COMPUTE = """
import sys, torch
from spintune.kernels.native import attention, build, layers, products
draw = torch.Generator().manual_seed(0)
randn = lambda *shape: torch.randn(*shape, generator=draw)
a, b = randn(70, 1100), randn(1100, 100)
found = [products.product(a, b), products.product(a, b.t().contiguous().t())]
qkv = [randn(1, 90, h, 64).transpose(1, 2).requires_grad_() for h in (6, 2, 2)]
out = attention.attend_segments(*qkv, attention.AttentionPlan([[(0, 20, 0, 0), (20, 70, 0, 20)]]), 0.125, None)
x, w = randn(70, 128).requires_grad_(), randn(128).requires_grad_()
y, z = layers.rms_norm(x, w, 1e-5), layers.swiglu(x, x * 2)
found += [out, y, z, *torch.autograd.grad(out.square().sum() + (y * z).sum(), [*qkv, x, w])]
torch.save([one.detach() for one in found], sys.argv[1])
print(build.__file__, build.origin())
"""


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in processor_features(), reason="no library is for this processor")
def test_an_installed_wheel_needs_no_compiler_and_computes_what_one_compiled_here_does(
    wheel: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": ""}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # all packages of here, but for spintune
    install = ["--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)

    def compute(**environment: str) -> tuple[str, list[torch.Tensor]]:
        common = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path), "OMP_NUM_THREADS": "2"}
        done = subprocess.run(
            [str(python), "-c", COMPUTE, str(tmp_path / "found.pt")],
            env={**common, **environment}, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.stderr, []
        file, _, told = done.stdout.strip().partition(" ")
        assert Path(file).is_relative_to(site)
        return told, torch.load(tmp_path / "found.pt")

    told, expected = compute(SPINTUNE_KERNELS="native", PATH=os.environ["PATH"])
    assert told == "compiled here"
    shutil.rmtree(tmp_path / "cache")
    for wanted, title in (("", "AVX.+"), ("avx2", "AVX2")):
        told, found = compute(SPINTUNE_KERNELS=wanted)
        assert re.fullmatch(f"shipped for {title}", told)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "cache").exists()

    source = site / "spintune/kernels/native/vectors.h"
    source.write_text(source.read_text() + "// another version\n")
    told, _ = compute()
    assert "no shipped library fits this processor and version, and there is no C++ compiler" in told
