"""2D joints from files to encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_training import InputConfig
from c2vl_pipeline.stages import pack
from c2vl_training.augmentation import draw
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.encoders import ENCODERS, build


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> PackedDataset:
    """COCO keypoints of people who have only a camera and a pose estimator: a table, 2D joints, no videos."""
    from c2vl_manifests.datasets import load_dataset
    from c2vl_pipeline.execution import runner
    from c2vl_pipeline.stages import caption, crop, embed, index, skeletons

    root, work = tmp_path_factory.mktemp("coco"), tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    lines = ["sample_id,skeleton,label,subject,split_mine"]
    for n in range(8):
        np.save(root / f"{n}.npy", rng.normal(size=(20 + n, 17, 2)).cumsum(axis=0).astype(np.float32))
        lines.append(f"s{n},{n}.npy,{n % 2},{n % 4},{'train' if n < 5 else 'test'}")
    (root / "samples.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset("generic")
    index.build(dataset, root, work, recipe.pipeline, recipe=recipe.name, layout="coco_17")
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run_stage(stage, work, recipe)
    pack.run(work, recipe)
    return PackedDataset(work)


def test_2d_joints_are_packed_with_two_planes(flat: PackedDataset) -> None:
    assert flat.joints.shape == (sum(range(20, 28)), 2, 1, 17)
    assert flat.layout == LAYOUTS["coco_17"]
    assert not flat.joints[flat.offsets[:-1]][:, :, 0, 0].any()  # the nose of each first frame is the origin


@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_takes_every_stream_of_2d_clips(flat: PackedDataset, name: str, stream: str) -> None:
    config = InputConfig.model_validate({"frames": 16, "stream": stream})
    rows = flat.select("mine", "train").rows
    clips = Clips(flat, rows, config, torch.device("cpu"))
    at = torch.arange(len(rows))
    batch = clips.train(at, draw(len(rows), config, torch.Generator().manual_seed(0)))
    assert batch.shape == (5, 2, 16, 17, 1)
    with torch.inference_mode():
        out = build(name, flat.layout, bodies=1).eval()(batch[:1])
    assert out.shape[0] == 1
    assert torch.isfinite(out).all()


def test_2d_rotation_stays_in_the_plane_and_keeps_distances(flat: PackedDataset) -> None:
    rows = flat.select("mine", "train").rows
    turned = InputConfig.model_validate({"frames": 16, "augmentation": {"rotation": 1.0, "window": [1.0, 1.0]}})
    still = turned.model_copy(update={"augmentation": turned.augmentation.model_copy(update={"rotation": 0.0})})
    at, draws = torch.arange(len(rows)), draw(len(rows), turned, torch.Generator().manual_seed(3))
    a = Clips(flat, rows, turned, torch.device("cpu")).train(at, draws)
    b = Clips(flat, rows, still, torch.device("cpu")).train(
        at, draw(len(rows), still, torch.Generator().manual_seed(3))
    )
    assert not torch.allclose(a, b)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1), rtol=1e-4, atol=1e-4)
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    angle = torch.atan2(cross, (a * b).sum(1)).flatten(1)
    far = b.norm(dim=1).flatten(1) > 0.5
    for clip, mask in zip(angle, far, strict=True):  # one angle a clip
        assert clip[mask].std() < 1e-3
