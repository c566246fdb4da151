"""What only a GPU shows: whole rows, streams, graphs, strided and overwritten logits, tables that several streams read.

Not one of these has run yet: they skip without a GPU, and `make gpu-proof` runs them where there is one.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from zoomzero_kernels import (
    frame_resample,
    grpo_loss,
    linear_grpo_loss,
    selective_logps,
    token_resample,
    warm_up,
)

pytestmark = pytest.mark.cuda

# The vocabulary of Qwen2.5-VL, which goes through every loop over a row many times, and one whose rows are unaligned.
VOCABULARIES = (151_936, 151_935)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
NORMALISED = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}


def make_inputs(batch: int, width: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Logits, (ids, advantages, mask) and old log-probabilities on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = (torch.randn(batch, width, vocab, device="cuda", generator=generator) * 2).to(dtype)
    ids = torch.randint(0, vocab, (batch, width), device="cuda", generator=generator)
    advantages = torch.randn(batch, width, device="cuda", generator=generator)
    mask = torch.rand(batch, width, device="cuda", generator=generator) < 0.8
    old = torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return logits, (ids, advantages, mask), old + 0.1 * torch.randn(old.shape, device="cuda", generator=generator)


def loss_and_gradient(
    logits: Tensor, tokens: tuple[Tensor, ...], old: Tensor, *, inplace: bool = False
) -> list[Tensor]:
    # Leaves cannot be overwritten: what is overwritten is a result of the model.
    leaf = logits.detach().requires_grad_()
    values = leaf * 1.0 if inplace else leaf
    loss = grpo_loss(values, *tokens, old_logps=old, beta=0.0, inplace=inplace).loss
    return [loss.detach(), *torch.autograd.grad(loss, leaf)]


def eager_loss_and_gradient(logits: Tensor, tokens: tuple[Tensor, ...], old: Tensor) -> list[Tensor]:
    """The same in float64."""
    ids, advantages, mask = tokens
    leaf = logits.detach().double().requires_grad_()
    logps = torch.log_softmax(leaf, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    ratio = (logps - old.double()).exp()
    objective = torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    loss = -(objective * mask).sum() / mask.sum()
    return [loss.detach(), *torch.autograd.grad(loss, leaf)]


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_rows(vocab: int, dtype: torch.dtype) -> None:
    logits, tokens, old = make_inputs(2, 5, vocab, dtype)
    expected = eager_loss_and_gradient(logits, tokens, old)
    got = loss_and_gradient(logits, tokens, old)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-4, atol=1e-5)
    scale = float(expected[1].abs().max())
    torch.testing.assert_close(got[1].double(), expected[1], rtol=tolerance, atol=tolerance * scale * 1e-3)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_equals_out_of_place_every_time(vocab: int, dtype: torch.dtype) -> None:
    # 140 rows: more than an H100 has processors, so that programs follow each other on one.
    inputs = make_inputs(4, 35, vocab, dtype)
    expected = loss_and_gradient(*inputs)
    for _ in range(20):
        for got, want in zip(loss_and_gradient(*inputs, inplace=True), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_entropy", [False, True])
def test_log_probabilities_backward(vocab: int, dtype: torch.dtype, with_entropy: bool) -> None:
    logits, (ids, slopes, _), _ = make_inputs(2, 5, vocab, dtype)
    leaf, truth = logits.detach().requires_grad_(), logits.detach().double().requires_grad_()
    result = selective_logps(leaf, ids, with_entropy=with_entropy)
    all_logps = torch.log_softmax(truth, -1)
    wanted = (all_logps.gather(-1, ids.unsqueeze(-1)).squeeze(-1) * slopes).sum()
    if with_entropy:
        logps, entropy = result
        ours = (logps * slopes).sum() + (entropy * slopes).sum()
        wanted = wanted + (-(all_logps.exp() * all_logps).sum(-1) * slopes).sum()
    else:
        ours = (result * slopes).sum()
    (got,), (want,) = torch.autograd.grad(ours, leaf), torch.autograd.grad(wanted, truth)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()) * 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_are_read_and_their_neighbours_left(dtype: torch.dtype) -> None:
    logits, tokens, old = make_inputs(2, 5, 8200, dtype)
    wide = torch.full((2, 9, 8300), torch.nan, device="cuda", dtype=dtype)
    view = wide[:, 2:7, 50:8250]
    view.copy_(logits)
    expected = loss_and_gradient(logits, tokens, old)
    for got, want in zip(loss_and_gradient(view, tokens, old), expected, strict=True):
        torch.testing.assert_close(got, want)
    view.fill_(torch.nan)
    assert wide.isnan().all()


def test_three_streams_at_once() -> None:
    inputs = [make_inputs(2, 5, 32_000 + offset, torch.bfloat16) for offset in range(3)]
    frames = torch.randint(0, 256, (4, 90, 130, 3), dtype=torch.uint8, device="cuda")
    grids = torch.tensor([[2, 6, 8]]), torch.tensor([[3, 4], [2, 4]])
    visual = torch.randn(96, 64, device="cuda")

    def results(index: int) -> list[Tensor]:
        patches = frame_resample(frames, size=(56, 84), **NORMALISED)
        return [*loss_and_gradient(*inputs[index]), patches, token_resample(visual, *grids)]

    expected = [results(index) for index in range(3)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    for _ in range(10):
        found = []
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found.append(results(index))
        torch.cuda.synchronize()
        for got, want in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_capture_and_replay() -> None:
    logits, tokens, old = make_inputs(2, 5, 8208, torch.bfloat16)
    frames = torch.randint(0, 256, (4, 90, 130, 3), dtype=torch.uint8, device="cuda")
    grids = torch.tensor([[2, 6, 8]]), torch.tensor([[3, 4], [2, 4]])
    visual = torch.randn(96, 64, device="cuda")
    warm_up()

    def work() -> list[Tensor]:
        patches = frame_resample(frames, size=(56, 84), **NORMALISED)
        return [*loss_and_gradient(logits, tokens, old), patches, token_resample(visual, *grids)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    # New values in the same memory: a replay computes with them.
    logits.mul_(0.5)
    frames.add_(3)
    visual.neg_()
    expected = work()
    for value in captured:
        value.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(got, want) for got, want in zip(captured, expected, strict=True))


def test_every_element_of_an_output_is_written() -> None:
    # Freed memory full of NaN is what the allocator hands out next.
    for dtype in DTYPES:
        for layout in ("patches", "tchw"):
            frames = torch.randint(0, 256, (3, 50, 70, 3), dtype=torch.uint8, device="cuda")
            options = {"size": (56, 84), "layout": layout, "dtype": dtype, **NORMALISED}
            shape = frame_resample(frames, **options).shape
            torch.full(shape, torch.nan, device="cuda", dtype=dtype)
            assert frame_resample(frames, **options).isfinite().all()
        tokens = torch.randn(24, 65, device="cuda").to(dtype)
        torch.full((6, 65), torch.nan, device="cuda", dtype=dtype)
        assert token_resample(tokens, torch.tensor([[1, 4, 6]]), torch.tensor([[2, 3]])).isfinite().all()


def test_frames_may_be_dropped_right_after_the_launch() -> None:
    """As the video reader drops a decoder's frames: their memory is poisoned on the same stream once they are gone."""
    source = torch.randint(0, 256, (8, 180, 320, 3), dtype=torch.uint8)
    expected = frame_resample(source, size=(56, 84), **NORMALISED)
    for _ in range(20):
        frames = source.cuda()
        place = frames.data_ptr()
        patches = frame_resample(frames, size=(56, 84), **NORMALISED)
        del frames
        poison = torch.full_like(source, 255, device="cuda")
        assert poison.data_ptr() == place, (
            "the allocator must hand out the frames' memory for this test to mean anything"
        )
        assert torch.equal(patches.cpu(), expected)


