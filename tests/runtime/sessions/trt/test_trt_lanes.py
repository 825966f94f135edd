"""Lanes and threads: who waits for whom, when memory may be used again, on the strict simulator."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgevqa.runtime.sessions.base import Array, Session, Tensor
from edgevqa.runtime.sessions.trt.session import EngineSession
from edgevqa.runtime.sessions.trt.tensors import DeviceTensor, upload

ONES = np.ones((2, 3, 8, 8), dtype=np.float32)
Open = Callable[..., Session]


def test_runs_from_several_threads_do_not_mix(open_graph: Open) -> None:
    trunk, projector = open_graph(), open_graph("projector")
    gate = threading.Barrier(4)

    def alone(scale: int) -> Array:
        return projector.run(_as_images(trunk.run({"pixel_values": ONES * scale})))["image_embeds"].numpy()

    def _as_images(outputs: dict[str, Tensor]) -> dict[str, Tensor | Array]:
        return {"image_states": outputs["trunk_states"]}

    def answer_all(scale: int) -> bool:
        gate.wait(30)
        found = [projector.run(_as_images(trunk.run({"pixel_values": ONES * scale}))) for _ in range(10)]
        return all(np.allclose(each["image_embeds"].numpy(), want[scale], rtol=1e-5) for each in found)

    want = {scale: alone(scale) for scale in (1, 2, 3, 5)}
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(answer_all, want))


def test_a_tensor_of_one_thread_is_read_by_others(open_graph: Open) -> None:
    trunk, projector = open_graph(), open_graph("projector")
    want = projector.run({"image_states": trunk.run({"pixel_values": ONES})["trunk_states"]})["image_embeds"].numpy()
    for _ in range(5):
        states = trunk.run({"pixel_values": ONES})["trunk_states"]
        with ThreadPoolExecutor(3) as pool:
            runs = [pool.submit(projector.run, {"image_states": states}) for _ in range(3)]
            for run in runs:
                np.testing.assert_array_equal(run.result()["image_embeds"].numpy(), want)


def test_a_lane_waits_for_the_lane_that_made_a_tensor(open_graph: Open) -> None:
    trunk, projector = open_graph(), open_graph("projector")
    states = trunk.run({"pixel_values": ONES})["trunk_states"]  # not synchronised
    assert isinstance(states, DeviceTensor)
    with states.buffer.device.lane():  # its lane is taken, so another runs the next graph
        embeds = projector.run({"image_states": states})["image_embeds"]
        found = embeds.numpy()
    again = projector.run({"image_states": trunk.run({"pixel_values": ONES})["trunk_states"]})["image_embeds"]
    np.testing.assert_array_equal(found, again.numpy())


def test_memory_is_not_used_again_while_another_lane_reads_it(open_graph: Open) -> None:
    trunk, projector = open_graph(cuda_graphs="0"), open_graph("projector", cuda_graphs="0")
    want = projector.run({"image_states": trunk.run({"pixel_values": ONES})["trunk_states"]})["image_embeds"].numpy()
    states = trunk.run({"pixel_values": ONES})["trunk_states"]
    assert isinstance(states, DeviceTensor)
    address, device = states.address, states.buffer.device
    with device.lane() as first:
        embeds = projector.run({"image_states": states})["image_embeds"]  # on a second lane, not synchronised
    assert isinstance(embeds, DeviceTensor)
    assert embeds.buffer._block.lane is not first
    del states
    with device.lane() as last, device.lane() as other:
        lane = first if first in (last, other) else last
        blocks = [lane.allocate(192) for _ in range(3)]
        assert address in [block.address for block in blocks]
        for block in blocks:
            lane.cuda.fill(block.address, 0, block.size, lane.stream)
        lane.synchronize()
        lane.returned.extend(blocks)
    np.testing.assert_array_equal(embeds.numpy(), want)


def test_a_cache_that_is_written_on_one_lane_is_read_on_another(open_graph: Open) -> None:
    session = open_graph("language_decoder", cuda_graphs="0")
    assert isinstance(session, EngineSession)
    cache = session.make_cache(2, 6)
    past = cache.inputs()["past_key.0"]
    assert isinstance(past, DeviceTensor)
    device = past.buffer.device
    random = np.random.default_rng(0)
    new = {f"new_{kind}.0": random.normal(size=(2, 2, 1, 4)).astype(np.float32) for kind in ("key", "value")}
    with device.lane() as lane:
        outputs: dict[str, Tensor] = {
            name: upload(device, lane, value.reshape(-1).view(np.uint8), value.shape, "float32")
            for name, value in new.items()
        }
    with device.lane():
        cache.append(outputs)  # on a second lane
    with device.lane(), device.lane():
        found = past.numpy()  # on a third
    np.testing.assert_array_equal(found[:, :, 0], new["new_key.0"][:, :, 0])
    assert not found[:, :, 1:].any()
