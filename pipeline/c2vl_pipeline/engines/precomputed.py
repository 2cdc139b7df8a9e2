"""`precomputed`: captions from a file in the authors' form: their prompts without running LLaVA.

The file is JSON, {sample id: [caption of each frame, in order]} or {sample id: caption of all}, a .zip that holds one such
file, or a table (CSV, Parquet) with the columns sample_id, slot (where a sample has several) and caption. The authors' own
(PKU-MMD II) has 6,952 samples with 16 captions each; its keys are this project's sample ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline.engines import Caption, Captioner, Crop, Options, checked_options
from c2vl_pipeline.readers.captions import caption_json, read_captions


class _Options(Options):
    path: str


def _shape(sample_id: str) -> str:
    """Return an id without its numbers: equal for all samples of one dataset."""
    return re.sub(r"\d+", "#", sample_id)


class Precomputed(Captioner):
    """Answers by sample and slot from a caption file. Option: `path` (required).

    Reading: the captions of a sample are of equal segments of it, in order of time, and a planned frame has the caption
    of the segment that it lies in: the i-th frame the i-th caption, where there are as many. The authors do not state
    their frames; 16 equal segments are this project's reading of the paper. A sample with fewer captions than others
    has some of them at several frames; a run has as many frames as the sample with most captions, so none is lost.

    Raises:
        EngineError: One line, for a file that is absent or of another form.
    """

    VOLATILE_OPTIONS = frozenset({"path"})
    """The hash of the file's content identifies it: it may be moved, and packed or unpacked."""

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the hash of the file's JSON, packed or not."""
        content = caption_json(Path(checked_options(spec, _Options).path).expanduser())
        return {"captions": f"sha256:{hashlib.sha256(content).hexdigest()}"}

    def __init__(self, spec: EngineSpec) -> None:
        self._path = Path(checked_options(spec, _Options).path).expanduser()
        self._captions = read_captions(self._path)
        self._content_id = self.weights_id(spec)
        first = next(iter(self._captions))
        self._first, self._frames = first, max(map(len, self._captions.values()))
        self._shapes = {_shape(sample_id) for sample_id in self._captions}

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption | Exception]:
        """Return the file's captions; the question is not asked, and tokens are words.

        A sample of which the file has no caption has a LookupError in its place.

        Raises:
            EngineError: One line, for another number of frames per sample than the file has, or another dataset.
        """
        return [self._answer(crop) for crop in crops]

    def _answer(self, crop: Crop) -> Caption | Exception:
        one = self._frames == 1  # for all slots
        if not one and (crop.frames not in {None, self._frames} or crop.slot >= self._frames):
            raise EngineError(
                f"caption file {self._path} has {self._counts()} captions per sample, this run {crop.frames} frames; "
                f"set pipeline.frames={self._frames} from the index on, or choose another captioner"
            )
        captions = self._captions.get(crop.sample_id)
        if captions:
            slots = (crop.frames or crop.slot + 1) if one else self._frames
            text = captions[(2 * crop.slot + 1) * len(captions) // (2 * slots)].strip()
            if not text:
                return LookupError(f"the caption file {self._path.name} has no caption of this slot")
            return Caption(text, len(text.split()))
        if captions is None and _shape(crop.sample_id) not in self._shapes:
            raise EngineError(
                f"caption file {self._path} is of another dataset: its samples are called like {self._first!r}, these "
                f"like {crop.sample_id!r}; give this dataset's file in pipeline.caption.engine.options.path"
            )
        return LookupError(
            f"the caption file {self._path.name} has no captions of this sample "
            f"(it has {len(self._captions):,} samples)"
        )

    def _counts(self) -> str:
        fewest = min(map(len, self._captions.values()))
        return str(self._frames) if fewest == self._frames else f"{fewest} to {self._frames}"

    def describe(self) -> Mapping[str, Any]:
        """Return file, hash and size, for the stage's manifest."""
        return {
            "backend": "precomputed",
            "file": self._path.name,
            **self._content_id,
            "samples": len(self._captions),
            "frames": self._frames,
            "question": "not asked: these captions were made elsewhere",
        }
