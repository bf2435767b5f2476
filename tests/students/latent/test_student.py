"""The latent diffusion student's restoring and training, against plain computations with diffusers' classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from gmd_ray.config import PoolConfig, StudentConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.images.tiling import tile_spans
from gmd_ray.students import load_student
from gmd_ray.students.latent.network import even_sigmas, sample
from tests.students.ddp import train_in_ddp
from tests.students.latent.reference import drawn, load, parts, velocity


def test_one_step_is_the_noise_less_the_velocity(tiny):
    student = load(tiny, sampling_steps=1)
    transformer, vae = parts(tiny)
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        lq = vae.encode(image * 2 - 1).latent_dist.mean
        x1 = torch.stack([drawn(key, (4, 4, 6)) for key in ("a", "b/c")])
        clean = x1 - velocity(transformer, x1, lq, torch.ones(2))
        expected = (vae.decode(clean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(student.restore(image, ["a", "b/c"]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 5])
def test_few_steps_are_those_of_diffusers_scheduler_with_explicit_sigmas(steps):
    class Field(nn.Module):
        def forward(self, z, lq, sigma):
            return torch.sin(3 * z) + lq * sigma.view(-1, 1, 1, 1)

    lq, noise = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    z = noise
    for t in scheduler.timesteps:
        z = scheduler.step(Field()(z, lq, t.expand(2) / 1000), t, z).prev_sample
    torch.testing.assert_close(sample(Field(), lq, noise, even_sigmas(steps)), z, rtol=0, atol=1e-5)


def test_velocity_loss_against_numpy(tiny):
    student = load(tiny)
    transformer, vae = parts(tiny)
    lq, hq = torch.rand(3, 3, 16, 32), torch.rand(3, 3, 16, 32)
    torch.manual_seed(7)
    loss, logs = student.training_loss(lq, hq)
    torch.manual_seed(7)
    noise, t = torch.randn(3, 4, 2, 4).numpy(), torch.rand(3).numpy()
    with torch.no_grad():
        z0, condition = (vae.encode(x * 2 - 1).latent_dist.mean for x in (hq, lq))
        level = t[:, None, None, None]
        zt = (1 - level) * z0.numpy() + level * noise
        predicted = velocity(transformer, torch.from_numpy(zt), condition, torch.from_numpy(t)).numpy()
    expected = np.mean((predicted - (noise - z0.numpy())) ** 2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logs == {"loss": loss.item()}


def test_what_a_crop_draws_follows_its_key_and_not_its_batch(tiny):
    student = load(tiny)
    lq, hq, keys = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16), torch.tensor([5, 2**62, 7])
    together, _ = student.training_loss(lq, hq, reduce=False, keys=keys)
    torch.rand(1)  # torch's own generator has no part in it
    alone = [student.training_loss(lq[i:][:1], hq[i:][:1], reduce=False, keys=keys[i:][:1])[0] for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), together)
    transformer, vae = parts(tiny)
    draw = torch.Generator().manual_seed(7)
    noise, t = torch.randn(1, 4, 2, 2, generator=draw), torch.rand(1, generator=draw)
    with torch.no_grad():
        z0, condition = (vae.encode(x[2:] * 2 - 1).latent_dist.mean for x in (hq, lq))
        predicted = velocity(transformer, (1 - t) * z0 + t * noise, condition, t)
    assert together[2].item() == pytest.approx((predicted - (noise - z0)).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("tile", [0, 32])
def test_an_image_does_not_depend_on_its_batch(tiny, tile):
    student = load(tiny, tile=tile, tile_overlap=8)
    images, ids = torch.rand(3, 3, 40, 50), ["x", "y", "z"]
    together = student.restore(images, ids)
    for i in range(3):
        alone = student.restore(images[i : i + 1], ids[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    assert torch.equal(student.restore(images, ids), together)
    assert (student.restore(images, ["x", "y", "other"])[2] - together[2]).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "size"), [(1, (91, 112)), (2, (40, 53))])
def test_tiles_take_their_noise_from_the_image(tiny, tiny_x2, monkeypatch, scale, size):
    path = {1: tiny, 2: tiny_x2}[scale]
    tiles = {"tile": 64 // scale, "tile_overlap": 24 // scale}
    student = load(path, **tiles, pool=PoolConfig(batch_size=1))
    seen = []

    def sampled(network, lq, noise, sigmas):
        seen.append((lq.shape, noise))
        return sample(network, lq, noise, sigmas)

    monkeypatch.setattr("gmd_ray.students.latent.student.sample", sampled)
    student.restore(torch.rand(2, 3, *size), ["a", "b"])
    sides = [-(-side * scale // 16) * 2 for side in size]  # latents of 8 pixels, in patches of 2
    whole = torch.stack([drawn(key, (4, *sides)) for key in ("a", "b")])
    rows, columns = (tile_spans(side, 64 // scale, 24 // scale, 16 // scale) for side in size)
    starts = [(top * scale, left * scale) for top, _ in rows for left, _ in columns]
    assert len(seen) == len(starts) >= 6
    for (top, left), (shape, noise) in zip(starts, seen, strict=True):
        assert top % 16 == left % 16 == 0
        assert noise.shape == shape
        assert torch.equal(noise, whole[..., top // 8 :, left // 8 :][..., : shape[-2], : shape[-1]])
    calls, images = len(seen), torch.rand(2, 3, *size)
    together = load(path, **tiles).restore(images, ["a", "b"])
    assert len(seen) - calls < len(starts)
    torch.testing.assert_close(together, student.restore(images, ["a", "b"]), rtol=0, atol=1e-5)


def test_tiles_too_near_for_the_patches_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"tile=32 with tile_overlap=20: .* at most 16"):
        load(tiny, tile=32, tile_overlap=20)


def test_without_ids_the_noise_follows_the_content(tiny):
    student = load(tiny)
    images = torch.rand(2, 3, 16, 16)
    first = student.restore(images)
    torch.testing.assert_close(student.restore(images.flip(0)).flip(0), first, rtol=0, atol=1e-5)
    torch.testing.assert_close(student.restore(images[:1]), first[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 47)])
def test_any_size_and_scale(tiny_x2, size):
    student = load(tiny_x2, sampling_steps=1)
    restored = student.restore(torch.rand(2, 3, *size), ["a", "b"])
    assert restored.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert restored.isfinite().all()
    loss, _ = student.training_loss(torch.rand(1, 3, *size), torch.rand(1, 3, 2 * size[0], 2 * size[1]))
    assert loss.isfinite()


def test_an_image_beyond_the_positions_asks_for_tiles(tiny):
    with pytest.raises(ModelError, match=r"1040x16 pixels: .*student\.tile to at most 896"):
        load(tiny).restore(torch.rand(1, 3, 16, 1040))
    for width in (1040, 1820):  # 1820: the last of two tiles is 924 long
        restored = load(tiny, tile=896, tile_overlap=0, sampling_steps=1).restore(torch.rand(1, 3, 16, width))
        assert restored.shape == (1, 3, 16, width)


WITHOUT_TEXT = ("text_embedder.linear_1.weight", "context_embedder.weight", "1.attn.add_q_proj", "1.attn.norm_added_q")
"""Parameters that only text would move: its token is zero here, and the last block drops its queries."""


def test_training_moves_all_that_text_does_not_and_never_the_autoencoder(tiny):
    student = load(tiny)
    student.module.train()
    loss, _ = student.training_loss(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    loss.backward()
    still = {key for key, p in student.module.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {k for k, _ in student.module.named_parameters() if any(part in k for part in WITHOUT_TEXT)}
    assert not any("vae" in key or "codec" in key for key in student.module.state_dict())


def test_gradient_checkpointing_changes_no_gradient(tiny):
    gradients, calls = [], []
    for wanted in (False, True):
        student = load(tiny, gradient_checkpointing=wanted)
        student.module.train()
        block = student.module.transformer.transformer_blocks[0]
        count = []
        block.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(0)
        loss, _ = student.training_loss(torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.6))
        loss.backward()
        gradients.append([p.grad for p in student.module.parameters() if p.grad is not None])
        calls.append(len(count))
    assert calls == [1, 2]  # computed again on the way back
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16(tiny):
    full, half, image = load(tiny), load(tiny, dtype="bfloat16"), torch.rand(1, 3, 32, 32)
    difference = (full.restore(image, ["a"]) - half.restore(image, ["a"])).abs()
    assert 0 < difference.max() < 0.1
    assert full.fingerprint != half.fingerprint
    full.module.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = full.training_loss(image, image)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in full.module.parameters())


def test_ddp_and_a_moving_average_train_it(tiny, tmp_path):
    student = load(tiny)
    student.module.train()
    pairs = [(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)) for _ in range(2)]
    train_in_ddp(student, pairs, tmp_path, find_unused_parameters=True)
    average = {key: value.clone() + 0.01 for key, value in student.module.state_dict().items()}
    student.module.load_state_dict(average)
    student.save(tmp_path / "student")
    again = load(tmp_path / "student").module.state_dict()
    assert all(torch.equal(again[key], value) for key, value in average.items())


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tiny):
    on_gpu = load_student(StudentConfig(path=str(tiny), device="cuda"))
    image = torch.rand(2, 3, 40, 52)
    restored = on_gpu.restore(image, ["a", "b"])
    torch.testing.assert_close(restored, load(tiny).restore(image, ["a", "b"]), rtol=0, atol=5e-3)
    with torch.autocast("cuda", torch.bfloat16):
        loss, _ = on_gpu.training_loss(image.cuda(), image.cuda())
    loss.backward()
    assert loss.isfinite()


def test_a_few_steps_fit_a_pair(tiny):
    student = load(tiny)
    student.module.train()
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=3e-3)
    lq, hq = torch.rand(1, 3, 16, 16).expand(16, -1, -1, -1), torch.rand(1, 3, 16, 16).expand(16, -1, -1, -1)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, logs = student.training_loss(lq, hq)
        loss.backward()
        optimizer.step()
        losses.append(logs["loss"])
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
