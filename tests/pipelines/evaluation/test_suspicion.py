"""Whose fault a failure is."""

from __future__ import annotations

import pickle

import pytest
import torch

from pipelines.evaluation.suspicion import Suspicion, WorkerError, lost_device, owning_up, reason_of

LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`.\n")
ODD = RuntimeError("shape mismatch")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (LOST, True),
        (torch.AcceleratorError("device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (ValueError("the question asks what a CUDA error is"), False),
        (ODD, False),
    ],
)
def test_a_lost_device_is_told_from_everything_else(error: Exception, lost: bool) -> None:
    assert lost_device(error) is lost


def test_a_lost_device_is_the_processs_fault_at_once_and_the_batch_is_doubted() -> None:
    with pytest.raises(WorkerError, match="an illegal memory access") as told:
        Suspicion().failed(LOST, ["a", "b"])
    assert told.value.doubted == ("a", "b")
    assert reason_of(LOST) == "CUDA error: an illegal memory access was encountered"


def test_an_item_that_costs_two_processes_their_device_is_to_blame_if_it_was_the_last() -> None:
    with pytest.raises(WorkerError) as told:
        Suspicion(("a", "b", "c")).failed(LOST, ["b"])
    assert told.value.doubted == ("b",)
    last = Suspicion(told.value.doubted)
    last.failed(LOST, ["b"])
    assert last.worn


def test_three_failures_in_a_row_are_the_processs_and_two_are_not() -> None:
    found = Suspicion()
    for key in "ab":
        found.failed(ODD, [key])
    found.well()
    for key in "cd":
        found.failed(ODD, [key])
    found.failed(ODD, ["e", "f"])  # a batch is divided before anything is said about its items
    with pytest.raises(WorkerError, match=r"3 questions in a row .*shape mismatch") as told:
        found.failed(ODD, ["e"])
    assert told.value.doubted == ("c", "d", "e")
    assert not found.worn


def test_what_a_second_process_fails_at_too_is_to_blame_itself() -> None:
    found = Suspicion("abcd")
    for key in "abcd":
        found.failed(ODD, [key])


def test_a_value_that_is_refused_says_nothing_about_the_process() -> None:
    found = Suspicion()
    for key in "abcdef":
        found.failed(ValueError("no picture"), [key])


def test_a_process_owns_up_to_what_its_device_did_at_any_moment() -> None:
    for error in (LOST, torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(WorkerError), owning_up():
            raise error
    with pytest.raises(RuntimeError, match="shape mismatch") as told, owning_up():
        raise ODD
    assert told.type is RuntimeError


def test_doubts_travel_between_processes() -> None:
    there = pickle.loads(pickle.dumps(WorkerError("why", ["a", "b"])))
    assert (str(there), there.doubted) == ("why", ("a", "b"))
