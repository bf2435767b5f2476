"""Blocks on a node that is to go are found in the queues of Ray Data, and fetched if no other node has them."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.data._internal.execution.bundle_queue import create_bundle_queue
from ray.data._internal.execution.bundle_queue.bundler import ExactMultipleSize, RebundleQueue
from ray.data._internal.execution.bundle_queue.reordering import ReorderingBundleQueue
from ray.data._internal.execution.interfaces import BlockEntry, RefBundle
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.streaming_executor_state import OpBufferQueue
from ray.data.block import BlockMetadata

from gmd_ray.ray_utils import rescue


def bundle(rows: int) -> RefBundle:
    meta = BlockMetadata(num_rows=rows, size_bytes=100, exec_stats=None, input_files=None)
    return RefBundle((BlockEntry(ray.ObjectRef.from_random(), meta),), owns_blocks=True, schema=None)


def stage(*before: RefBundle, within: Any = (), tasks: tuple[RefBundle, ...] = ()) -> tuple[Any, Any]:
    """An operator and its state, as far as the search knows them."""
    buffer = OpBufferQueue(1)
    for waiting in before:
        buffer.append(waiting)
    at_work = {number: SimpleNamespace(inputs=inputs) for number, inputs in enumerate(tasks)}
    metrics = SimpleNamespace(_running_tasks=at_work)
    op = SimpleNamespace(metrics=metrics, _input_queues=list(within), _output_queues=[])
    return op, SimpleNamespace(input_queues=[buffer])


class Topology(list[tuple[Any, Any]]):
    def items(self) -> list[tuple[Any, Any]]:
        return self


def test_every_block_of_a_stream_that_waits_is_found() -> None:
    bundles = [bundle(2) for _ in range(7)]
    rebundled, ordered, plain = RebundleQueue(ExactMultipleSize(4)), ReorderingBundleQueue(), create_bundle_queue()
    for part in bundles[1:4]:  # two make a whole one, and the third waits for a fourth
        rebundled.add(part)
    ordered.add(bundles[4], key=3)
    plain.add(bundles[5])
    topology = Topology([stage(bundles[0]), stage(within=[rebundled, ordered, plain], tasks=(bundles[6],)), stage()])
    found = rescue.waiting_blocks(topology)
    assert len(found) == 7
    assert set(found) == {block.ref for each in bundles for block in each.blocks}
    assert isinstance(ActorPoolMapOperator._input_queues, property), "where the pools keep theirs"
    assert "self._running_tasks[task_index] = RunningTaskInfo(" in inspect.getsource(OpRuntimeMetrics)


def test_only_blocks_without_another_copy_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"here": ["head"], "lost": ["going"], "twice": ["going", "head"], "small": [], "both": ["going", "gone"]}
    fetched: list[str] = []

    def wait(blocks: list[str], **kwargs: Any) -> tuple[list[str], list[str]]:
        assert kwargs == {"fetch_local": True, "num_returns": len(blocks), "timeout": rescue.FETCH_S}
        fetched.extend(blocks)
        return blocks, []

    def locations(blocks: list[str], timeout_ms: int) -> dict[str, dict[str, list[str]]]:
        return {block: {"node_ids": places[block]} for block in blocks}

    monkeypatch.setattr("ray.experimental.get_object_locations", locations)
    monkeypatch.setattr("ray.wait", wait)
    rescue.fetch(list(places), {"going", "gone"})
    assert fetched == ["lost", "both"]


def test_nothing_is_looked_for_where_no_node_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def draining() -> set[str]:
        asked.append(set())
        return asked[-1]

    monkeypatch.setattr(rescue, "draining_nodes", draining)
    search = rescue.BlockRescue(Topology([("not an operator", "nor its state")]))
    for _ in range(5):
        search.look()
    assert len(asked) == 1, "once in POLL_S"


def test_another_version_of_ray_costs_the_copies_and_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rescue, "draining_nodes", lambda: {"going"})
    search = rescue.BlockRescue(Topology([("not an operator", "nor its state")]))
    for _ in range(2):
        search.look()
    assert caplog.text.count("what is on a drained node is lost with it with this version of Ray") == 1
