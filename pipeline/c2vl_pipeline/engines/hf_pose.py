"""The `hf` pose estimator: ViTPose by `AutoModelForPoseEstimation` of transformers: boxes in, the 17 joints of COCO out.

Source: Xu et al., *ViTPose* (2022). The model sees each box, with a margin, as an image of its own; a joint lies where its
heatmap is highest, refined by DARK (Zhang et al. 2020) in transformers' post-processing, and its score is that height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_pipeline.engines import Box, Frame, Person, PoseEstimator
from c2vl_pipeline.engines.hf_checkpoint import Checkpoint, HfOptions
from c2vl_pipeline.engines.hf_hub import weights_id


class VitPose(PoseEstimator):
    """Estimates the 17 joints of COCO of one person per box.

    *Reading:* the network always finds joints, so a person's score is the mean score of the joints: a box of nobody has a
    low one.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`; a checkpoint of other joints.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec, HfOptions)
        self._at.compile()
        self._images = self._at.image_processor
        if (joints := self._at.model.config.num_labels) != (expected := self.layout(spec).joints):
            raise self._at.refusal(f"that finds {joints} joints; expected the {expected} of COCO")
        experts = getattr(self._at.model.config.backbone_config, "num_experts", 1)
        self._experts = {"dataset_index": 0} if experts > 1 else {}
        """ViTPose+ has an expert per data set; 0 is COCO."""

    @staticmethod
    def layout(spec: EngineSpec) -> Layout:
        """Return COCO's 17 joints in 2D."""
        return load_layout("coco_17")

    @torch.inference_mode()
    def estimate(self, frames: Sequence[Frame], boxes: Sequence[Sequence[Box]]) -> list[list[Person]]:
        """Return one person for each box of a frame."""
        asked = [(n, box) for n, of_frame in enumerate(boxes) for box in of_frame]
        people: list[list[Person]] = [[] for _ in frames]
        for part in self._at.parts(len(asked)):
            for (n, _), person in zip(asked[part], self._run(frames, asked[part]), strict=True):
                people[n].append(person)
        return people

    def _run(self, frames: Sequence[Frame], asked: Sequence[tuple[int, Box]]) -> list[Person]:
        images = [frames[n].image for n, _ in asked]
        # COCO's form: corner, width, height; one box per image
        boxes = [[[b.x0, b.y0, max(b.x1 - b.x0, 1.0), max(b.y1 - b.y0, 1.0)]] for _, b in asked]
        batch = self._images(images, boxes=boxes, input_data_format="channels_last", return_tensors="pt")
        inputs = self._at.inputs(batch)
        experts = {name: torch.tensor([at] * len(asked), device=self._at.device) for name, at in self._experts.items()}
        outputs = self._at.model(**inputs, **experts)
        outputs.heatmaps = outputs.heatmaps.float()
        found = self._images.post_process_pose_estimation(outputs, boxes=boxes)
        return [_person(one) for (one,) in found]

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision and options, for the stage's manifest."""
        return self._at.describe()


def _person(found: Mapping[str, Any]) -> Person:
    places, scores = np.asarray(found["keypoints"], np.float32), np.asarray(found["scores"], np.float32)
    pixels = np.column_stack([places.reshape(-1, 2), np.clip(scores.reshape(-1), 0, 1)])
    return Person(pixels.astype(np.float32), float(pixels[:, 2].mean()))
