"""The private names of Ray that gmd_ray uses: each is there, no other file uses one, and none is needed to go on."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.ray_utils import ray_internals

PACKAGE = Path(gmd_ray.__file__).parent
PRIVATE = ["ray._private", "ray._raylet", "ray._internal", "ray.data._internal", "ray.train._internal"]
PRIVATE += ["ray._common", "ray.train.v2._internal", "ray.autoscaler._private", "ray.experimental.internal_kv"]
ALLOWED = {"ray_utils/ray_internals.py", "ray_utils/blocks_in_flight.py", "ray_utils/draining.py"}

NAMES = [
    # The cluster.
    ("ray._private.worker", "_global_node"),
    ("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS"),
    ("ray.experimental.internal_kv", "_internal_kv_get"),
    ("ray._common.constants", "HEAD_NODE_RESOURCE_NAME"),
    ("ray._private.state", "state.get_draining_nodes"),
    # The start of a session.
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ("ray._private.worker", "connect"),
    ("ray._private.worker", "print_worker_logs"),
    # Joining a cluster.
    ("ray._private.services", "canonicalize_bootstrap_address"),
    ("ray._raylet", "Config.initialize"),
    ("ray._raylet", "AuthenticationTokenLoader.instance"),
    ("ray._raylet", "AuthenticationTokenLoader.reset_cache"),
    ("ray._raylet", "AuthenticationTokenLoader.has_token"),
    ("ray._raylet", "AuthenticationTokenLoader.get_raw_token"),
    # Fine-tunes (training/loopback.py).
    ("ray.train.torch.config", "_TorchBackend.on_start"),
    ("ray.train.torch.config", "_set_torch_distributed_env_vars"),
    ("ray.train.torch.config", "_setup_torch_process_group"),
    # Streams.
    ("ray.data._internal.cluster_autoscaler", "RateBasedClusterAutoscaler.__init__"),
    ("ray.data._internal.execution.metadata_fetcher", "_PREFETCH_ON_THREAD"),
    ("ray.data._internal.execution.backpressure_policy", "BackpressurePolicy"),
    ("ray.data._internal.execution.backpressure_policy", "ENABLED_BACKPRESSURE_POLICIES"),
    ("ray.data._internal.execution.backpressure_policy", "ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY"),
    ("ray.data._internal.execution.streaming_executor_state", "OpState.has_pending_bundles"),
    ("ray.data._internal.execution.streaming_executor_state", "OpState.total_enqueued_input_blocks"),
    ("ray.data._internal.execution.interfaces", "PhysicalOperator.can_add_input"),
    ("ray.data._internal.execution.interfaces", "PhysicalOperator.num_active_tasks"),
    ("ray.data._internal.execution.interfaces", "PhysicalOperator.input_dependencies"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_ray_has_it(module: str, name: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name}"
        found = getattr(found, part)


def test_what_is_set_or_passed_is_there() -> None:
    from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
    from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
    from ray.data._internal.execution.streaming_executor_state import OpState

    defaults = RateBasedClusterAutoscaler.__init__.__kwdefaults__
    assert isinstance(defaults["autoscaling_request_expire_time_s"], float | int)
    given = list(inspect.signature(BackpressurePolicy.__init__).parameters)
    assert given == ["self", "data_context", "topology", "resource_manager"]
    assert "self.input_queues" in inspect.getsource(OpState.__init__)


def test_a_stream_made_afterwards_fetches_metadata_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal.execution import metadata_fetcher as fetchers

    monkeypatch.setattr(fetchers, "_PREFETCH_ON_THREAD", True)
    assert isinstance(fetchers.make_metadata_fetcher(), fetchers.ThreadedMetadataFetcher)
    ray_internals.fetch_metadata_inline()
    assert isinstance(fetchers.make_metadata_fetcher(), fetchers.InlineMetadataFetcher)


def test_what_ray_says_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    for text in ("within the block", "after it"):
        with ray_internals.speaks_on_stderr() if text == "within the block" else contextlib.nullcontext():
            worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capsys.readouterr()
    assert "within the block" in said.err
    assert "within the block" not in said.out
    assert "after it" in said.out


def test_the_loggers_that_are_quieted_exist() -> None:
    for name in ray_internals.CHATTER:
        assert importlib.util.find_spec(name) is not None, name


def private_names(source: str) -> list[str]:
    """Modules of PRIVATE that a source imports, or reaches as an attribute of `ray`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return sorted({name for name in found for private in PRIVATE if name == private or name.startswith(f"{private}.")})


