"""Name the action in an array of joints with onnxruntime and numpy alone.

    python recognise.py recogniser.onnx clip.npy

The file is what `c2vl-eval export` wrote; the array is (T, M, V, C), joints in the order of its `layout`, in the unit
that its `input` names.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
joints = np.load(sys.argv[2]).astype(np.float32)
(probabilities,) = session.run(["probabilities"], {"joints": joints})
for n in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[n]:.4f}  {classes[n]}")
