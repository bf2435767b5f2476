"""Every architecture that spandrel registers: loaded, restored with, trained, saved, and read back by spandrel."""

from __future__ import annotations

import pytest
import torch
from spandrel import MAIN_REGISTRY, ModelLoader

from tests.students.checkpoints.architectures import INSTANCES, UNTRAINED
from tests.students.networks import student_of


def registered() -> set[str]:
    extra = pytest.importorskip("spandrel_extra_arches", reason="install gmd_ray[extra-arches]")
    names = {entry.architecture.id for entry in MAIN_REGISTRY.architectures()}
    return names | {entry.architecture.id for entry in extra.EXTRA_REGISTRY.architectures()}


def test_no_architecture_is_passed_over():
    assert not INSTANCES.keys() & UNTRAINED.keys()
    assert registered() == INSTANCES.keys() | UNTRAINED.keys()


@pytest.mark.parametrize("name", INSTANCES)
def test_an_architecture_is_loaded_trained_and_saved(tmp_path, name):
    """Forward at odd sizes, a gradient at every parameter, the file's own keys, the same output in spandrel."""
    instance = INSTANCES[name]
    if instance.package != "spandrel.architectures":
        pytest.importorskip("spandrel_extra_arches", reason="install gmd_ray[extra-arches]")
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    state = instance.build(name).state_dict()
    torch.save({"params": state}, source)
    student = student_of(source)
    assert student.architecture == name

    image = torch.rand(1, 1, 19, 23).expand(-1, 3, -1, -1).clone()  # gray, so that luma is the value itself
    assert student.restore(image).shape == (1, 3, 19 * student.scale, 23 * student.scale)

    student.module.train()
    batch = torch.rand(2, 3, instance.side, instance.side)
    side = instance.side * student.scale
    loss, _ = student.training_loss(batch, torch.rand(2, 3, side, side))
    loss.backward()
    trained = {key: p.grad for key, p in student.module.named_parameters() if p.requires_grad}
    without = {key for key, grad in trained.items() if grad is None}
    assert without == {key for key in trained if any(part in key for part in instance.idle)}
    still = {key for key, grad in trained.items() if grad is not None and not grad.any()}
    assert still <= {key for key in trained if any(part in key for part in instance.routed)}
    torch.optim.AdamW([p for p in student.module.parameters() if p.requires_grad], lr=1e-3).step()

    student.save(saved)
    tree = torch.load(saved, weights_only=True)
    assert list(tree) == ["params"]
    assert "\n".join(tree["params"]).encode() == "\n".join(state).encode()
    assert all(value.shape == state[key].shape for key, value in tree["params"].items())
    moved = [key for key, grad in trained.items() if grad is not None and grad.any()]
    assert sum(not torch.equal(tree["params"][key], state[key]) for key in state) >= 0.9 * len(moved)

    descriptor = ModelLoader("cpu").load_from_file(saved)
    seen = image[:, :1] if descriptor.input_channels == 1 else image
    torch.manual_seed(0)  # StyleGAN-like decoders draw noise
    expected = descriptor(seen.clone()).expand(-1, 3, -1, -1).clone()
    torch.manual_seed(0)
    torch.testing.assert_close(student.restore(image), expected, rtol=0, atol=1e-5)
