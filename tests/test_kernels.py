"""The CUDA kernels' own code, run on a CPU (``engines/tests/emulation.h``), is the reference; nvcc takes it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcdrl_rt import ops

SOURCES = ROOT / "engines" / "csrc"
ARCHITECTURES = (80, 86, 89, 90, 100)
DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels for the CPU")
    library = tmp_path_factory.mktemp("emulator") / "libemulate.so"
    flags = ["-std=c++17", "-O2", "-mf16c", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    source = ROOT / "engines" / "tests" / "emulate.cpp"
    subprocess.run(["g++", *flags, f"-I{SOURCES}", f"-I{source.parent}", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def emulate(
    library: ctypes.CDLL, features: Tensor, texts: Tensor | None, a: Tensor, c: Tensor, b: Tensor, count: int,
    heads: int, backwards: bool = False, shift: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``select_intervene``, or without texts ``intervene``, by the kernels; outputs start as what is no number.

    With a shift, ``…_norm``: the norm comes before the shifted tokens.
    """
    batch, tokens, dim = features.shape
    m = a.shape[0] // heads
    out = torch.full((batch, count, dim), torch.nan, dtype=features.dtype)
    indices = torch.full((batch, count), -1, dtype=torch.int64)
    readout = torch.full((batch, count, m), torch.nan)
    normed = None if shift is None else torch.full_like(out, torch.nan)
    arrays = [features, texts, a, c, b, shift, out, normed, indices, readout]
    classes = 0 if texts is None else len(texts)
    numbers = (features.dtype == torch.bfloat16, backwards, batch, tokens, count, dim, classes, heads, m)
    pointers = [ctypes.c_void_p(None if t is None else t.contiguous().data_ptr()) for t in arrays]
    library.mcdrl_emulate(*map(int, numbers), ctypes.c_float(1e-5), *pointers)
    return (out, indices, readout) if normed is None else (normed, out, indices, readout)


def make_inputs(
    batch: int, tokens: int, dim: int, classes: int, heads: int, confounders: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """Features (away from the mean, as a network's are), texts, and a folded attention with a say."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    features = draw(batch, tokens, dim) * 2 + 0.5
    columns = heads * confounders
    parts = (features, draw(classes, dim), draw(columns, dim) * 2 / dim**0.5, draw(columns), draw(dim, columns) / 2)
    return tuple(part.to(dtype) for part in parts)


def assert_near(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Relative error of the norm: one rounding of the normalised rows, one of the weights, one of the result."""
    bound = 2e-3 if dtype == torch.float16 else 1.6e-2
    for one, other in ((got[0], expected[0]), (got[-1], expected[-1])):
        assert (one.double() - other).norm() <= bound * other.norm()
    assert torch.allclose(got[-1].sum(dim=-1), torch.ones(got[-1].shape[:-1]), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "count", "dim", "classes", "heads", "confounders"),
    [
        (1, 256, 128, 256, 1, 8, 12),  # the embedded default
        (1, 49, 24, 768, 5, 8, 12),  # ViT-L's width
        (2, 33, 33, 1024, 3, 8, 3),  # RN50's, everything selected
        (3, 17, 1, 640, 2, 8, 15),  # one token; d no multiple of 256
        (1, 5, 3, 32, 4, 4, 64),  # the most confounders, the least width
    ],
)
def test_kernels_are_the_reference(
    emulator: ctypes.CDLL, batch: int, tokens: int, count: int, dim: int, classes: int, heads: int, confounders: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    features, texts, a, c, b = make_inputs(batch, tokens, dim, classes, heads, confounders, dtype)
    exact = [part.double() for part in (features, texts, a, c, b)]
    got = emulate(emulator, features, texts, a, c, b, count, heads)
    best = ops.similarity(exact[0], exact[1]).amax(dim=-1)
    expected = ops.select_intervene_reference(*exact, count, heads, 1e-5)
    assert torch.equal(got[1], expected[1]) or torch.allclose(
        best.gather(1, got[1]), best.gather(1, expected[1]), atol=1e-6
    )
    out, readout = ops.intervene_reference(ops.gather_tokens(exact[0], got[1]), *exact[2:], heads, 1e-5)
    assert_near(got, (out, readout), dtype)
    out, _, readout = emulate(emulator, features, None, a, c, b, tokens, heads)
    assert_near((out, readout), ops.intervene_reference(exact[0], *exact[2:], heads, 1e-5), dtype)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 70),
    share=st.floats(0, 1),
    dim=st.sampled_from([32, 64, 96, 160, 256]),
    heads=st.sampled_from([1, 2, 4, 8]),
    confounders=st.integers(1, 16),
    classes=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_kernels_on_any_shape(
    emulator: ctypes.CDLL, batch: int, tokens: int, share: float, dim: int, heads: int, confounders: int, classes: int,
    seed: int,
) -> None:  # fmt: skip
    confounders = -(-confounders * heads // 8) * 8 // heads if 8 % heads == 0 else confounders
    count = max(1, round(share * tokens))
    inputs = make_inputs(batch, tokens, dim, classes, heads, confounders, torch.float16, seed)
    got = emulate(emulator, *inputs, count, heads)
    exact = [part.double() for part in inputs]
    assert all(len(set(row)) == count and min(row) >= 0 and max(row) < tokens for row in got[1].tolist())
    out, readout = ops.intervene_reference(ops.gather_tokens(exact[0], got[1]), *exact[2:], heads, 1e-5)
    assert_near(got, (out, readout), torch.float16)
    again = emulate(emulator, *inputs, count, heads, backwards=True)  # threads in another order: no barrier is missing
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))
    shift = torch.randn(dim, generator=torch.Generator().manual_seed(seed)).half()
    normed, shifted, *rest = emulate(emulator, *inputs, count, heads, shift=shift)
    assert all(torch.equal(one, other) for one, other in zip(got[1:], rest, strict=True))
    expected = ops.norm_shift_reference(got[0].double(), None, None, shift.double(), 1e-5)
    for one, other in zip((normed, shifted), expected, strict=True):
        assert (one.double() - other).norm() <= 1e-3 * other.norm()


