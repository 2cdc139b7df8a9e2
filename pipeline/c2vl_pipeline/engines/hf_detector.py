"""The `hf` detectors: any open-vocabulary or closed-set object detector of transformers 5, by `from_pretrained`.

The checkpoint's processor says which of three forms a detector has: it grounds phrases (`text_threshold`, as Grounding
DINO), it takes a list of labels (as OWLv2), or it has its own labels and reads no text (as D-FINE). Checkpoints are
found by `c2vl_pipeline.engines.hf_hub` and loaded by `hf_checkpoint`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline.engines import Box, Detector, Frame, Image, grounding, setting
from c2vl_pipeline.engines.hf_checkpoint import Checkpoint, DetectorOptions, HfOptions
from c2vl_pipeline.engines.hf_hub import weights_id

_EDGES = ("shortest_edge", "longest_edge")


class _Options(DetectorOptions, HfOptions):
    """`EngineSpec.options` of this engine."""


class HfDetector(Detector):
    """Finds people with an object detector of transformers.

    Options: `threshold` (0.35, smallest score of a box), `text_threshold` (0.25, smallest score at which a word names a
    box, for models that ground phrases), `shortest_edge` and `longest_edge` (pixels a frame is resized to, for
    processors that resize by them; default: the checkpoint's own), and those of `HfOptions`.

    A closed-set model keeps the boxes of the label that equals the query, in any case.

    Reading: the paper names the query, "person"; Grounding DINO was trained on lower-case phrases that end with a
    dot. A box is kept if its score passes `threshold` and a word of the query passes `text_threshold`: a box that
    matches only punctuation or special tokens is dropped.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`; an edge where the processor has none.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec, _Options)
        self._at.compile()
        own = dict(self._at.image_processor.size)
        asked = {edge: self._at.options[edge] for edge in _EDGES if self._at.options[edge]}
        if absent := [edge for edge in asked if edge not in own]:
            raise EngineError(
                f"{setting(spec)}.options.{absent[0]} = {asked[absent[0]]}: this checkpoint resizes by "
                f"{' and '.join(own)}; leave the option out"
            )
        self._size = own | asked
        self._sized = {"size": self._size} if asked else {}
        post = getattr(self._at.processor, "post_process_grounded_object_detection", None)
        self._phrases = post is not None and "text_threshold" in inspect.signature(post).parameters

    @torch.inference_mode()
    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the boxes of each frame, best first, in pixels of that frame and clipped to it.

        Raises:
            EngineError: One line, for a closed-set model that has no label for the query.
        """
        run = self._labels if self._at.processor is None else self._grounded
        return grounding.detect(frames, self._at.parts, lambda images: run(images, query))

    def _grounded(self, images: list[Image], query: str) -> grounding.Results:
        processor, options, n = self._at.processor, self._at.options, len(images)
        batch = processor(
            images=images,
            text=[grounding.phrase(query)] * n if self._phrases else [[query]] * n,
            input_data_format="channels_last",
            return_tensors="pt",
            **self._sized,
        )
        inputs = self._at.inputs(batch)
        outputs = self._forward(inputs)
        names: dict[str, Any] = {"text_labels": [[query]] * n}
        if self._phrases:
            names = {"input_ids": inputs["input_ids"], "text_threshold": options["text_threshold"]}
        results: grounding.Results = processor.post_process_grounded_object_detection(
            outputs, threshold=options["threshold"], target_sizes=[image.shape[:2] for image in images], **names
        )
        return results

    def _labels(self, images: list[Image], query: str) -> grounding.Results:
        names = self._at.model.config.id2label
        wanted = [number for number, name in names.items() if name.casefold() == query.strip(" .").casefold()]
        if not wanted:
            raise self._unknown(query, list(names.values()))
        batch = self._at.image_processor(images, input_data_format="channels_last", return_tensors="pt", **self._sized)
        outputs = self._forward(self._at.inputs(batch))
        sizes = [image.shape[:2] for image in images]
        found = self._at.image_processor.post_process_object_detection(
            outputs, threshold=self._at.options["threshold"], target_sizes=sizes
        )
        results: list[Mapping[str, Any]] = []
        for one in found:
            keep = torch.isin(one["labels"], torch.tensor(wanted, device=one["labels"].device))
            kept = {name: one[name][keep] for name in ("boxes", "scores")}
            results.append(kept | {"text_labels": [query] * int(keep.sum())})
        return results

    def _unknown(self, query: str, labels: list[str]) -> EngineError:
        folded = {label.casefold(): label for label in labels}
        near = [folded[one] for one in difflib.get_close_matches(query.casefold(), folded, n=3)]
        told = f"near it are {', '.join(map(repr, near))}" if near else f"they begin {', '.join(map(repr, labels[:5]))}"
        return EngineError(
            f"pipeline.crop.query = {query!r} is none of the {len(labels)} labels of the detector {self._at.spec.model!r}; "
            f"{told} (all: id2label in its config.json); set one of them, or choose a detector with an open vocabulary by "
            f"{setting(self._at.spec)}, such as the preset hf-groundingdino-tiny"
        )

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Return the model's output with its tensors in float32."""
        outputs = self._at.model(**inputs)
        for name, value in outputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[name] = value.float()
        return outputs

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision, options and input size, for the stage's manifest."""
        return self._at.describe() | {"size": dict(self._size)}