def test_tables_dropped_from_the_cache_outlive_the_streams_that_read_them() -> None:
    from zoomzero_kernels import token_resample as module_function
    from zoomzero_kernels.token_resample import _tables_on_device

    grids = torch.tensor([[4, 26, 46]]), torch.tensor([[13, 23]] * 4)
    tokens = torch.randn(4 * 26 * 46, 1024, device="cuda")
    expected = module_function(tokens, *grids)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(20):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)
            late = module_function(tokens, *grids)
        _tables_on_device.cache_clear()
        gc.collect()
        # What the tables' memory would be handed to, were it free.
        junk = [torch.full((size,), -1, dtype=torch.int64, device="cuda") for size in (28, 598, 1024)]
        torch.cuda.synchronize()
        assert torch.equal(late, expected)
        del junk


def test_nothing_waits_for_the_device() -> None:
    logits, tokens, old = make_inputs(2, 5, 8208, torch.bfloat16)
    frames = torch.randint(0, 256, (4, 90, 130, 3), dtype=torch.uint8, device="cuda")
    indices = torch.tensor([3, 1])
    grids = torch.tensor([[2, 6, 8]]), torch.tensor([[3, 4], [2, 4]])
    visual = torch.randn(96, 64, device="cuda")

    def work() -> None:
        loss_and_gradient(logits, tokens, old)
        frame_resample(frames, indices, size=(56, 84), **NORMALISED)
        token_resample(visual, *grids)

    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_linear_loss_of_many_rows() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(4, 40, 256, device="cuda", generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(32_000, 256, device="cuda", generator=generator) / 16).bfloat16().requires_grad_()
    logits = (hidden @ weight.t()).detach()
    _, tokens, _ = make_inputs(4, 40, 32_000, torch.bfloat16)
    old = torch.log_softmax(logits.float(), -1).gather(-1, tokens[0].unsqueeze(-1)).squeeze(-1)
    loss = linear_grpo_loss(hidden, weight, *tokens, old_logps=old).loss
    gradients = torch.autograd.grad(loss, (hidden, weight))
    truth = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    leaf = truth[0] @ truth[1].t()
    logps = torch.log_softmax(leaf, -1).gather(-1, tokens[0].unsqueeze(-1)).squeeze(-1)
    ratio = (logps - old.double()).exp()
    objective = torch.min(ratio * tokens[1], ratio.clamp(0.8, 1.28) * tokens[1])
    wanted = torch.autograd.grad(-(objective * tokens[2]).sum() / tokens[2].sum(), truth)
    for got, want in zip(gradients, wanted, strict=True):
        assert float((got.double() - want).norm() / want.norm()) < 2e-2
