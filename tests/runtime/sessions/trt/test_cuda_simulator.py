"""The simulators fail on what CUDA and TensorRT refuse or corrupt silently: one wrong use a test."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.simulators.bench import H2D, LOCAL, Bench
from tests.simulators.cuda_parts import cudaError_t, cudaMemcpyKind
from tests.simulators.tensorrt_simulator import TensorRTSimulator
from tests.simulators.tensorrt_types import ExecutionContextAllocationStrategy
from tests.simulators.writes import SimulatorError

D2H, D2D = cudaMemcpyKind.cudaMemcpyDeviceToHost, cudaMemcpyKind.cudaMemcpyDeviceToDevice


def test_right_use_gives_the_right_numbers_once_synchronised(bench: Bench) -> None:
    x, y = bench.uploaded([1, 2, 3, 4]), bench.malloc()
    assert bench.context(x=x, y=y).execute_async_v3(bench.stream)
    host, view = bench.pinned([0, 0, 0, 0])
    bench.cuda.cudaMemcpyAsync(host, y, 16, D2H, bench.stream)
    assert view.tolist() == [0, 0, 0, 0], "nothing is done before the stream is synchronised"
    bench.sync()
    assert view.tolist() == [2, 4, 6, 8]


def test_pinned_memory_that_is_overwritten_too_early_is_read_as_it_is_then(bench: Bench) -> None:
    source, view = bench.pinned([1, 2, 3, 4])
    x, y = bench.malloc(), bench.malloc()
    bench.cuda.cudaMemcpyAsync(x, source, 16, H2D, bench.stream)
    view[:] = 7
    bench.context(x=x, y=y).execute_async_v3(bench.stream)
    host, found = bench.pinned([0, 0, 0, 0])
    bench.cuda.cudaMemcpyAsync(host, y, 16, D2H, bench.stream)
    bench.sync()
    assert found.tolist() == [14] * 4


def test_an_address_that_is_not_set(bench: Bench) -> None:
    assert not bench.context(x=bench.uploaded([1] * 4)).execute_async_v3(bench.stream)
    assert bench.log.lines[-1] == "tensors without an address: y"


def test_a_shape_outside_the_profile(bench: Bench) -> None:
    context = bench.context()
    assert not context.set_input_shape("x", (4, 4))
    assert "not within [1, 4] and [3, 4] of profile 0" in bench.log.lines[-1]


def test_a_profile_that_is_not_selected(bench: Bench) -> None:
    context = bench.engine.create_execution_context(ExecutionContextAllocationStrategy.STATIC)
    with pytest.raises(SimulatorError, match="before a profile was selected"):
        context.set_input_shape("x", (1, 4))
    with pytest.raises(RuntimeError, match="set optimization profile async"):
        context.set_optimization_profile_async(1, bench.stream)


def test_a_shape_that_is_not_set(bench: Bench) -> None:
    context = bench.engine.create_execution_context(ExecutionContextAllocationStrategy.STATIC)
    context.set_optimization_profile_async(0, bench.stream)
    assert context.infer_shapes() == ["x"]
    with pytest.raises(SimulatorError, match="before all inputs have theirs"):
        context.get_tensor_shape("y")


def test_numbers_of_a_smaller_dtype(bench: Bench) -> None:
    source, x = bench.pinned([1, 2])[0], bench.malloc()
    bench.cuda.cudaMemcpyAsync(x, source, 8, H2D, bench.stream)
    bench.context(x=x, y=bench.malloc()).execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match="wrong dtype, or too little copied"):
        bench.sync()


def test_a_buffer_too_small(bench: Bench) -> None:
    with pytest.raises(SimulatorError, match=r"48 bytes at .* too small"):
        bench.context(3, x=bench.uploaded([1] * 4), y=bench.malloc(48)).execute_async_v3(bench.stream)


def test_a_host_pointer_in_place_of_a_device_pointer(bench: Bench) -> None:
    host = bench.pinned([1] * 4)[0]
    with pytest.raises(SimulatorError, match="in no device memory"):
        bench.context(x=host, y=bench.malloc()).execute_async_v3(bench.stream)


def test_memory_that_was_freed(bench: Bench) -> None:
    x, y = bench.uploaded([1] * 4), bench.malloc()
    bench.cuda.cudaFreeAsync(x, bench.stream)
    with pytest.raises(SimulatorError, match="used after it was freed"):
        bench.context(x=x, y=y).execute_async_v3(bench.stream)


def test_memory_that_another_stream_freed_meanwhile(bench: Bench) -> None:
    x, y = bench.uploaded([1] * 4), bench.malloc()
    bench.sync()
    other = bench.cuda.cudaStreamCreateWithFlags(1)[1]
    bench.context(x=x, y=y).execute_async_v3(bench.stream)
    bench.cuda.cudaFreeAsync(x, other)
    bench.cuda.cudaStreamSynchronize(other)
    with pytest.raises(SimulatorError, match="in no device memory: freed"):
        bench.sync()


def test_a_misaligned_address(bench: Bench) -> None:
    with pytest.raises(SimulatorError, match="not aligned"):
        bench.context(x=bench.malloc(64) + 16, y=bench.malloc()).execute_async_v3(bench.stream)


def test_an_input_that_nobody_wrote(bench: Bench) -> None:
    bench.context(x=bench.malloc(), y=bench.malloc()).execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match="nobody wrote"):
        bench.sync()


def test_another_streams_memory_without_waiting_for_it(bench: Bench) -> None:
    x = bench.uploaded([1] * 4)
    other = bench.cuda.cudaStreamCreateWithFlags(1)[1]
    bench.context(x=x, y=bench.malloc()).execute_async_v3(other)
    with pytest.raises(SimulatorError, match="before its stream allocated it"):
        bench.cuda.cudaStreamSynchronize(other)


def test_with_an_event_between_the_streams_it_works(bench: Bench) -> None:
    x, y = bench.uploaded([1] * 4), bench.malloc()
    other, event = bench.cuda.cudaStreamCreateWithFlags(1)[1], bench.cuda.cudaEventCreateWithFlags(2)[1]
    bench.cuda.cudaEventRecord(event, bench.stream)
    bench.cuda.cudaStreamWaitEvent(other, event, 0)
    bench.context(x=x, y=y).execute_async_v3(other)
    bench.cuda.cudaStreamSynchronize(other)
    assert bench.cuda.bytes_at(y, 16)[0].view(np.float32).tolist() == [2] * 4


def test_pageable_host_memory_in_an_asynchronous_copy(bench: Bench) -> None:
    array = np.ones(4, np.float32)
    with pytest.raises(SimulatorError, match="in no pinned host memory"):
        bench.cuda.cudaMemcpyAsync(bench.malloc(), int(array.ctypes.data), 16, H2D, bench.stream)


def test_a_copy_beyond_the_memory(bench: Bench) -> None:
    with pytest.raises(SimulatorError, match="too small"):
        bench.cuda.cudaMemcpyAsync(bench.malloc(), bench.pinned([1] * 8)[0], 32, H2D, bench.stream)
    with pytest.raises(SimulatorError, match="too small"):
        bench.cuda.cudaMemcpy2DAsync(bench.malloc(32), 16, bench.malloc(16), 4, 4, 3, D2D, bench.stream)


def test_two_outputs_in_one_place(bench: Bench) -> None:
    x = bench.uploaded([1] * 4)
    with pytest.raises(SimulatorError, match="overlaps another tensor"):
        bench.context(x=x, y=x).execute_async_v3(bench.stream)


def test_a_graph_replayed_after_its_context_got_another_address(bench: Bench) -> None:
    context = bench.context(x=bench.uploaded([1] * 4), y=bench.malloc())
    graph = bench.captured(context)
    context.set_tensor_address("y", bench.malloc())
    with pytest.raises(SimulatorError, match="other addresses or shapes"):
        bench.cuda.cudaGraphLaunch(graph, bench.stream)


def test_a_graph_replayed_after_its_context_got_another_shape(bench: Bench) -> None:
    context = bench.context(x=bench.uploaded([1] * 8), y=bench.malloc(32))
    graph = bench.captured(context)
    context.set_input_shape("x", (2, 4))
    with pytest.raises(SimulatorError, match="other addresses or shapes"):
        bench.cuda.cudaGraphLaunch(graph, bench.stream)


def test_a_graph_replayed_after_its_memory_was_freed(bench: Bench) -> None:
    x, y = bench.uploaded([1] * 4), bench.malloc()
    graph = bench.captured(bench.context(x=x, y=y))
    bench.cuda.cudaFreeAsync(y, bench.stream)
    with pytest.raises(SimulatorError, match="after it was freed"):
        bench.cuda.cudaGraphLaunch(graph, bench.stream)


def test_a_capture_without_a_launch_before(bench: Bench) -> None:
    context = bench.context(x=bench.uploaded([1] * 4), y=bench.malloc())
    bench.cuda.cudaStreamBeginCapture(bench.stream, LOCAL)
    with pytest.raises(SimulatorError, match="not made once before"):
        context.execute_async_v3(bench.stream)


@pytest.mark.parametrize("call", ["malloc", "sync", "pinned", "free"])
def test_allocating_freeing_and_synchronising_in_a_capture(bench: Bench, call: str) -> None:
    there = bench.malloc()
    bench.cuda.cudaStreamBeginCapture(bench.stream, LOCAL)
    calls: dict[str, Callable[[], object]] = {
        "malloc": bench.malloc,
        "sync": bench.sync,
        "pinned": lambda: bench.pinned([1]),
        "free": lambda: bench.cuda.cudaFreeAsync(there, bench.stream),
    }
    with pytest.raises(SimulatorError, match="while this thread captures"):
        calls[call]()


def test_what_another_thread_puts_into_a_capture(bench: Bench) -> None:
    x, y = bench.uploaded([1] * 4), bench.malloc()
    bench.sync()
    caught: list[Exception] = []

    def disturb() -> None:
        try:
            bench.cuda.cudaSetDevice(0)
            bench.cuda.cudaMemcpyAsync(y, x, 16, D2D, bench.stream)
        except SimulatorError as error:
            caught.append(error)

    bench.cuda.cudaStreamBeginCapture(bench.stream, LOCAL)
    thread = threading.Thread(target=disturb)
    thread.start()
    thread.join()
    assert "gets into a capture" in str(caught[0])


def test_two_threads_on_one_context(bench: Bench) -> None:
    context = bench.context()
    caught: list[Exception] = []

    def disturb() -> None:
        try:
            context.set_input_shape("x", (2, 4))
        except SimulatorError as error:
            caught.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    thread.join()
    assert "two threads use one context" in str(caught[0])


def test_a_thread_that_chose_no_device(bench: Bench) -> None:
    caught: list[Exception] = []

    def use() -> None:
        try:
            bench.malloc()
        except SimulatorError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "chose no device" in str(caught[0])


def test_a_context_without_memory_to_work_in(bench: Bench) -> None:
    context = bench.engine.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_optimization_profile_async(0, bench.stream)
    context.set_input_shape("x", (1, 4))
    context.set_tensor_address("x", bench.uploaded([1] * 4))
    context.set_tensor_address("y", bench.malloc())
    with pytest.raises(SimulatorError, match="too little memory to work in; it needs 1000 bytes"):
        context.execute_async_v3(bench.stream)


def test_two_streams_that_work_in_the_same_memory(bench: Bench) -> None:
    scratch = bench.malloc(1000)
    other = bench.cuda.cudaStreamCreateWithFlags(1)[1]
    bench.sync()
    contexts = []
    for _ in range(2):
        context = bench.engine.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_optimization_profile_async(0, bench.stream)
        context.set_device_memory(scratch, 1000)
        context.set_input_shape("x", (1, 4))
        context.set_tensor_address("x", bench.uploaded([1] * 4))
        context.set_tensor_address("y", bench.malloc())
        contexts.append(context)
    contexts[0].execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match="same memory at once"):
        contexts[1].execute_async_v3(other)


def test_the_default_stream_and_a_destroyed_one(bench: Bench) -> None:
    context = bench.context(x=bench.uploaded([1] * 4), y=bench.malloc())
    with pytest.raises(SimulatorError, match="the default one"):
        context.execute_async_v3(0)
    bench.cuda.cudaStreamDestroy(bench.stream)
    with pytest.raises(SimulatorError, match="does not exist"):
        context.execute_async_v3(bench.stream)


def test_double_frees_and_destroyed_handles(bench: Bench) -> None:
    memory, host = bench.malloc(), bench.pinned([1])[0]
    bench.cuda.cudaFreeAsync(memory, bench.stream)
    bench.cuda.cudaFreeHost(host)
    event = bench.cuda.cudaEventCreateWithFlags(2)[1]
    bench.cuda.cudaEventDestroy(event)
    for call in (
        lambda: bench.cuda.cudaFreeAsync(memory, bench.stream),
        lambda: bench.cuda.cudaFreeHost(host),
        lambda: bench.cuda.cudaEventRecord(event, bench.stream),
        lambda: bench.cuda.cudaEventDestroy(event),
    ):
        with pytest.raises(SimulatorError, match=r"freed twice|freed before|destroyed"):
            call()


def test_pinned_memory_freed_before_its_copy_was_done(bench: Bench) -> None:
    source, destination = bench.pinned([1] * 4)[0], bench.malloc()
    bench.cuda.cudaMemcpyAsync(destination, source, 16, H2D, bench.stream)
    with pytest.raises(SimulatorError, match="while a stream still uses it"):
        bench.cuda.cudaFreeHost(source)


def test_leaks_are_listed(bench: Bench) -> None:
    bench.malloc(99)
    bench.pinned([1])
    left = bench.cuda.leaks()
    assert sorted(left) == ["device memory of 99 bytes", "pinned memory of 4 bytes", "stream"]


def test_engines_of_another_version_or_kind_or_with_code(bench: Bench) -> None:
    for name, version, plan in (
        ("tensorrt", (10, 3, 0, 31), bench.plan),
        ("tensorrt_rtx", (10, 3, 0, 30), bench.plan),
        ("tensorrt", (10, 3, 0, 30), Bench(carries_runtime=True).plan),
    ):
        runtime = TensorRTSimulator(name, bench.cuda, version).Runtime(bench.log)
        assert runtime.deserialize_cuda_engine(plan) is None
    assert bench.log.lines[-3:] == [
        "the engine was built by another version",
        "the magic tag does not match",
        "the plan holds host code, which is not allowed",
    ]


def test_errors_are_returned_where_a_test_asks(bench: Bench) -> None:
    bench.cuda.fail_next("cudaMallocAsync", "cudaErrorMemoryAllocation")
    assert bench.cuda.cudaMallocAsync(1, bench.stream) == (cudaError_t.cudaErrorMemoryAllocation,)