def test_ties_go_to_the_lower_index(emulator: ctypes.CDLL) -> None:
    features, texts, a, c, b = make_inputs(1, 3, 64, 2, 8, 12, torch.float16)
    kinds = torch.randint(0, 3, (2, 60), generator=torch.Generator().manual_seed(1))
    many = features[0][kinds]  # (2, 60, 64) of three kinds
    _, indices, _ = emulate(emulator, many, texts, a, c, b, 31, 8)
    best = ops.similarity(features.double(), texts.double()).amax(dim=-1)[0][kinds]
    expected = [sorted(range(60), key=lambda t, row=row: (-row[t], t))[:31] for row in best.tolist()]
    assert indices.tolist() == expected


def test_score_that_is_no_number_comes_first_and_breaks_nothing(emulator: ctypes.CDLL) -> None:
    features, texts, a, c, b = make_inputs(1, 20, 64, 1, 8, 12, torch.float16)
    features[0, [3, 11]] = torch.nan
    _, indices, _ = emulate(emulator, features, texts, a, c, b, 8, 8)
    assert indices[0, :2].tolist() == [3, 11] and len(set(indices[0].tolist())) == 8


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 9), dim=st.sampled_from([8, 64, 264, 1024, 1280, 2048]), affine=st.booleans(),
    offset=st.floats(-20, 20), seed=st.integers(0, 99),
)  # fmt: skip
def test_norm_beside_a_shift(
    emulator: ctypes.CDLL, rows: int, dim: int, affine: bool, offset: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, dim, generator=generator) + offset).half()
    shift, weight, bias = (torch.randn(dim, generator=generator).half() for _ in range(3))
    results = [torch.full_like(x, torch.nan) for _ in range(2)]
    arrays = [x, weight if affine else None, bias if affine else None, shift, *results]
    pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in arrays]
    emulator.mcdrl_emulate_norm(rows, dim, ctypes.c_float(1e-5), *pointers)
    exact = [None if t is None else t.double() for t in arrays[:4]]
    for got, expected in zip(results, ops.norm_shift_reference(*exact, 1e-5), strict=True):
        assert (got.double() - expected).norm() <= 1e-3 * expected.norm()