def test_private_names_are_in_few_files_alone() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in PACKAGE.rglob("*.py")
        if (names := private_names(path.read_text(encoding="utf-8")))
    }
    assert users.keys() == ALLOWED, users


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray._private import services",
        "from ray import _raylet",
        "def f():\n    from ray.data._internal.x import y",
        "import ray\nray._private.worker._global_node",
    ],
)
def test_the_search_finds_them(source: str) -> None:
    assert private_names(source)


def test_nothing_private_is_imported_before_it_is_used() -> None:
    code = "import sys; from gmd_ray.ray_utils import ray_internals, session; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make these modules fail to import, as in a version of Ray that has moved them."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_another_version_of_ray_costs_the_bounds_and_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.data import DataContext
    from ray.data._internal.execution import metadata_fetcher

    context = DataContext()
    monkeypatch.delattr(metadata_fetcher, "_PREFETCH_ON_THREAD")
    without(monkeypatch, "gmd_ray.ray_utils.blocks_in_flight", "ray.data._internal.cluster_autoscaler")
    with caplog.at_level(logging.WARNING):
        ray_internals.limit_blocks_in_flight(context, Config())
        ray_internals.shorten_reservation_expiry()
        ray_internals.fetch_metadata_inline()
    bound, expiry, kept = caplog.messages
    assert "the blocks in flight are not bounded with this version of Ray" in bound
    assert "after a kill, a run may wait three minutes" in expiry
    assert "after a failure, a stream may keep its actors" in kept


def test_another_version_of_ray_is_joined_and_started_as_ray_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import ray_constants, worker

    monkeypatch.delattr(worker, "_global_node")
    assert not ray_internals.started_here()
    without(monkeypatch, "ray.experimental.internal_kv")
    assert ray_internals.can_grow()
    without(monkeypatch, "ray._private.services", "ray._raylet")
    assert ray_internals.resolve_address("auto") is None
    assert ray_internals.resolve_address("head:6379") == "head:6379"
    assert not ray_internals.can_set_authentication()
    monkeypatch.delattr(worker, "print_worker_logs")
    with ray_internals.speaks_on_stderr():
        pass
    monkeypatch.delattr(worker, "connect")
    with ray_internals.quiet_core():
        pass
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    with caplog.at_level(logging.WARNING), ray_internals.on_loopback():
        pass
    assert "may listen on this machine's network address" in caplog.text


class Stage:
    """An operator of a stream and its state, as far as the policy knows them."""

    def __init__(self, *inputs: Stage, active: int = 0, waiting: int = 0, pending: bool = False) -> None:
        self.input_dependencies, self.input_queues = list(inputs), [[1, 2]]
        self.active, self.waiting, self.pending = active, waiting, pending

    def num_active_tasks(self) -> int:
        return self.active

    def total_enqueued_input_blocks(self) -> int:
        return self.waiting

    def has_pending_bundles(self) -> bool:
        return self.pending


def test_the_bound_on_blocks_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data import DataContext

    from gmd_ray.ray_utils import shutdown
    from gmd_ray.ray_utils.blocks_in_flight import BlocksInFlight, limit_blocks

    context = DataContext()
    limit_blocks(context, 5)
    source = Stage(waiting=100)
    read = Stage(source, active=2, waiting=90)
    model = Stage(read, active=1, waiting=1)
    policy = BlocksInFlight(context, {stage: stage for stage in (source, read, model)}, None)
    room = read.can_add_input  # type: ignore[attr-defined]
    assert policy.in_flight() == 4, "what waits before the first stage has not been read"
    assert room()
    model.waiting = 2
    assert not room()
    read.active = model.active = 0
    model.waiting, model.pending = 5, True
    assert not room(), "the model has something to take"
    model.pending = False
    assert room(), "all of it is held back to make whole blocks"
    monkeypatch.setattr(shutdown, "ASKED", type("Asked", (), {"is_set": lambda self: True})())
    assert not room()
    assert read.input_queues == [[]]