def make_level(
    batch: int, coarse: tuple[int, int, int], sharp: tuple[int, int, int], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse features, a gate and sharp features of (channels, height, width), channels last in memory."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (coarse, (sharp[0], *coarse[1:]), sharp)
    parts = (torch.randn(batch, *size, generator=generator).to(dtype) for size in sizes)
    first, gate, last = (part.contiguous(memory_format=torch.channels_last) for part in parts)
    return first, gate * 2, last


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2), channels=st.tuples(st.sampled_from([8, 24]), st.sampled_from([8, 16])),
    coarse=st.tuples(st.integers(1, 5), st.integers(1, 5)), sharp=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)), seed=st.integers(0, 99),
)  # fmt: skip
def test_level_of_any_size(
    emulator: ctypes.CDLL, batch: int, channels: tuple[int, int], coarse: tuple[int, int], sharp: tuple[int, int],
    size: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    parts = make_level(batch, (channels[0], *coarse), (channels[1], *sharp), torch.float16, seed)
    out = torch.full((batch, sum(channels), *size), torch.nan).half().contiguous(memory_format=torch.channels_last)
    sizes = (ctypes.c_int * 9)(batch, *coarse, channels[0], *sharp, channels[1], *size)
    emulator.mcdrl_emulate_lift(sizes, *[ctypes.c_void_p(t.data_ptr()) for t in (*parts, out)])
    expected = ops.lift_reference(*[part.double() for part in parts], *size)
    assert torch.allclose(out.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize("sizes", [((384, 16, 16), (192, 16, 16)), ((96, 9, 7), (64, 17, 14)), ((12, 4, 4), (8, 8, 8))])
def test_native_level_is_the_reference(
    sizes: tuple[tuple[int, int, int], tuple[int, int, int]], dtype: torch.dtype
) -> None:
    parts = [part.cuda() for part in make_level(3, *sizes, dtype)]
    got = torch.ops.mcdrl_rt.lift(*parts, 32, 28)
    expected = ops.lift_reference(*[part.double() for part in parts], 32, 28)
    bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    assert (got.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize("shape", [(1, 257, 1024), (64, 257, 768), (3, 1664), (2, 5, 12)])
def test_native_norm_is_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """float32, and 12 columns, are not the kernel's: they must come out of the reference all the same."""
    generator = torch.Generator().manual_seed(0)
    x, shift, weight, bias = (torch.randn(s, generator=generator) for s in (shape, *[shape[-1:]] * 3))
    given = [part.to("cuda", dtype) for part in (x, weight, bias, shift)]
    got = torch.ops.mcdrl_rt.norm_shift(*given, 1e-5)
    bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
    for one, other in zip(got, ops.norm_shift_reference(*[part.double() for part in given], 1e-5), strict=True):
        assert (one.double() - other).norm() <= bound * other.norm()


@pytest.mark.parametrize(
    "architecture", [pytest.param(number, marks=[pytest.mark.slow] * (number != 90)) for number in ARCHITECTURES]
)
def test_kernels_compile_for_every_architecture_without_a_word(architecture: int, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc 13")
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", "-std=c++17", "-O3", "-gencode", code, "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += ["-c", str(SOURCES / "launcher.cu"), "-o", str(tmp_path / "launcher.o")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stderr
    spilled = [line for line in ended.stderr.splitlines() if "spill" in line and " 0 bytes spill stores" not in line]
    assert spilled == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize(
    "shape", [(1, 256, 128, 768, 5), (64, 256, 128, 512, 5), (2, 49, 20, 1024, 1), (1, 4096, 2048, 256, 3)]
)
def test_native_operators_are_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """float32 is not the kernels': it must come out of the reference all the same."""
    batch, tokens, count, dim, classes = shape
    inputs = [part.cuda() for part in make_inputs(batch, tokens, dim, classes, 8, 12, dtype)]
    exact = [part.double() for part in inputs]
    got = torch.ops.mcdrl_rt.select_intervene(*inputs, count, 8, 1e-5)
    best = ops.similarity(exact[0], exact[1]).amax(dim=-1)
    expected = ops.top_tokens(ops.similarity(exact[0], exact[1]), count)
    near = torch.finfo(dtype).eps
    assert torch.allclose(best.gather(1, got[1]), best.gather(1, expected), atol=near)
    out, readout = ops.intervene_reference(ops.gather_tokens(exact[0], got[1]), *exact[2:], 8, 1e-5)
    assert_near((got[0].cpu(), got[2].cpu()), (out.cpu(), readout.cpu()), dtype)
    again = torch.ops.mcdrl_rt.select_intervene(*inputs, count, 8, 1e-5)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))
    views = [torch.stack([part, part], dim=-1)[..., 0] for part in inputs]  # every second number
    strided = torch.ops.mcdrl_rt.select_intervene(*views, count, 8, 1e-5)
    if dtype == torch.float32:  # the reference, which may sum what lies otherwise in another order: ties change places
        assert torch.allclose(best.gather(1, got[1]), best.gather(1, strided[1]), atol=near)
        same = got[1] == strided[1]
        assert same.float().mean() > 0.99
        for one, other in ((got[0], strided[0]), (got[2], strided[2])):
            torch.testing.assert_close(one[same], other[same], rtol=1e-4, atol=1e-5)
    else:
        assert all(torch.equal(one, other) for one, other in zip(got, strided, strict=True))
    tokens_only = torch.ops.mcdrl_rt.intervene(inputs[0], *inputs[2:], 8, 1e-5)
    assert_near(
        tuple(part.cpu() for part in tokens_only),
        tuple(part.cpu() for part in ops.intervene_reference(exact[0], *exact[2:], 8, 1e-5)),
        dtype,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize("shape", [(1, 256, 128, 768, 5), (8, 49, 20, 1024, 1), (1, 324, 194, 256, 1)])
def test_native_operators_with_the_norm_are_those_without_and_the_norm(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """What a fused model runs: the operators, and ``norm_shift`` of what they give."""
    batch, tokens, count, dim, classes = shape
    inputs = [part.cuda() for part in make_inputs(batch, tokens, dim, classes, 8, 12, dtype)]
    shift = inputs[1][0].contiguous()
    pairs = (
        (
            torch.ops.mcdrl_rt.select_intervene(*inputs, count, 8, 1e-5),
            torch.ops.mcdrl_rt.select_intervene_norm(*inputs, shift, count, 8, 1e-5, 1e-5),
        ),
        (
            torch.ops.mcdrl_rt.intervene(inputs[0], *inputs[2:], 8, 1e-5),
            torch.ops.mcdrl_rt.intervene_norm(inputs[0], *inputs[2:], shift, 8, 1e-5, 1e-5),
        ),
    )
    bound = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, 1e-5)
    for (out, *plain), (normed, shifted, *rest) in pairs:
        for one, other in zip(plain, rest, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        expected = ops.norm_shift_reference(out.double(), None, None, shift.double(), 1e-5)
        for one, other in zip((normed, shifted), expected, strict=True):
            assert (one.double() - other).norm() <= bound * other.norm()


@pytest.mark.gpu
def test_native_operators_are_captured_in_a_graph() -> None:
    inputs = [part.cuda() for part in make_inputs(1, 256, 768, 5, 8, 12, torch.float16)]
    expected = torch.ops.mcdrl_rt.select_intervene(*inputs, 128, 8, 1e-5)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        torch.ops.mcdrl_rt.select_intervene(*inputs, 128, 8, 1e-5)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = torch.ops.mcdrl_rt.select_intervene(*inputs, 128, 8, 1e-5)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.slow
def test_library_builds_and_loads_beside_torch_without_a_gpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None or torch.version.cuda is None:
        pytest.skip("needs nvcc 13 and a torch for CUDA")
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, "-DCMAKE_CUDA_ARCHITECTURES=90"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True)
    program = (
        "import torch; from mcdrl_rt import ops\n"
        "assert torch._C._dispatch_has_kernel_for_dispatch_key('mcdrl_rt::intervene', 'CUDA')\n"
        "x = torch.ones(1, 4, 32)\n"
        "torch.ops.mcdrl_rt.intervene(x, torch.ones(8, 32), torch.ones(8), torch.ones(32, 8), 2, 1e-5)"
    )
    library = {"MCDRL_NATIVE_LIBRARY": str(tmp_path / "libmcdrl_rt_native.so")}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ | library)


def test_foreign_library_is_left_out_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "foreign.so").write_bytes(b"no library")
    ended = subprocess.run(
        [sys.executable, "-c", "from mcdrl_rt import ops; print('goes on')"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MCDRL_NATIVE_LIBRARY": str(tmp_path / "foreign.so")},
    )
    assert ended.stdout == "goes on\n"
    assert "was built for another torch and is left out" in ended.stderr and "Traceback" not in ended.stderr
